"""The OpenAI surface over the engine."""
