"""Zero-invariant groups: what they are, what they cost and look like, and what a model would be without them."""
