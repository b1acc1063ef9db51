"""The commands of `study`: each module adds its own to the app; imports late, as `study.cli` does."""
