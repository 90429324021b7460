"""Ops that read their elements in another shape."""
