"""The parts of a merge on files: the format (`shards`), which tensor is which parameter (`names`), what an adapter does to each
parameter (`changes`)."""
