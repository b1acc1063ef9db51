"""The contract of every experiment: a config, `step()`, a state to save and load, and progress.

An experiment is a plain object. It knows nothing of trials, studies, Ray, Optuna or MLflow; the adapter in
`trainables/ray_trainable.py` turns any experiment into a Ray trainable.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from trainables.charts import Chart

Goal = Literal["min", "max"]


class DivergedError(ArithmeticError):
    """A number stopped being finite: this trial is over, the study goes on."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One number that `Experiment.step()` reports.

    Attributes:
        name: the key in the reported dict.
        goal: which way is better; None for a number that only informs and cannot be an objective.
        unit: what one counts, for people: "bits", "samples", "1" for a pure ratio.
        meaning: one sentence.
    """

    name: str
    goal: Goal | None
    unit: str
    meaning: str


class Experiment(abc.ABC):
    """Base of all experiments. Subclasses are final: wrap them, do not override.

    Laws, held by `tests/contract/test_experiments.py` for every registered experiment:
      - the same config gives the same numbers; save + load + go on gives what no interruption gives, exactly on CPU;
      - `step()` returns exactly the names of `METRICS`;
      - `progress` never falls, and ends at exactly 1.0;
      - importing an experiment loads none of ray, optuna, mlflow.
    """

    Config: ClassVar[Any]
    """A frozen, keyword-only, slotted dataclass of JSON values that validates itself and has `tiny()`."""

    METRICS: ClassVar[tuple[Metric, ...]]
    """Everything `step()` returns."""

    @abc.abstractmethod
    def __init__(self, config: Any, *, device: torch.device) -> None: ...

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
    def rebuild(cls, config: Any, tensors: Mapping[str, Tensor]) -> Any:
        """Make the trained networks again from `model_tensors()`."""

    def charts(self) -> list[Chart]:
        """Pictures worth a look once the trial is finished; they are kept beside its model and numbers."""
        return []


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
