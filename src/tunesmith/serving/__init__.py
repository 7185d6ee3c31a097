"""Generation: one base in memory, any number of adapters beside it, one loop for evaluation and serving."""
