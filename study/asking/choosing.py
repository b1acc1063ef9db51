"""Which model of a study is meant, and its folder: whole or not at all, with a passport that says where it comes from."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from study.asking.query import Studies, Study
from study.asking.trials import TrialRow
from study.errors import UserError


def choose_model(
    studies: Studies,
    *,
    knee: bool = False,
    trial: int | None = None,
    candidate: str | None = None,
    objectives: Sequence[str] = (),
    where: str | None = None,
    constraints: Sequence[str] = (),
) -> TrialRow:
    """The knee, a trial's own model, or a candidate: one of them is asked for.

    Args:
        candidate: as it is called: `3.4` for candidate 4 of trial 3.
        objectives, where, constraints: of the front that the knee is of.

    Raises:
        UserError: if none or several are, or there is no such model.
    """
    asked = [
        name for name, is_asked in (("--knee", knee), ("--trial", trial is not None), ("--candidate", candidate)) if is_asked
    ]
    if len(asked) != 1:
        got = " and ".join(asked) or "none"
        raise UserError(f"one model must be asked for, by --knee, --trial or --candidate, but got {got}; try --knee")
    if knee:
        return studies.knee(objectives, where=where, constraints=constraints)
    if objectives or where or constraints:
        raise UserError(
            f"--objective, --where and --constraint choose the front of a knee, but got {asked[0]}; leave them out, or try --knee"
        )
    study = _single(studies)
    if trial is not None:
        return study.trial(trial)
    number, _, place = str(candidate).partition(".")
    if not (number.isdecimal() and place.isdecimal()):
        raise UserError(f"a candidate must be TRIAL.NUMBER, but got {candidate!r}; try 3.4 for candidate 4 of trial 3")
    return study.model(int(number), int(place))


def _single(studies: Studies) -> Study:
    if not isinstance(studies, Study):
        raise UserError(f"a trial must be of one study, but got {studies.name}; name one, or ask for --knee")
    return studies


def take_out(row: TrialRow, folder: Path) -> Path:
    """Copy a model into a folder that does not exist yet, and note in its passport where it comes from.

    Raises:
        UserError: if the folder exists and is not empty, cannot be written, or there is no such model.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"a model needs a folder of its own, but {folder} is there already; name another, or remove it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as staging:
            copied = row.download_model(staging)
            _note_origin(row, copied)
            copied.rename(folder)  # over an empty one; over one that was filled meanwhile, it cannot
    except OSError as error:
        raise UserError(
            f"a model's folder must be one that can be written, but {folder} is not ({error}); name another"
        ) from error
    return folder


def _note_origin(row: TrialRow, folder: Path) -> None:
    """Say in a passport which model this is; a model of before there were passports has none."""
    from trainables.passport import PASSPORT_FILE, add_origin

    if not (folder / PASSPORT_FILE).exists():
        return
    origin = {"study": row.source_study, "trial": row.number, "candidate": row.candidate, "run_id": row.run_id}
    try:
        add_origin(folder, origin | ({"model_id": row.model_id} if row.model_id else {}))
    except ValueError as error:
        raise UserError(str(error)) from error
