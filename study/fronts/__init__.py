"""Fronts of models: who is on them, and what one says; numpy only, below `front` and `seeds`."""
