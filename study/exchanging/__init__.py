"""Trials out of a study as a file, and into one from elsewhere."""
