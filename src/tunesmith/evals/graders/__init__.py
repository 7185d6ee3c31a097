"""Graders as OpenAI's API has them: a rule, a similarity or a model that turns an item and a sample into a score."""
