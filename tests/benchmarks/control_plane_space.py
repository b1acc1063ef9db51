"""Trials that do nothing, for `control_plane.py`: five reports of two numbers, a state of one number.

In a module of its own, so that workers import it by name.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from search_spaces.space import StudySpace
from trainables.experiment import Experiment, Metric

NUM_STEPS = 5


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class NoOpConfig:
    x: float = 0.5
    """What both objectives depend on, 0..1."""

    @classmethod
    def tiny(cls) -> Self:
        return cls()


class NoOp(Experiment):
    """Reports, and computes nothing."""

    Config = NoOpConfig
    METRICS = (
        Metric(name="above", goal="min", unit="1", meaning="x."),
        Metric(name="below", goal="min", unit="1", meaning="1 - x."),
    )

    def __init__(self, config: NoOpConfig, *, device: torch.device) -> None:
        self.config, self.count = config, 0

    def step(self) -> dict[str, float]:
        self.count += 1
        return measure(self.config.x)

    @property
    def progress(self) -> float:
        return self.count / NUM_STEPS

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"]

    def model_tensors(self) -> dict[str, Tensor]:
        return {"x": torch.tensor([self.config.x])}

    @classmethod
    def rebuild(cls, config: NoOpConfig, tensors: Mapping[str, Tensor], files: Mapping[str, bytes]) -> Tensor:
        return tensors["x"]


def measure(x: float) -> dict[str, float]:
    return {"above": x, "below": 1 - x}


def suggest(trial: Any) -> dict[str, Any]:
    return {"x": trial.suggest_float("x", 0, 1)}


def no_op() -> StudySpace:
    """A study of trials that do nothing."""
    return StudySpace(experiment="control_plane_space:NoOp", suggest=suggest, objectives=("above", "below"))
