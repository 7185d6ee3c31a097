"""read -> normalise -> audit -> split -> render -> pack: one stage a file, each a plain function over rows."""
