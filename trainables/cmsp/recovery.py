"""Pruned copies of networks, each trained on one task to see what comes back: many sparsities, seeds and tasks batched.

Copies of about one size are one population, in which the smaller ones are padded with units that are zero and stay zero.
What a copy learns does not depend on its company, bit for bit on the CPU: its population's size follows from its own alone.

Axes: P copies of one population, B samples.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from trainables.cmsp.networks import Shape, join, pad, split
from trainables.cmsp.nonlocality_config import NonlocalityConfig
from trainables.cmsp.population import Population
from trainables.cmsp.task import Batches, Code
from trainables.cmsp.update_loop import UpdateLoop
from trainables.experiment import check_finite
from trainables.randomness import stream_key

ADAM_EPS = 1e-8  # torch's default, as in the paper's recovery
_SIZES_PER_LAYER = 8  # populations have widths in eighths of the unpruned one

Name = tuple[int | str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """One pruned network and the task that it is trained on.

    Attributes:
        name: of seeds and words: tells streams of samples apart, and results.
        code: the task.
        tensors: as `networks.split` names them, without the axis P.
    """

    name: Name
    code: Code
    tensors: Mapping[str, Tensor]

    def width(self, unpruned: int) -> int:
        """Of the population that it belongs to: its widest layer, rounded up to an eighth of an unpruned one."""
        quantum = pad(-(-unpruned // _SIZES_PER_LAYER))
        widest = max(len(self.tensors[f"layer{layer}.bias"]) for layer in range(len(self.tensors) // 2 - 1))
        return max(1, -(-widest // quantum)) * quantum


class Recovery:
    """Trains every copy on its task for a number of updates, or until it makes no mistake.

    Args:
        copies: all of networks of one shape.
        remember: names of the copies whose best network is asked for afterwards.

    Attributes:
        accuracies: of every copy, before the first update and after every `updates_per_evaluation` of them.
        networks: of every remembered copy, the best.

    Source: arXiv:2505.15811, Fig 3, bottom. Differs: accuracy is measured on fresh samples at intervals and the best counts,
    where the authors take that of the last training batch; a copy without a mistake on them is recovered and leaves.
    """

    def __init__(
        self, config: NonlocalityConfig, copies: Sequence[Copy], *, remember: Sequence[Name], device: torch.device
    ) -> None:
        self._config = config
        sizes = {copy.name: {name: tuple(tensor.shape) for name, tensor in copy.tensors.items()} for copy in copies}
        self._remembered = {name: sizes[name] for name in remember}
        self._device = device
        self.update = 0
        self.accuracies: dict[Name, list[float]] = {copy.name: [] for copy in copies}
        self.networks: dict[Name, dict[str, Tensor]] = {}
        alike: dict[tuple[int, Code], list[Copy]] = {}
        for copy in copies:
            alike.setdefault((copy.width(config.width), copy.code), []).append(copy)
        self._groups = [_Group.of(config, width, code, group, device) for (width, code), group in alike.items()]

    @property
    def finished(self) -> bool:
        measured = self.update > 0 or self._config.recovery_updates == 0
        return not self._groups or (measured and self.update == self._config.recovery_updates)

    def advance(self) -> None:
        """Train up to the next measurement; the first time, measure before as well."""
        if self.update == 0:
            self._measure()
        start = self.update
        self.update = min(start + self._config.updates_per_evaluation, self._config.recovery_updates)
        if self.update > start:
            for group in self._groups:
                group.loop.run(start, self.update)
            self._measure()

    def _measure(self) -> None:
        for group in self._groups:
            accuracies = group.measure(self.update)
            check_finite(dict(zip(map(str, group.names), accuracies, strict=True)), where="the recovery of a pruned copy")
            for place, (name, accuracy) in enumerate(zip(group.names, accuracies, strict=True)):
                if name in self._remembered and accuracy > max(self.accuracies[name], default=-1.0):
                    self.networks[name] = group.network(place, self._remembered[name])
                self.accuracies[name].append(accuracy)
            group.keep([place for place, accuracy in enumerate(accuracies) if accuracy < 1.0])
        self._groups = [group for group in self._groups if group.names]

    def state_dict(self) -> dict[str, Any]:
        groups = [
            {"width": group.width, "code": group.code, "names": list(group.names), "population": group.population.state_dict()}
            for group in self._groups
        ]
        accuracies = {name: list(found) for name, found in self.accuracies.items()}
        return {
            "update": self.update,
            "accuracies": accuracies,
            "remembered": self._remembered,
            "networks": dict(self.networks),
            "groups": groups,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.update = state["update"]
        self.accuracies = {name: list(found) for name, found in state["accuracies"].items()}
        self._remembered = dict(state["remembered"])
        self.networks = dict(state["networks"])
        self._groups = []
        for saved in state["groups"]:
            parameter_PF = saved["population"]["parameters"]
            group = _Group(self._config, saved["width"], saved["code"], saved["names"], parameter_PF.to(self._device))
            group.population.load_state_dict(saved["population"])
            self._groups.append(group)


class _Group:
    """Copies that train as one population on one task."""

    def __init__(self, config: NonlocalityConfig, width: int, code: Code, names: list[Name], parameter_PF: Tensor) -> None:
        self.width, self.code, self.names = width, code, names
        self._config = config
        shape = self.shape_of(config, width)
        self.population = Population(shape, parameter_PF, [config.learning_rate] * len(names), adam_eps=ADAM_EPS)
        self._bind()

    @classmethod
    def of(cls, config: NonlocalityConfig, width: int, code: Code, copies: Sequence[Copy], device: torch.device) -> Self:
        parameter_PF = join(cls.shape_of(config, width), [copy.tensors for copy in copies])
        return cls(config, width, code, [copy.name for copy in copies], parameter_PF.to(device))

    @staticmethod
    def shape_of(config: NonlocalityConfig, width: int) -> Shape:
        return Shape.of_depth(num_inputs=config.task.num_inputs, depth=config.depth, width=width)

    def _bind(self) -> None:
        """Make the streams and the loop of the copies that still train."""
        config, device = self._config, self.population.parameter_PF.device
        keys = {
            purpose: torch.tensor([stream_key(config.seed, purpose, *name) for name in self.names], device=device)
            for purpose in ("recovery", "recovered")
        }
        training = Batches(config.task, {self.code: config.recovery_samples}, keys["recovery"])
        self._evaluation = Batches(config.task, {self.code: config.score_samples}, keys["recovered"])
        self.loop = UpdateLoop(lambda index: self.population.update(*training.draw(index)), device=device)

    def measure(self, update: int) -> list[float]:
        return self.population.accuracies(*self._evaluation.draw(update)).tolist()

    def network(self, place: int, sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """A copy as it is now, without the units that only pad it."""
        tensors = split(self.population.shape, self.population.parameter_PF[place : place + 1])
        return {name: tensors[name][0][tuple(map(slice, size))].clone().cpu() for name, size in sizes.items()}

    def keep(self, places: list[int]) -> None:
        """Let the others go."""
        if len(places) == len(self.names):
            return
        self.names = [self.names[place] for place in places]
        if places:
            self.population.keep(torch.tensor(places, device=self.population.parameter_PF.device))
            self._bind()
