"""What happens to a compact model after compression: files, and the way back into the user's own classes."""
