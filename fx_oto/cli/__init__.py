"""The command line: ``python -m fx_oto inspect | compress | demo``."""
