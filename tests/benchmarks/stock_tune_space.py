"""The space of `stock_tune_study.py`, in a module of its own as OptunaSearch needs it.

OptunaSearch pickles the function by name. One of the script's own cannot be saved any more once a Tuner is restored: Ray then
only warns, and every later restart begins with what was saved before.
"""

from collections.abc import Mapping
from typing import Any

from search_spaces.cmsp_curriculum import tiny

SPACE = tiny()


def suggest(trial: Any) -> Mapping[str, Any]:
    """Draw a config. The space's constraint has no place in OptunaSearch."""
    return SPACE.suggest(trial)
