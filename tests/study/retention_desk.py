"""A study of fabricated trials: a real outbox, writer, MLflow and storage, and nothing that trains."""

import dataclasses
import json
from pathlib import Path

import optuna
import safetensors.torch
import torch
from test_spec import spec

from search_spaces.cmsp_curriculum import tiny
from study.home import Home
from study.recording.outbox import Outbox
from study.recording.tracking_writer import StudyWriter
from study.recording.writer import connect
from study.running.record import TrialRecord
from trainables.checkpoints import Checkpoints
from trainables.experiment import Experiment, Metric
from trainables.protocol import Failure

OBJECTIVES = {"loss": "min", "size": "min"}


class Sized(Experiment):
    """Only what a model's files name: a model of so many bytes."""

    METRICS = (Metric(name="loss", goal="min", unit="nats", meaning=""), Metric(name="size", goal="min", unit="1", meaning=""))

    @dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        trial: int

    @classmethod
    def rebuild(cls, config, tensors, files):
        return config.trial, tensors["x"]


class Desk:
    """One study in a home of its own, told trial by trial; every trial has checkpoints, a model, a chart and a log."""

    def __init__(self, home: Path, name: str = "s", *, keep: str = "front", uri: str | None = None) -> None:
        Home(home).prepare()
        self.folder = Home(home).study(name)
        self.folder.path.mkdir(parents=True)
        self.spec = spec(
            name=name, study_id=self.folder.study_id(), storage=str(home / "storage"), keep=keep, num_trials=10**6,
            sampler="random", tracking_uri=uri or Home(home).tracking_uri,
        )  # fmt: skip
        description = dataclasses.replace(self.spec.description, objectives=OBJECTIVES, constraints=("size <= 1000.0",))
        self.spec = dataclasses.replace(self.spec, description=description)
        self.spec.save(self.folder.spec_file)
        self.spec.study_folder.write("study.json", json.dumps({"study_id": self.spec.study_id}).encode())
        self.space = dataclasses.replace(SPACE, objectives=tuple(OBJECTIVES), constraints=("size <= 1000.0",), num_trials=10**6)
        self.record = TrialRecord(self.folder, self.spec, self.space)
        self.outbox = Outbox(self.folder.outbox_file)
        self.outbox.start_session({"objectives": [], "constraints": [], "log_scale": [], "color_by": "null"})

    def end(
        self, loss: float, size: float, *, kilobytes: int = 1, settled: bool = True, fails: bool = False, candidates=()
    ) -> int:
        """A trial from its start to its end; returns its number."""
        draw = self.record.draw()
        number, folder = draw.number, self.spec.trial_folder(draw.number)
        self.put("trial_start", f"start/{draw.attempt}", number, params=draw.params, attempt=1, tags={"attempts": "1"})
        metrics = {"loss": loss, "size": size}
        Checkpoints(folder.child("checkpoints"), 1).save(1, {"x": torch.zeros(250)})
        self.put("measurement", "step/1", number, step=1, metrics=metrics, progress=1.0)
        for candidate, values in enumerate(candidates):
            place = folder.child(f"candidates/{candidate:05d}-1")
            save(place, number, kilobytes)
            values = dict(zip(OBJECTIVES, values, strict=True))
            self.put("candidate", f"candidate/{candidate}", number, number=candidate, step=1, params={}, model=place.address,
                     metrics=values)  # fmt: skip
        save(folder.child("model"), number, kilobytes)
        folder.child("charts").write("c.json", b'{"name": "c", "title": "", "panels": []}')
        folder.write("log.txt", b"all that was said\n")
        places = {"model": folder.child("model").address, "charts": None}
        end = {"state": "failed", "model": None, "charts": None} if fails else {"state": "finished"} | places
        self.put("trial_end", "end/1", number, tags={"params": {}}, **end)
        if fails:
            self.record.fail(number, Failure(cause="bug", error="e", traceback=""))
        else:
            self.record.finish(number, metrics)
        if settled:
            self.outbox.settle({number: folder.address})
        return number

    def put(self, kind, key, trial, **data):
        self.outbox.put(kind, f"trial/{trial}/{key}", data, trial=trial)

    def writer(self) -> StudyWriter:
        """A fresh one, as each session has."""
        return connect(self.folder.path, self.outbox)

    def deliver(self) -> None:
        writer = self.writer()
        while writer.deliver():
            pass

    def stored(self, trial: int) -> list[str]:
        """What the storage has of a trial."""
        return sorted({path.partition("/")[0] for path in self.spec.trial_folder(trial).sizes()})

    def kept(self) -> set[int]:
        """Trials whose own model MLflow has, as its folders show."""
        numbers = {run_id: trial for trial, run_id in self.outbox.runs().items()}
        files = self.spec.artifacts(self.folder.home.path).glob("*/artifacts/model/*.safetensors")
        return {numbers[file.parts[-4]] for file in files}

    def model_files(self) -> list[Path]:
        """The weights of every model and candidate that MLflow has."""
        return sorted(self.spec.artifacts(self.folder.home.path).rglob("model.safetensors"))

    def close(self) -> None:
        self.outbox.close()
        self.record._study._storage._backend.engine.dispose()


def save(folder, trial, kilobytes):
    """A model of so many kilobytes and a fifth of one, as `load_model` takes it."""
    tensors = {"x": torch.full((250 * kilobytes,), float(trial))}
    recipe = {"experiment": "retention_desk:Sized", "config": {"trial": trial}}
    folder.write("model.safetensors", safetensors.torch.save(tensors))
    folder.write("experiment.json", json.dumps(recipe).encode())


def _suggest(trial):
    trial.suggest_float("x", 0, 1)
    return {"x": 0.5}


SPACE = dataclasses.replace(tiny(), suggest=_suggest, objectives=tuple(OBJECTIVES), constraints=("size <= 1000.0",))
optuna.logging.set_verbosity(optuna.logging.WARNING)
