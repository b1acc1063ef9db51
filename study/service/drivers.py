"""Start, stop and resume studies as the command does: a driver in a process of its own, which outlives this service."""

from collections.abc import Mapping

from study.home import StudyFolder
from study.running.background import start_driver
from study.service.schemas import Extend, Launch, Resume
from study.service.standing import standing


class ConflictError(ValueError):
    """What was asked for does not go with how the study stands now."""


def launch(folder: StudyFolder, asked: Launch, address: str | None) -> None:
    """Begin a study.

    Raises:
        ConflictError: if there is one of that name.
    """
    if folder.exists() or folder.is_imported:
        raise ConflictError(
            f"a study's name must be new, but there is {folder.name!r} already; resume that, or choose another name"
        )
    _refuse_start(folder)
    options: dict[str, str | int | None] = {"--trials": asked.trials, "--seed": asked.seed, "--keep": asked.keep}
    options |= {"--sampler": asked.sampler, "--early-stopping": asked.early_stopping}
    start_driver(folder, ["launch", asked.space, "--name", folder.name, *_words(options), *_how(asked, address)])


def resume(folder: StudyFolder, asked: Resume, address: str | None) -> None:
    """Go on with a study.

    Raises:
        ConflictError: if somebody runs it.
    """
    _refuse_start(folder)
    start_driver(folder.require(), ["resume", folder.name, *_how(asked, address)])


def extend(folder: StudyFolder, asked: Extend, address: str | None) -> None:
    """Give a study more trials.

    Raises:
        ConflictError: if somebody runs it.
        UserError: if that is no more than it has.
    """
    from study.life import check_extension  # brings Ray and PyTorch's modules with it

    check_extension(folder.name, asked.trials, home=folder.home.path)
    _refuse_start(folder)
    start_driver(folder, ["extend", folder.name, "--trials", str(asked.trials), *_how(asked, address)])


def stop(folder: StudyFolder) -> None:
    """Ask whoever runs a study to keep what is done and end.

    Raises:
        ConflictError: if nobody runs it.
    """
    folder.require()
    stands = standing(folder)
    if stands.state == "starting":
        raise ConflictError(f"a study must run to be stopped, but {folder.name!r} is only starting; try again in a few seconds")
    if stands.state != "running":
        raise ConflictError(f"a study must run to be stopped, but nobody runs {folder.name!r}; resume it, or leave it as it is")
    folder.ask_to_stop()


def _refuse_start(folder: StudyFolder) -> None:
    """Two drivers of a study do it no harm, the second is refused; but its refusal would hide what the first says."""
    state = standing(folder).state
    if state in ("running", "starting"):
        raise ConflictError(f"a study must be run by one process at a time, but {folder.name!r} is {state}; stop it first")


def _how(asked: Launch | Resume, address: str | None) -> list[str]:
    return _words({"--max-concurrent": asked.max_concurrent, "--time-budget": asked.time_budget_s, "--address": address})


def _words(options: Mapping[str, str | int | float | None]) -> list[str]:
    return [word for option, value in options.items() if value is not None for word in (option, str(value))]
