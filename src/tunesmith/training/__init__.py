"""One training: the run directory, the loop, checkpoints, resume."""
