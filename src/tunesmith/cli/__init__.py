"""One file a verb: parse, call, print. No logic, and nothing heavy at import."""
