"""Run a study's trials: Ray carries them out, Optuna's record holds what is true of them."""
