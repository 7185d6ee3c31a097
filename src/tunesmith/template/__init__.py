"""From messages to token ids, knowing which of them are trained."""
