"""A run of an eval: rows in, samples of a model, grades out."""
