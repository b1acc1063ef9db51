"""Experiments of somebody's own, in a module of their own: models that a reader must trust by name."""

import dataclasses

import torch

from trainables.experiment import Experiment, Metric


class Plain(Experiment):
    """Says nothing of its model but what it must."""

    METRICS = (Metric(name="loss", goal="min", unit="1", meaning="A number."),)

    @dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        size: int = 3

    def __init__(self, config, *, device):
        self.config, self.steps = config, 0

    def step(self):
        self.steps += 1
        return {"loss": 0.5}

    @property
    def progress(self):
        return min(1.0, float(self.steps))

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]

    def model_tensors(self):
        return {"x": torch.arange(float(self.config.size))}

    @classmethod
    def rebuild(cls, config, tensors, files):
        return tensors


class Asked(Plain):
    """Answers a probe, and measures its model."""

    @classmethod
    def probe(cls, config, model):
        return {"twice": 2 * model["x"]}

    @classmethod
    def evaluate(cls, config, model, evidence, *, device):
        return {"loss": float(model["x"].mean()) / 2}


class Broken(Plain):
    """Forgot how to rebuild its model."""

    @classmethod
    def rebuild(cls, config, tensors, files):
        raise NotImplementedError("later")


class Talkative(Plain):
    """Gives too long an answer."""

    @classmethod
    def probe(cls, config, model):
        return {"all": torch.zeros(2**19)}
