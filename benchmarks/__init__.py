"""What is measured; each file says how it is run."""
