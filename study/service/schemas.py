"""What is sent and received, as the service's description (OpenAPI) tells it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from study.spec import KEEPS

Value = float | str
"""A number; or one of the words NaN, Infinity and -Infinity, for the numbers that JSON lacks."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$", examples=["first"], description="A study's name.")]
Sampler = Literal["tpe", "nsga2", "nsga3", "gp", "cmaes", "qmc", "random"]
EarlyStopping = Literal["none", "moasha", "asha", "median"]
Keep = Literal["front", "all"]
assert set(Keep.__args__) == set(KEEPS)  # type: ignore[attr-defined]
_MANY = 1_000_000
Trials = Annotated[int, Field(ge=1, le=_MANY, examples=[20], description="Finished, stopped and failed trials in all.")]
MaxConcurrent = Annotated[int | None, Field(ge=1, le=_MANY, description="Trials at once; null for as many as fit.")]
TimeBudget = Annotated[float | None, Field(gt=0, le=1e9, description="Stop after this many seconds; null for no limit.")]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Launch(_Asked):
    """A study to launch."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "first", "space": "cmsp_curriculum:tiny", "trials": 6}]})
    name: Name
    space: Annotated[str, Field(max_length=200, examples=["cmsp_curriculum:tiny"], description="One of /api/v1/spaces.")]
    trials: Annotated[int | None, Field(ge=1, le=_MANY, description="In all; null for the space's number.")] = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, description="Of the search.")] = 0
    sampler: Sampler = "tpe"
    early_stopping: Annotated[EarlyStopping, Field(description="moasha for several objectives; asha, median for one.")] = "none"
    max_concurrent: MaxConcurrent = None
    time_budget_s: TimeBudget = None
    keep: Annotated[Keep | None, Field(description="Models that stay in MLflow; null for front.")] = None


class Resume(_Asked):
    """How to go on with a study."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}]})
    max_concurrent: MaxConcurrent = None
    time_budget_s: TimeBudget = None


class Extend(Resume):
    """More trials for a study."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"trials": 40}]})
    trials: Trials


class Stop(_Asked):
    """Nothing is to be said."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}]})


class Error(BaseModel):
    """Why a request was not answered: a law, what broke it, the remedy."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"error": "a study must be one of this home, but there is no 'x'; see the list of studies"}]
        }
    )
    error: str


class Accepted(BaseModel):
    """What will happen."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"study": "first", "accepted": "launch"}]})
    study: str
    accepted: Literal["launch", "stop", "resume", "extend"]


class Health(BaseModel):
    """That the service is up."""

    status: Literal["ok"]


class Metric(BaseModel):
    """A metric that can be an objective."""

    metric: str
    goal: Literal["min", "max"]
    unit: str


class Parent(BaseModel):
    """A study that another was forked from."""

    study: str
    study_id: str
    spec_hash: str
    num_trials: int


class StudyLine(BaseModel):
    """A study in short."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "study": "first", "space": "cmsp_curriculum:tiny", "state": "running", "sentence": None, "num_trials": 6,
                    "counts": {"finished": 2, "running": 2}, "progress": 0.5,
                }
            ]
        }
    )  # fmt: skip
    study: str
    space: str | None
    state: Literal["running", "starting", "idle", "refused", "imported", "unknown"]
    sentence: Annotated[str | None, Field(description="Of a refusal, or of an MLflow that does not answer: why.")]
    num_trials: Annotated[int | None, Field(description="The budget.")]
    counts: Annotated[dict[str, int] | None, Field(description="Trials by state; null before they were read.")]
    progress: Annotated[float | None, Field(description="Share of the budget that is done, 0..1.")]


class StudyLines(BaseModel):
    """The studies of the home."""

    studies: list[StudyLine]


class Failures(BaseModel):
    """Trials that failed alike."""

    cause: str
    error: str
    trials: list[int]


class StudyPage(StudyLine):
    """A study."""

    experiment: str | None
    sampler: str | None
    seed: str | None
    spec_hash: str | None
    objectives: list[Metric]
    metrics: Annotated[list[Metric], Field(description="All metrics with a goal: what a front may be asked for.")]
    constraints: list[str]
    log_scale: Annotated[list[str], Field(description="Metrics that belong on a logarithmic axis.")]
    parents: list[Parent]
    failures: list[Failures]
    run_url: Annotated[str | None, Field(description="Its run in MLflow, where that is a server.")]


class Failure(BaseModel):
    """Why a trial ended without a result."""

    cause: str
    error: str
    traceback: str


class Books(BaseModel):
    """Where a trial's time went: wall seconds, CPU seconds and operations, by kind."""

    seconds: dict[str, float]
    cpu_seconds: dict[str, float]
    flops: dict[str, float]


class TrialLine(BaseModel):
    """A trial."""

    trial: int
    state: str
    progress: Value
    params: dict[str, Any]
    metrics: dict[str, Value]
    attempts: int
    repeated_steps: int
    repeated_seconds: float
    ledger: Books | None
    host: str | None
    start_ms: int
    end_ms: int | None
    failure: Failure | None
    charts: list[str]
    run_id: str
    run_url: str | None


class TrialLines(BaseModel):
    """Some trials of a study."""

    total: Annotated[int, Field(description="Of that state.")]
    offset: int
    trials: list[TrialLine]


class CandidateLine(BaseModel):
    """A pruned model that a trial offered on its way."""

    label: str
    candidate: int
    metrics: dict[str, Value]
    model_id: str | None
    model_url: str


class TrialPage(TrialLine):
    """A trial with its candidates."""

    candidates: list[CandidateLine]
    model_url: Annotated[str | None, Field(description="Its own model, where it has finished.")]


class FrontRow(BaseModel):
    """A model on the front."""

    label: str
    study: str
    trial: int
    candidate: int | None
    params: dict[str, Any]
    values: dict[str, Value]
    run_id: str
    run_url: str | None
    model_url: str


class Point(BaseModel):
    """A model that another beats."""

    label: str
    params: dict[str, Any]
    values: dict[str, Value]


class FrontPage(BaseModel):
    """A Pareto front, as `study pareto --json` has it; beside it some of the models that it beats."""

    study: str
    objectives: list[dict[str, str]]
    front: list[FrontRow]
    knee: str | None
    hypervolume: Value | None
    reference: dict[str, Value]
    num_dominated: int
    left_out: dict[str, int]
    log_scale: list[str]
    dominated: list[Point]


class Log(BaseModel):
    """A piece of a log."""

    text: str
    next: Annotated[int, Field(description="What to ask for as `after`, to read on.")]


class Space(BaseModel):
    """A space that may be launched."""

    space: str
    about: str
    experiment: str
    objectives: dict[str, str]
    constraints: list[str]
    parameters: dict[str, str]
    num_trials: int
    num_cpus: float
    num_gpus: float


class Spaces(BaseModel):
    """The registered spaces."""

    spaces: list[Space]
