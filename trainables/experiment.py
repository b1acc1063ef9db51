"""The contract of every experiment: a config, `step()`, a state to save and load, and progress.

An experiment is a plain object. It knows nothing of trials, studies, Ray, Optuna or MLflow; the adapter in
`trainables/ray_trainable.py` turns any experiment into a Ray trainable.
"""

import abc
import dataclasses
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from trainables.charts import Chart
from trainables.packing import Pack
from trainables.shared import Recipe, Shared, make_alone

Goal = Literal["min", "max"]


class DivergedError(ArithmeticError):
    """A number stopped being finite: this trial is over, the study goes on."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One number that `Experiment.step()` reports.

    Attributes:
        name: the key in the reported dict. One that ends in `/*` stands for one or more keys, such as `loss_nats/*` for
            `loss_nats/python` and `loss_nats/prose`, where the config tells how many there are.
        goal: which way is better; None for a number that only informs and cannot be an objective.
        unit: what one counts, for people: "bits", "samples", "1" for a pure ratio.
        meaning: one sentence.
    """

    name: str
    goal: Goal | None
    unit: str
    meaning: str


class MissingEvidenceError(ValueError):
    """What an evaluation needs is not on this machine: nothing is said against the model."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Removal:
    """Which units a model has lost.

    Attributes:
        score: what they were ranked by: a name of `trainables.pruning.scores.SCORES`, or in words.
        kept: keep_H of every layer that could lose some, bool, by names that tell the layer, and the network of several.
    """

    score: str
    kept: Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """What an experiment tells of a model that it has made; it goes into the model's passport.

    Attributes:
        evidence: what `evaluate` needs and cannot make from the config on another machine, such as held-out text; it is kept
            with every model, so it should be small.
        read: what was read, by name: tensors, of which the passport keeps a digest, or digests.
        removal: None if nothing was removed.
    """

    evidence: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    read: Mapping[str, Tensor | str] = dataclasses.field(default_factory=dict)
    removal: Removal | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A pruned model that a trial offers to the front, beside its last one.

    Attributes:
        number: from 0, in the order found; the same in every run of the same config.
        metrics: every name of `METRICS`.
        tensors: what `rebuild` needs beside the config.
        account: as `Experiment.account`, of this model.
    """

    number: int
    metrics: dict[str, float]
    tensors: dict[str, Tensor]
    account: Account = dataclasses.field(default_factory=Account)


class Experiment(abc.ABC):
    """Base of all experiments. Subclasses are final: wrap them, do not override.

    Laws, held by `tests/contract/test_experiments.py` for every registered experiment:
      - the same config gives the same numbers; save + load + go on gives what no interruption gives, exactly on CPU;
      - `step()` returns exactly the names of `METRICS`, the same in every step, and a candidate has exactly these;
      - candidates are numbered from 0, one by one, over all steps;
      - `progress` never falls, and ends at exactly 1.0;
      - what `evaluate` says of a saved model, in another process, is what was reported of it;
      - importing an experiment loads none of ray, optuna, mlflow.
    """

    Config: ClassVar[Any]
    """A frozen, keyword-only, slotted dataclass of JSON values that validates itself and has `tiny()`."""

    parallel: ClassVar[bool] = False
    """Whether several processes can train one: each makes it, loads its states and makes its steps, all with the same config
    and at the same time, and they find each other by `torch.distributed`. Everything else is asked of one process alone."""

    libraries: ClassVar[tuple[str, ...]] = ()
    """Packages beside torch that its numbers depend on, as pip names them: a model's passport tells their versions."""

    METRICS: ClassVar[tuple[Metric, ...]]
    """Everything `step()` returns."""

    @abc.abstractmethod
    def __init__(self, config: Any, *, device: torch.device) -> None:
        """Begin anew. Where `needs` asks for something, one more keyword-only argument, `given`, brings it."""

    @classmethod
    def needs(cls, config: Any) -> Mapping[str, Recipe]:
        """What is made once for all trials that need the same: a teacher, a base model. `given` has its tensors by these names.

        It is also asked before a study starts, of many configs: here is the place to refuse missing or damaged data.

        Raises:
            ValueError: if an input of the config is not what it must be.
        """
        return {}

    @abc.abstractmethod
    def step(self) -> dict[str, float]:
        """Advance by one report's worth of work and return every metric.

        Raises:
            DivergedError: if a number is no longer finite.
        """

    @property
    @abc.abstractmethod
    def progress(self) -> float:
        """Share of the work done, 0..1; exactly 1.0 when nothing is left to do.

        Nothing is left when all updates are made, or when the experiment's own stopping rule is met.
        """

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that going on needs: tensors, numbers, strings, lists and dicts of them."""

    @abc.abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state that `state_dict()` of an experiment with the same config returned."""

    @abc.abstractmethod
    def model_tensors(self) -> dict[str, Tensor]:
        """The trained networks as named tensors: what `rebuild` needs beside the config."""

    @classmethod
    @abc.abstractmethod
    def rebuild(cls, config: Any, tensors: Mapping[str, Tensor], files: Mapping[str, bytes]) -> Any:
        """Make the trained networks again from `model_tensors()` and `model_files()`; nothing of them is executed."""

    def model_files(self) -> dict[str, bytes]:
        """Further files, by name, for the folder of the trained networks: what `rebuild` or other tools need beside tensors."""
        return {}

    def account(self) -> Account:
        """What the passport of the trained networks tells beside what is known of every model."""
        return Account()

    @classmethod
    def probe(cls, config: Any, model: Any) -> dict[str, Tensor]:
        """Outputs of a rebuilt model, as it lies, on inputs that are always the same: they are kept, to compare rebuilds with.

        Without them a rebuild is compared by its number of parameters alone. Inputs come from `trainables.randomness.draw_bytes`,
        for another torch may draw others with its own generators.

        Returns:
            tensors of at most 1 MB together, by any names.
        """
        return {}

    @classmethod
    def evaluate(cls, config: Any, model: Any, evidence: Mapping[str, Tensor], *, device: torch.device) -> dict[str, float]:
        """Measure a rebuilt model, or a candidate's, once more: all of `METRICS` that follow from the model alone.

        Not what it has cost, nor what was true of it before; what is left out, nobody can check.

        Args:
            model: what `rebuild` returned, on the CPU; it may be moved.
            evidence: of the model's account, as it was saved.

        Raises:
            MissingEvidenceError: if what it needs is not on this machine.
        """
        return {}

    def flops(self) -> float | None:
        """Floating-point operations of the work so far, two a multiplication with addition; None if nobody counts them.

        Work is training, or what an experiment does in its place; measuring is not counted. It never falls, and goes on from
        a loaded state.
        """
        return None

    def candidates(self) -> list[Candidate]:
        """Models on the way, each worth a place of its own on the front: those that the last `step()` found."""
        return []

    def charts(self) -> list[Chart]:
        """Pictures worth a look once the trial is finished; they are kept beside its model and numbers."""
        return []

    @classmethod
    def pack_key(cls, config: Any) -> Hashable | None:
        """What trials must have in common to make their steps together, as one program (`trainables.packing`); None: never.

        It is also asked before a study starts: no data may be read for it.
        """
        return None

    @classmethod
    def pack_size(cls, config: Any, *, num_cpus: float, num_gpus: float) -> int:
        """How many trials are worth packing in one process with these resources; 1 where it wins no time."""
        return 1

    @classmethod
    def pack(cls, members: Sequence[Self]) -> Pack[Self]:
        """Let experiments make their steps together; only asked of those that have a `pack_key`."""
        raise NotImplementedError(f"{cls.__name__} has a pack_key, but cannot be packed; give it `pack`, or the key None")


