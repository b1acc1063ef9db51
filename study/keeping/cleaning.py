"""Clear away what a study need not keep. What a process that was killed here left undone, the same call finishes."""

import contextlib
import fcntl
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from study.errors import UserError
from study.home import Home, StudyFolder
from study.keeping import disk
from study.keeping.retention import Rule, Stock
from study.recording.outbox import Outbox
from study.running.lease import StorageLease
from study.spec import KEEPS, StudySpec

OWNER = "study.json"
"""In a study's storage: which study it is, and which home it was last run from (`study.run`)."""
_LOG, _DEPTH_OF_LOG = "log.txt", 2
_PARTIAL = ".partial"
_CLOCK = "clock-"
"""Begins the name of a file by which a lease told the storage's time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """What goes of a study, or has gone.

    Attributes:
        num_bytes: by kind, as in `study.keeping.disk.KINDS`.
        num_models: dropped from MLflow; their metrics, charts and logs stay.
        num_trials: of which files in the storage go.
    """

    study: str
    num_bytes: Mapping[str, int]
    num_models: int
    num_trials: int

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(self.num_bytes.values())

    def to_json(self) -> dict[str, Any]:
        kinds = {kind: num for kind, num in self.num_bytes.items() if num}
        return {"study": self.study, "bytes": kinds, "total": self.total} | {
            "models": self.num_models, "trials": self.num_trials,
        }  # fmt: skip


def sweep(name: str, *, home: str | Path | None = None, keep: str | None = None, dry_run: bool = False) -> Sweep:
    """Clear away what a study need not keep, whichever version of this package made it.

    That is all but the log of each trial that has ended, once MLflow has the rest; models that its rule lets go
    (`study.keeping.retention`); what killed processes left half-written; files of runs and candidates that are deleted in
    MLflow.
    Trials that may go on, and what trials share, are left as they are.

    Args:
        home: None for `$STUDY_HOME`.
        keep: which models it keeps from now on, one of `study.spec.KEEPS`; None for what it kept so far.
        dry_run: only say what would go.

    Raises:
        UserError: if there is no such study, it is running, or MLflow does not answer.
    """
    if keep not in (None, *KEEPS):
        raise UserError(f"--keep must be {' or '.join(KEEPS)}, but got {keep!r}; leave it out to change nothing")
    folder = Home(home).study(name)
    if folder.is_imported:  # it is rows in MLflow
        return Sweep(study=name, num_bytes={}, num_models=0, num_trials=0)
    folder.require()
    with alone(folder) as old, lease_of(old, folder), contextlib.closing(Outbox(folder.outbox_file)) as outbox:
        spec = replace(old, keep=keep or old.keep)
        plan = _plan(folder, spec, outbox)
        if not dry_run:
            spec.save(folder.spec_file)
            _carry_out(folder, spec, outbox)
    return plan


def _plan(folder: StudyFolder, spec: StudySpec, outbox: Outbox) -> Sweep:
    from study.keeping import artifacts
    from study.keeping.settling import is_registered
    from study.recording import tracking
    from study.recording.writer import connect

    found, trials, ended = Counter[str](), set[int](), _ended(spec, folder)
    for path, num_bytes in spec.study_folder.sizes().items():
        if _may_go(path, ended):
            found[disk.kind_in_storage(path)] += num_bytes
            trials |= {trial for trial in [disk.trial_of(path)] if trial is not None}
    writer = connect(folder.path, outbox)
    stock = Stock(Rule.of(spec), (model for model in outbox.models() if model.state != "dropped"))
    client = tracking.connect(spec.tracking_uri)
    with _answering(spec):
        for trial in sorted(ended - outbox.settled()):
            for model in writer.look_at(trial, spec.trial_folder(trial)):
                stock.add(model)
        excess, registered = stock.take_excess(), artifacts.in_registry(client)
        excess = [model for model in excess if not is_registered(client, model, registered)]
        found[disk.REST] += sum(artifacts.num_bytes(uri, spec.tracking_uri) for uri in writer.orphans().values())
    found[disk.OTHERS] += sum(model.num_bytes for model in excess)
    return Sweep(study=folder.name, num_bytes=found, num_models=len(excess), num_trials=len(trials))


def _may_go(path: str, ended: set[int]) -> bool:
    """Whether a file of the storage may go: of a trial that has ended all but its log."""
    trial, name = disk.trial_of(path), path.rpartition("/")[2]
    if trial is not None:
        return trial in ended and (name != _LOG or path.count("/") > _DEPTH_OF_LOG)
    return name.startswith(_CLOCK) or (name.startswith(".") and name.endswith(_PARTIAL))


def _carry_out(folder: StudyFolder, spec: StudySpec, outbox: Outbox) -> None:
    from study.keeping import artifacts
    from study.recording.writer import connect

    ended = _ended(spec, folder)
    outbox.settle({trial: spec.trial_folder(trial).address for trial in sorted(ended - outbox.settled())})
    writer = connect(folder.path, outbox)
    with _answering(spec), writer.weighing_at_once():  # as in the plan, and not trial by trial
        while writer.deliver():
            pass
        left = {disk.trial_of(path) for path in spec.study_folder.sizes() if _may_go(path, ended)}
        for trial in sorted(trial for trial in left if trial is not None):
            writer.settle(trial, spec.trial_folder(trial))
    for path in spec.study_folder.sizes():
        if _may_go(path, ended) and (path.endswith(_PARTIAL) or path.startswith(_CLOCK)):
            spec.study_folder.delete(path)
    with _answering(spec):
        for place, uri in writer.orphans().items():
            artifacts.delete(uri, spec.tracking_uri)
            for model in outbox.models():
                if model.place == place:
                    outbox.mark_model(model, "dropped")


@contextlib.contextmanager
def _answering(spec: StudySpec) -> Iterator[None]:
    """Tell an MLflow that does not answer from files that cannot be read or removed."""
    from study.recording import tracking

    try:
        with tracking.answering(spec.tracking_uri):
            yield
    except tracking.NoAnswerError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.filename:
            raise UserError(f"a study's files must be ones that may be removed, but {cause}; mend it") from cause
        raise


@contextlib.contextmanager
def alone(folder: StudyFolder) -> Iterator[StudySpec]:
    """Hold a study that nobody runs in this home, and whose writer is done.

    Raises:
        UserError: if somebody does, or it is not.
    """
    with folder.lease(), (folder.path / "writer.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"a study's events must have reached MLflow before its files may go, but those of {folder.name!r} are still on "
                "their way; wait a moment"
            ) from None
        yield StudySpec.load(folder.spec_file)


@contextlib.contextmanager
def lease_of(spec: StudySpec, folder: StudyFolder) -> Iterator[None]:
    """Hold a study's storage, so that no other home runs it, or has it cleared away.

    Raises:
        UserError: if another does, or the study is another home's, of which this one is a copy.
    """
    home = str(folder.home.path)
    with StorageLease(spec.study_folder, name=spec.name, study_id=spec.study_id, home=home, on_lost=lambda _: None):
        _refuse_copy(spec, folder)
        yield


def _refuse_copy(spec: StudySpec, folder: StudyFolder) -> None:
    """A home that was copied says of its studies' files where the first one's are; one that was moved has them."""
    if OWNER not in spec.study_folder.names():
        return
    owner = json.loads(spec.study_folder.read(OWNER))
    if owner["study_id"] != spec.study_id or "home" not in owner:  # of somebody else's, or of an older version
        return
    other = Home(owner["home"]).study(spec.name)
    if other.path.resolve() == folder.path.resolve() or not other.exists():
        return
    if StudySpec.load(other.spec_file).study_id == spec.study_id:
        raise UserError(
            f"a study's files may go only where it was last run, but {spec.name!r} was run from the home {other.home.path}, and "
            f"{folder.home.path} has it, too; set STUDY_HOME to that one, or first resume the study from here"
        )


def _ended(spec: StudySpec, folder: StudyFolder) -> set[int]:
    """Trials whose end the record knows."""
    from study.running.record_place import RecordPlace  # and Optuna with it

    return RecordPlace.of(spec, folder).ended()
