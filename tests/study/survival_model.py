"""What tests/study/test_survival_properties.py plays with: a tiny experiment, deaths that can be aimed, a model of MLflow."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import torch

from search_spaces.space import StudySpace
from trainables.experiment import Candidate, Experiment, Metric


class Died(BaseException):
    """SIGKILL, as nearly as one process can play it: nothing that was not written is kept, and nobody may catch it."""


class Doom:
    """Kills processes of one kind, each after so many more of its instants: its failpoints, its writes."""

    def __init__(self) -> None:
        self.coming: list[int] = []
        self.died_at: list[str] = []

    def pass_by(self, place: str, _: str = "") -> None:
        if not self.coming:
            return
        self.coming[0] -= 1
        if self.coming[0] < 0:
            del self.coming[0]
            self.died_at.append(place)
            raise Died(place)

    def before(self, function: Any, place: str) -> Any:
        """A function that passes by before it does anything."""

        def passing(*args: Any, **kwargs: Any) -> Any:
            self.pass_by(place)
            return function(*args, **kwargs)

        return passing

    @contextmanager
    def spared(self) -> Iterator[None]:
        """Inside, nobody dies."""
        coming, self.coming = self.coming, []
        yield
        self.coming = coming


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GrowingConfig:
    x: float
    """What it costs, 0..1; diverges in its last step above 0.9, has a bug of its own between 0.8 and 0.9."""
    num_steps: int
    """At least 1."""
    share: float
    """What makes it good, 0..1."""

    @classmethod
    def tiny(cls) -> Self:
        return cls(x=0.5, num_steps=2, share=0.5)


class Growing(Experiment):
    """Its numbers depend on every step before: one that is made twice, or left out, is seen. Every second step offers a model."""

    Config = GrowingConfig
    METRICS = (
        Metric(name="cost", goal="min", unit="1", meaning="Falls from step to step."),
        Metric(name="size", goal="max", unit="1", meaning="Grows from step to step."),
    )

    def __init__(self, config: GrowingConfig, *, device: torch.device) -> None:
        self._config, self._count, self._size_1 = config, 0, torch.tensor([config.share], dtype=torch.float64)

    def step(self) -> dict[str, float]:
        self._count += 1
        self._size_1 = self._size_1 * 1.5 + self._config.x
        if self._count == self._config.num_steps and 0.8 < self._config.x <= 0.9:
            raise KeyError(f"a bug at {self._config.x}")
        is_finite = self._count < self._config.num_steps or self._config.x <= 0.9
        return self._metrics() | ({} if is_finite else {"cost": float("nan")})

    def _metrics(self) -> dict[str, float]:
        return {"cost": self._config.x**self._count, "size": self._size_1.item()}

    @property
    def progress(self) -> float:
        return self._count / self._config.num_steps

    def candidates(self) -> list[Candidate]:
        number, is_odd = divmod(self._count, 2)
        if is_odd:
            return []
        return [Candidate(number=number - 1, metrics=self._metrics(), tensors=self.model_tensors())]

    def state_dict(self) -> dict[str, Any]:
        return {"count": self._count, "size_1": self._size_1}

    def load_state_dict(self, state: Any) -> None:
        self._count, self._size_1 = state["count"], state["size_1"].clone()

    def model_tensors(self) -> dict[str, torch.Tensor]:
        return {"size_1": self._size_1}

    @classmethod
    def rebuild(cls, config: Any, tensors: Any, files: Any) -> Any:
        return tensors["size_1"]


def growing(num_trials: int, *, refused_below: float = 0.1) -> StudySpace:
    """A space whose draws may be refused, have a parameter that others have not, diverge, fail or finish."""

    def suggest(trial: Any) -> dict[str, Any]:
        x = trial.suggest_float("x", 0, 1)
        kind = trial.suggest_categorical("kind", ["plain", "shared"])
        num_steps = trial.suggest_int("num_steps", 1, 3)
        if x < refused_below:
            raise ValueError(f"x must be at least {refused_below}, but got {x}")
        share = trial.suggest_float("share", 0, 1) if kind == "shared" else 0.25
        return {"x": x, "num_steps": num_steps, "share": share}

    return StudySpace(
        experiment="survival_model:Growing",
        suggest=suggest,
        objectives=("cost", "size"),
        constraints=("size >= 0.5",),
        num_trials=num_trials,
    )


@dataclasses.dataclass
class Run:
    """A run of the model of MLflow."""

    start_time: int
    tags: dict[str, str]
    status: str = "RUNNING"
    params: dict[str, str] = dataclasses.field(default_factory=dict)
    rows: set[tuple[str, int, int, float]] = dataclasses.field(default_factory=set)
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Model:
    """A logged model of the model of MLflow."""

    tags: dict[str, str]
    model_id: str
    source_run_id: str
    creation_timestamp: int
    status: str = "PENDING"
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    metrics: list[SimpleNamespace] = dataclasses.field(default_factory=list)

    @property
    def artifact_location(self) -> str:
        return f"models/{self.model_id}"


class Store:
    """MLflow as `study.recording.tracking_writer` knows its client. A metric's row that is there already is dropped, a param is
    never changed, and a batch is three writes, between which the writer may die.
    """

    def __init__(self, writer: Doom) -> None:
        self._writer = writer
        self.experiment: SimpleNamespace | None = None
        self.runs: dict[str, Run] = {}
        self.models: dict[str, Model] = {}

    def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
        return self.experiment

    def create_experiment(self, name: str, *, tags: dict[str, str], **_: Any) -> str:
        self._writer.pass_by("create_experiment")
        assert self.experiment is None
        self.experiment = SimpleNamespace(experiment_id="1", lifecycle_stage="active", tags=dict(tags))
        return "1"

    def search_runs(
        self,
        _: Sequence[str],
        condition: str,
        *,
        order_by: Sequence[str] = (),
        page_token: str | None = None,
        max_results: int = 0,
    ) -> "Page":
        """In an order, pages of two runs, so that a study of few trials has several."""
        found = [self.get_run(run_id) for run_id, run in self.runs.items() if _meets(run.tags, condition)]
        if not order_by:
            return Page(found)
        found.sort(key=lambda run: -run.info.start_time)
        last = int(page_token or 0) + 2
        page = Page(found[last - 2 : last])
        page.token = str(last) if last < len(found) else None
        return page

    def create_run(self, _: str, *, start_time: int, tags: dict[str, str], run_name: str) -> SimpleNamespace:
        self._writer.pass_by("create_run")
        run_id = f"run-{len(self.runs)}"
        self.runs[run_id] = Run(start_time, dict(tags))
        return self.get_run(run_id)

    def get_run(self, run_id: str) -> SimpleNamespace:
        run = self.runs[run_id]
        info = SimpleNamespace(
            run_id=run_id, start_time=run.start_time, status=run.status, artifact_uri=run_id, lifecycle_stage="active"
        )
        latest = {key: value for key, _, _, value in sorted(run.rows, key=lambda row: row[1])}
        return SimpleNamespace(info=info, data=SimpleNamespace(tags=dict(run.tags), metrics=latest))

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self._writer.pass_by("set_tag")
        self.runs[run_id].tags[key] = value

    def set_logged_model_tags(self, model_id: str, tags: dict[str, str]) -> None:
        self._writer.pass_by("set_logged_model_tags")
        self.models[model_id].tags |= tags

    def get_logged_model(self, model_id: str) -> "Model":
        return self.models[model_id]

    def log_batch(self, run_id: str, metrics: Sequence[Any] = (), params: Sequence[Any] = (), tags: Sequence[Any] = ()) -> None:
        run = self.runs[run_id]
        self._writer.pass_by("log params")
        for param in params:
            assert run.params.setdefault(param.key, param.value) == param.value
        self._writer.pass_by("log metrics")
        run.rows |= {(row.key, row.step, row.timestamp, row.value) for row in metrics}
        for row in metrics:
            if row.model_id is not None:
                self.models[row.model_id].metrics.append(SimpleNamespace(key=row.key, value=row.value))
        self._writer.pass_by("log tags")
        run.tags |= {tag.key: tag.value for tag in tags}

    def update_run(self, run_id: str, *, status: str) -> None:
        self._writer.pass_by("update_run")
        self.runs[run_id].status = status

    def set_terminated(self, run_id: str, *, status: str, end_time: int) -> None:
        self.update_run(run_id, status=status)

    def delete_tag(self, run_id: str, key: str) -> None:
        self._writer.pass_by("delete_tag")
        del self.runs[run_id].tags[key]

    def log_artifacts(self, run_id: str, folder: str, place: str) -> None:
        self._writer.pass_by("log_artifacts")
        self.runs[run_id].files |= {f"{place}/{path.name}": path.read_bytes() for path in Path(folder).iterdir()}

    # -- as `study.keeping.artifacts` knows its files

    def num_bytes(self, uri: str) -> int:
        return sum(len(data) for data in self._files_at(uri).values())

    def delete(self, uri: str) -> None:
        """File by file, as on a disk."""
        for path in list(self._files_at(uri)):
            self._writer.pass_by("delete")
            del self._files_of(uri)[path]

    def _files_of(self, uri: str) -> dict[str, bytes]:
        where, _, name = uri.partition("/")
        return self.models[name].files if where == "models" else self.runs[where].files

    def _files_at(self, uri: str) -> dict[str, bytes]:
        prefix = "" if uri.startswith("models/") else uri.partition("/")[2]
        return {path: data for path, data in self._files_of(uri).items() if path.startswith(prefix)}

    # -- logged models

    def search_logged_models(self, _: Sequence[str], condition: str, **__: Any) -> Any:
        return Page(model for model in self.models.values() if _meets(model.tags, condition))

    def create_logged_model(self, _: str, *, source_run_id: str, tags: dict[str, str], **__: Any) -> Model:
        self._writer.pass_by("create_logged_model")
        model = Model(dict(tags), f"model-{len(self.models)}", source_run_id, len(self.models))
        self.models[model.model_id] = model
        return model

    def log_model_artifacts(self, model_id: str, folder: str) -> None:
        self._writer.pass_by("log_model_artifacts")
        self.models[model_id].files |= {path.name: path.read_bytes() for path in Path(folder).iterdir()}

    def finalize_logged_model(self, model_id: str, status: str) -> None:
        self._writer.pass_by("finalize_logged_model")
        self.models[model_id].status = status


class Page(list[Any]):
    """What a search of MLflow finds, with the token of the next page."""

    token: str | None = None


def _meets(tags: dict[str, str], condition: str) -> bool:
    return all(tags.get(key) == value for key, value in re.findall(r"tags\.`([^`]+)` = '([^']*)'", condition))
