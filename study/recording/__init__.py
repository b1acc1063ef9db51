"""Carry what happened to MLflow, each event once."""
