"""Kill a small study, and see that nothing is lost."""
