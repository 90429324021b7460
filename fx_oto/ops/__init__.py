"""For each kind of op, its rule (how it makes channels depend on each other) and its rewriting for fewer channels."""
