"""What compact models compute with, and what is known of modules that are called as a whole."""
