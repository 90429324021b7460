"""Zero-invariant groups: what may be removed together, what that saves, and what is left of each axis."""
