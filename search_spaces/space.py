"""A search space: which experiment, which parameters, which objectives, under which constraints."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    import optuna

_OF_RAY = {"CPU", "GPU", "cpu", "gpu", "memory", "object_store_memory"}
_CONSTRAINT = re.compile(r"\s*([\w./-]+)\s*(>=|<=)\s*(\S+)\s*")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StudySpace:
    """What a study searches. Immutable; a variant is `dataclasses.replace(space, ...)`.

    Attributes:
        experiment: a name of `trainables.registry.EXPERIMENTS`, or `module:Class`.
        suggest: define-by-run: draws parameters from an Optuna trial and returns the keyword arguments of the
            experiment's Config.
        objectives: names of metrics that have a goal; each is minimised or maximised as its metric says.
        constraints: `"metric >= number"` or `"metric <= number"`; a model that breaks one is infeasible and on no front.
        log_scale: objectives that pictures show on a logarithmic axis.
        color_by: the parameter or metric that colours trials in pictures.
        representative: the metric by which the best of a trial's candidates is chosen to stand for the trial before the
            sampler and in the live view; None for the first objective. It must have a goal.
        at_rungs: what early stopping goes by in the place of a metric that says nothing before a trial's end: another that has
            a goal, `{"samples_to_convergence": "composite_loss_bits"}`.
        first_trials: parameters of the trials that are run before the sampler draws any: settings known to matter.
        num_trials: how many trials a study makes unless told otherwise.
        num_cpus, num_gpus: what one trial needs; fractions share a device.
        gpu_memory_gib: what it needs of each GPU's memory, in GiB. GPUs with less are left alone; a trial of one GPU
            (`num_gpus=1`) takes no larger share of it than that, so that several run on a large one. 0 for any GPU.
        resources: what else it needs, by Ray's names of custom resources: `{"fast_disk": 1}`.
    """

    experiment: str
    suggest: Callable[["optuna.Trial"], Mapping[str, Any]]
    objectives: tuple[str, ...]
    constraints: tuple[str, ...] = ()
    log_scale: tuple[str, ...] = ()
    color_by: str | None = None
    representative: str | None = None
    at_rungs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    first_trials: tuple[Mapping[str, Any], ...] = ()
    num_trials: int = 20
    num_cpus: float = 1
    num_gpus: float = 0
    gpu_memory_gib: float = 0
    resources: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.objectives:
            raise ValueError("a space must have at least one objective, but got none; name a metric of its experiment")
        for text in self.constraints:
            Constraint.parse(text)
        if self.gpu_memory_gib < 0 or (self.gpu_memory_gib > 0 and self.num_gpus <= 0):
            raise ValueError(
                f"gpu_memory_gib must be at least 0, and needs num_gpus above 0, but got {self.gpu_memory_gib} and "
                f"{self.num_gpus}; use num_gpus=1"
            )
        for name, amount in self.resources.items():
            if name in _OF_RAY or not 0 < amount < math.inf:
                raise ValueError(
                    f"resources must be positive amounts of Ray's custom resources, but got {name}: {amount}; for CPUs and GPUs "
                    "use num_cpus, num_gpus and gpu_memory_gib"
                )


@dataclasses.dataclass(frozen=True, slots=True)
class Constraint:
    """A bound on a metric: on a trial's last value, or on a candidate's."""

    metric: str
    relation: Literal[">=", "<="]
    bound: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `"metric >= number"`.

        Raises:
            ValueError: if the text has another form, or the number is not finite.
        """
        match = _CONSTRAINT.fullmatch(text)
        try:
            if match is None or not math.isfinite(float(match[3])):
                raise ValueError
            return cls(match[1], ">=" if match[2] == ">=" else "<=", float(match[3]))
        except ValueError:
            raise ValueError(
                f"a constraint must read 'metric >= number' or 'metric <= number', the number finite, but got {text!r}; "
                "for example 'fraction_converged >= 0.5'"
            ) from None

    def violation(self, metrics: Mapping[str, float]) -> float:
        """How far the bound is missed: at most 0 where it holds, as Optuna counts constraints."""
        value = metrics[self.metric]
        return self.bound - value if self.relation == ">=" else value - self.bound

    def __str__(self) -> str:
        return f"{self.metric} {self.relation} {self.bound:g}"


def choose_representative(
    candidates: Mapping[int, Mapping[str, float]], constraints: Sequence[Constraint], metric: str, goal: str
) -> int:
    """Choose the candidate that stands for its trial: of those that miss the constraints least, the best by one metric.

    Those that meet every constraint miss them by nothing.

    Args:
        candidates: metrics by number, at least one.
        goal: "min" or "max".

    Returns:
        its number; of equals, the first.
    """
    sign = 1.0 if goal == "min" else -1.0

    def cost(number: int) -> tuple[float, float, int]:
        metrics = candidates[number]
        missed = sum(max(0.0, constraint.violation(metrics)) for constraint in constraints)
        return missed, sign * metrics[metric], number

    return min(candidates, key=cost)
