"""The building blocks of compact models, and what is known about modules that are called as a whole."""
