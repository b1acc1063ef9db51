"""An experiment that trains in several processes, and misbehaves when told to: least squares by gradient descent."""

import dataclasses
import os
import signal
import time
from pathlib import Path

import torch
from torch import distributed

from trainables.experiment import DivergedError, Experiment, Metric
from trainables.storage import StorageError


class Regression(Experiment):
    """Each rank takes its rows of the data; the gradients are averaged."""

    METRICS = (Metric(name="loss", goal="min", unit="1", meaning="Mean squared error."),)
    parallel = True

    @dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        num_steps: int = 4
        behaviour: str = "well"
        """What to do in step 2, unless "at first": see `_misbehave`."""
        ranks: tuple[int, ...] = (1,)
        """Who does it."""
        marker: str = ""
        """File that tells that it is about to be done."""

    def __init__(self, config, *, device):
        self.config, self.steps = config, 0
        self.rank, self.size = 0, 1
        if distributed.is_initialized():
            self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        generator = torch.Generator().manual_seed(0)
        x_BI = torch.randn(64, 5, generator=generator)
        y_B = x_BI @ torch.arange(5.0) + torch.randn(64, generator=generator)
        self.x_BI, self.y_B = x_BI[self.rank :: self.size].to(device), y_B[self.rank :: self.size].to(device)
        self.weight_I = torch.zeros(5, device=device)
        if config.behaviour == "bug at first" and self.rank in config.ranks:
            raise KeyError(f"a bug of rank {self.rank}")

    def _mean(self, tensor):
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor / self.size

    def step(self):
        print("a line of rank", self.rank)
        self.steps += 1
        if self.steps == 2 and self.rank in self.config.ranks:
            self._misbehave(self.config.behaviour)
        error_B = self.x_BI @ self.weight_I - self.y_B
        loss = self._mean((error_B**2).mean())
        self.weight_I -= 0.1 * self._mean(2 * error_B @ self.x_BI / len(error_B))
        return {"loss": float(loss)}

    def _misbehave(self, behaviour):
        if self.config.marker:
            Path(self.config.marker).touch()
        bug = KeyError(f"a bug of rank {self.rank}")
        errors = {"bug": bug, "nan": DivergedError("not finite"), "storage": StorageError("disk full")}
        if behaviour in errors:
            raise errors[behaviour]
        if behaviour == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if behaviour == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if behaviour == "sleep":
            time.sleep(1000)

    @property
    def progress(self):
        return self.steps / self.config.num_steps

    def state_dict(self):
        return {"steps": self.steps, "weight": self.weight_I.clone()}

    def load_state_dict(self, state):
        self.steps = state["steps"]
        self.weight_I.copy_(state["weight"])

    def model_tensors(self):
        return {"weight": self.weight_I.cpu()}

    @classmethod
    def rebuild(cls, config, tensors, files):
        return tensors["weight"]


class Lonely(Regression):
    """Does not say that it can be trained by several."""

    parallel = False
