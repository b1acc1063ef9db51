"""How a study stands, by its files alone: somebody runs it, it is about to begin, it was refused, nobody runs it."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from study.home import StudyFolder
from study.running.background import last_driver, last_words, log_file, nobody_ran_since, refusal

STATES = ("running", "starting", "idle", "refused", "imported", "unknown")
"""Of a study that this home did not launch, nobody here knows whether it runs: unknown."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a study stands.

    Attributes:
        state: one of `STATES`.
        sentence: of a refusal: why.
    """

    state: str
    sentence: str | None = None


def is_known(folder: StudyFolder) -> bool:
    """Whether this home has anything of a study, be it a launch that was refused."""
    return folder.exists() or folder.is_imported or (folder.path / "driver.json").is_file()


def standing(folder: StudyFolder) -> Standing:
    """How a study stands now."""
    if folder.is_imported:
        return Standing("imported")
    if folder.holder() is not None:
        return Standing("running" if folder.exists() else "starting")
    driver = last_driver(folder)
    if driver is not None and driver.is_alive:
        return Standing("starting" if nobody_ran_since(folder) or not folder.exists() else "running")  # or ends just now
    if nobody_ran_since(folder) and (sentence := refusal(folder)):
        return Standing("refused", sentence)
    if folder.exists():
        return Standing("idle")
    if driver is not None:
        return Standing("refused", last_words(folder) or f"the launch ended before its first trial; see {log_file(folder).name}")
    return Standing("unknown")


def stamp(folder: StudyFolder, names: Sequence[str] = ("spec.json", "optuna.db", "optuna.db-wal", "lock", "driver.json")) -> str:
    """What changes when a study's files do."""
    times = []
    for name in names:
        with suppress(OSError):
            found = (folder.path / name).stat()
            times.append(f"{name}:{found.st_mtime_ns}:{found.st_size}")
    return " ".join(times)