def build_experiment(
    experiment_class: type[Experiment], config: Any, *, device: torch.device, shared: Shared | None = None
) -> Experiment:
    """Make an experiment with all that it needs.

    Args:
        shared: where that is kept, or made if it is not there; None to make it for this experiment alone.
    """
    given = gather_needs(experiment_class, config, device=device, shared=shared)
    return make_experiment(experiment_class, config, device=device, given=given)


def gather_needs(
    experiment_class: type[Experiment], config: Any, *, device: torch.device, shared: Shared | None
) -> dict[str, dict[str, Tensor]]:
    """Get all that an experiment needs, the first half of `build_experiment`."""
    get = make_alone if shared is None else shared.get
    return {name: get(recipe, device) for name, recipe in experiment_class.needs(config).items()}


def make_experiment(
    experiment_class: type[Experiment], config: Any, *, device: torch.device, given: Mapping[str, Mapping[str, Tensor]]
) -> Experiment:
    """Make an experiment of what was gathered, the second half of `build_experiment`."""
    if not given:
        return experiment_class(config, device=device)
    with_given: Any = experiment_class  # not every experiment takes what only some need
    made: Experiment = with_given(config, device=device, given=given)
    return made


def metric_named(metrics: Iterable[Metric], name: str) -> Metric | None:
    """The metric that declares a reported name, be it one of several; None if none does."""
    first, slash, _ = name.partition("/")
    declaring = {name, f"{first}/*"} if slash else {name}
    return next((metric for metric in metrics if metric.name in declaring), None)


def check_declared(names: Iterable[str], metrics: Sequence[Metric], *, where: str) -> None:
    """Refuse a report that has not exactly the names of `METRICS`.

    Raises:
        ValueError: naming those that are missing, and those that nobody declared.
    """
    found = {name: metric_named(metrics, name) for name in names}
    undeclared = sorted(name for name, metric in found.items() if metric is None)
    missing = sorted({metric.name for metric in metrics} - {metric.name for metric in found.values() if metric is not None})
    if undeclared or missing:
        raise ValueError(
            f"{where} must have exactly METRICS, but missing are {missing} and undeclared {undeclared}; declare a Metric for each"
        )


def check_finite(metrics: Mapping[str, float], *, where: str) -> None:
    """Refuse a report that holds NaN or an infinity.

    Raises:
        DivergedError: naming every such metric.
    """
    bad = [f"{name} = {value}" for name, value in metrics.items() if not abs(value) < float("inf")]
    if bad:
        raise DivergedError(
            f"every metric must be finite, but {where} reported {', '.join(bad)}; "
            "lower the learning rate, or narrow the range it is searched in"
        )
