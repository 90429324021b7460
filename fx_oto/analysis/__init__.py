"""Dependency analysis: the provenance of every channel, found by running the network on labels."""
