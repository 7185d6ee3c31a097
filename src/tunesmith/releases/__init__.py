"""Gates, then an immutable bundle, then a channel that points at it."""
