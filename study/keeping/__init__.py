"""What stays of a study, and what goes."""
