"""Launch distributed hyperparameter studies, resume them, and ask them for Pareto fronts.

from study import launch, open_study
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from study.asking.query import open_study as open_study
    from study.asking.several import open_studies as open_studies
    from study.life import fork as fork
    from study.run import launch as launch
    from study.run import resume as resume

__all__ = ["fork", "launch", "open_studies", "open_study", "resume"]
_HOMES = {
    "fork": "study.life", "launch": "study.run", "resume": "study.run", "open_study": "study.asking.query",
    "open_studies": "study.asking.several",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a function's module when it is first asked for: `study --help` must load neither Ray nor MLflow."""
    if name not in _HOMES:
        raise AttributeError(f"module 'study' has no attribute {name!r}")
    import importlib

    found = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return found
