"""How many bytes a study is, by what they are: checkpoints, models in MLflow, copies on their way there, logs, databases."""

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from study.home import Home, StudyFolder
from study.keeping.retention import Model, Rule, Stock
from study.recording.outbox import Outbox
from study.spec import StudySpec
from trainables.storage import Folder

CHECKPOINTS, COPIES, FRONT, OTHERS = "checkpoints", "copies", "front_models", "other_models"
CHARTS, LOGS, SHARED, DATABASES, REST = "charts", "logs", "shared", "databases", "rest"
KINDS = {
    CHECKPOINTS: "of trials that may go on",
    COPIES: "models and candidates in the storage: MLflow has them as soon as their trial has ended",
    FRONT: "models in MLflow that are on the front",
    OTHERS: "other models in MLflow",
    CHARTS: "data and pictures",
    LOGS: "of the trials and of the study's writer",
    SHARED: "teachers, base models and corpora of all trials",
    DATABASES: "the study's record and its outbox",
    REST: "everything else",
}
_TRIAL = re.compile(r"trials/(\d+)/(.+)")
_IN_A_TRIAL = {"checkpoints": CHECKPOINTS, "model": COPIES, "candidates": COPIES, "charts": CHARTS, "log.txt": LOGS}
_RUN = re.compile(r"([0-9a-f]{32})/artifacts/(\w+)/")
_LOGGED_MODEL = re.compile(r"models/([\w-]+)/")


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What a study takes.

    Attributes:
        num_bytes: by kind, every one of `KINDS`.
        num_models, num_dropped: that MLflow keeps of settled trials, and of which it keeps but the metrics.
    """

    study: str
    num_bytes: Mapping[str, int]
    num_models: int
    num_dropped: int

    @property
    def total(self) -> int:
        """All its bytes."""
        return sum(self.num_bytes.values())

    def to_json(self) -> dict[str, Any]:
        return {"study": self.study, "bytes": dict(self.num_bytes), "total": self.total} | {
            "models": self.num_models, "dropped": self.num_dropped,
        }  # fmt: skip


def usage(folder: StudyFolder) -> Usage:
    """Look at every place where a study has files. Of models on a server it says what the study noted of them.

    Raises:
        UserError: if there is no such study.
    """
    if folder.is_imported:
        return _usage_of_import(folder)
    spec = StudySpec.load(folder.require().spec_file)
    models = noted_models(folder)
    kept = [model for model in models if model.state != "dropped"]
    front = {model.place for model in Stock(Rule.of(spec), kept).front}
    found = Counter[str]({kind: 0 for kind in KINDS})
    for kind, num_bytes in (*in_storage(spec), *_in_mlflow(spec, folder.home, kept, front), *_in_home(folder)):
        found[kind] += num_bytes
    return Usage(study=folder.name, num_bytes=found, num_models=len(kept), num_dropped=len(models) - len(kept))


def _usage_of_import(folder: StudyFolder) -> Usage:
    """Next to nothing but rows in MLflow, unless somebody has logged a report."""
    found = Counter[str]({kind: 0 for kind in KINDS})
    for place in (folder.path, folder.home.path / "mlartifacts" / folder.name):
        found[REST] += sum(Folder(place).sizes().values())
    return Usage(study=folder.name, num_bytes=found, num_models=0, num_dropped=0)


def noted_models(folder: StudyFolder) -> list[Model]:
    """The models of settled trials, as the study's outbox knows them."""
    with contextlib.closing(Outbox(folder.outbox_file)) as outbox:
        return outbox.models()


def in_storage(spec: StudySpec) -> Iterator[tuple[str, int]]:
    """Kind and bytes of each file of a study's storage."""
    for path, num_bytes in spec.study_folder.sizes().items():
        yield kind_in_storage(path), num_bytes


def kind_in_storage(path: str) -> str:
    """What a file is, by its path in the study's folder."""
    if match := _TRIAL.fullmatch(path):
        return _IN_A_TRIAL.get(match[2].partition("/")[0], REST)
    return SHARED if path.startswith("shared/") else REST


def trial_of(path: str) -> int | None:
    """The trial whose file a path in the study's folder is; None if it is none's."""
    match = _TRIAL.fullmatch(path)
    return int(match[1]) if match else None


def _in_mlflow(spec: StudySpec, home: Home, kept: Iterable[Model], front: set[str]) -> Iterator[tuple[str, int]]:
    artifacts = spec.artifacts(home.path)
    if artifacts is None:
        yield from ((FRONT if model.place in front else OTHERS, model.num_bytes) for model in kept)
        return
    for path, num_bytes in Folder(artifacts).sizes().items():
        yield _kind_in_mlflow(path, front), num_bytes


def _kind_in_mlflow(path: str, front: set[str]) -> str:
    if match := _LOGGED_MODEL.match(path):
        return FRONT if match[1] in front else OTHERS
    match = _RUN.match(path)
    if match and match[2] == "model":
        return FRONT if match[1] in front else OTHERS
    return CHARTS if match and match[2] == "charts" else REST


def _in_home(folder: StudyFolder) -> Iterator[tuple[str, int]]:
    for name, num_bytes in Folder(folder.path).sizes().items():
        kind = DATABASES if ".db" in name else LOGS if name.endswith(".log") else REST
        yield kind, num_bytes


def database_bytes(home: Home) -> int:
    """Of MLflow's own database in a home, which all its studies share."""
    return sum(path.stat().st_size for path in home.path.glob("mlflow.db*") if path.is_file())


def shown(num_bytes: int) -> str:
    """Bytes for people, three digits of them."""
    size, units = float(num_bytes), ["B", "kB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}" if num_bytes else "-"
