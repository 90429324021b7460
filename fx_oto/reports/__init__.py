"""Texts and figures: what was pruned, what was not and why, and what it costs."""
