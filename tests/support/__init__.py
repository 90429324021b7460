"""What several test modules share; on the path by pytest's ``pythonpath`` setting."""
