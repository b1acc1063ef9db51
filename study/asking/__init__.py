"""Ask MLflow for studies, trials and models."""
