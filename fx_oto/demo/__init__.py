"""A complete job: train a small network once on real images, compress it, and compare."""
