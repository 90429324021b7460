"""What an op does: to the dependencies of channels (its rule), and once channels are gone (its rewriting)."""
