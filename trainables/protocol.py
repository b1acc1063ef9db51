"""What a study tells a worker, and what the worker reports back: plain values that travel as JSON."""

import dataclasses
import json
from typing import Any, Literal, Self, TypedDict

STOPPED_FILE = "stopped.txt"
"""In a trial's folder: why the study ended it early. Then nothing that its worker has is worth keeping but the log."""

FailureCause = Literal["diverged", "out_of_memory", "invalid_config", "bug", "storage", "worker_lost", "node_lost", "preempted"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """One attempt at one trial.

    Attributes:
        experiment: name for `trainables.registry.load_experiment`.
        config: keyword arguments of the experiment's Config.
        trial: number of the trial in its study, from 0.
        attempt: 1 for the first try of a trial; one more each time it is handed out again.
        study_folder: of the study in its storage; the driver has put `study.json` there.
        folder: of the trial in it: its checkpoints, model and log (`trainables.storage.Folder`).
        num_cpus, num_gpus: what the trial was given; torch's threads follow num_cpus.
        import_paths: folders that a user's own modules are imported from.
    """

    experiment: str
    config: dict[str, Any]
    trial: int
    attempt: int
    study_folder: str
    folder: str
    num_cpus: float
    num_gpus: float
    import_paths: list[str]

    def to_json(self) -> str:
        return json.dumps(plain(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))


class Offer(TypedDict):
    """A candidate as it is reported: its files are in `folder` of the trial's by then.

    The folder is of one attempt: on other hardware, another may find another model under the same number.
    """

    number: int
    metrics: dict[str, float]
    folder: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """What one step of the experiment returned, with the progress after it and the candidates that it found.

    Attributes:
        seconds, cpu_seconds: what the step took, evaluation included: wall time, and CPU time of the worker's process.
        evaluation_seconds, evaluation_cpu_seconds: what of that went into measuring (`trainables.clock.evaluating`).
        flops: floating-point operations of the trial up to here (`Experiment.flops`).
    """

    step: int
    metrics: dict[str, float]
    progress: float
    candidates: list[Offer] = dataclasses.field(default_factory=list)
    seconds: float = dataclasses.field(default=0.0, compare=False)  # the same step made twice takes different times
    cpu_seconds: float = dataclasses.field(default=0.0, compare=False)
    evaluation_seconds: float = dataclasses.field(default=0.0, compare=False)
    evaluation_cpu_seconds: float = dataclasses.field(default=0.0, compare=False)
    flops: float | None = None

    @property
    def took(self) -> dict[str, float]:
        """The seconds, by name."""
        return {name: getattr(self, name) for name in _SECONDS}


_SECONDS = ("seconds", "cpu_seconds", "evaluation_seconds", "evaluation_cpu_seconds")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why a trial cannot go on."""

    cause: FailureCause
    error: str
    traceback: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The answer to one request to advance.

    Attributes:
        measurements: new ones, oldest first. The first report of an attempt repeats those of its checkpoint, in case the
            study never heard them: they are told apart by their step.
        finished: nothing is left to do, and the model is in the trial's folder.
        failure: the trial is over without a result.
        host, pid: the worker's.
        resumed_step: the step of the checkpoint that the attempt went on from, 0 without one.
        seconds: what the request took, the step and all that was written.
        cpu_seconds: CPU time of the worker's process since its last report, of whatever trial; since it began for its first.
        age_seconds: since it was made, when the worker sent it with others.
    """

    trial: int
    attempt: int
    measurements: list[Measurement]
    finished: bool
    failure: Failure | None
    host: str
    pid: int
    resumed_step: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    age_seconds: float = 0.0

    def to_json(self) -> str:
        measurements = [plain(measurement) for measurement in self.measurements]
        return json.dumps(plain(self) | {"measurements": measurements, "failure": self.failure and plain(self.failure)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        fields = json.loads(text)
        fields["measurements"] = [Measurement(**measurement) for measurement in fields["measurements"]]
        fields["failure"] = fields["failure"] and Failure(**fields["failure"])
        return cls(**fields)


def plain(value: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, as they are; `dataclasses.asdict` copies all that is in them, which takes its time."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
