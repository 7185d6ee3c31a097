"""Content-addressed files, atomic writes, and where they live. Imports nothing of the house but its errors."""
