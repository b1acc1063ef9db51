"""What to try: one module an experiment, each with `tiny()`, and most with `cpu()` and `paper()`."""
