"""Pruned copies of networks, each trained on one task to see what comes back: many sparsities and seeds batched.

Copies of about one size on one task are one population, in which the smaller ones are padded with units that are zero and
stay zero. One population trains at a time, and a copy is cut when its turn comes: memory is that of one. What a copy learns
does not depend on its company, bit for bit on the CPU: the size of its population follows from its own alone.

Axes: P copies of one population, B samples, H hidden units.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from trainables.clock import evaluating
from trainables.cmsp.networks import NUM_CLASSES, Shape, join, pad, split
from trainables.cmsp.nonlocality_config import NonlocalityConfig
from trainables.cmsp.population import TORCH_ADAM_EPS, Population
from trainables.cmsp.task import Batches, Code
from trainables.cmsp.update_loop import UpdateLoop
from trainables.experiment import check_finite
from trainables.pruning.surgery import remove
from trainables.randomness import stream_keys

_SIZES = 8  # populations have widths in eighths of the unpruned one, or in cache lines where these are larger
_MAX_NUMBERS = 2**32  # that a population may take in memory: 16 GB

Name = tuple[int | str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """One network to be pruned, and the task that it is to be trained on.

    Attributes:
        name: the network's seed, and words: tells streams of samples apart, and results.
        code: the task.
        network: unpruned, as `networks.split` names its tensors, without the axis P.
        keep: keep_H of each hidden layer.
    """

    name: Name
    code: Code
    network: Mapping[str, Tensor]
    keep: Sequence[Tensor]

    def num_parameters(self, config: NonlocalityConfig) -> int:
        """Of the copy itself, once it is cut."""
        kept = [int(keep_H.sum()) for keep_H in self.keep]
        return sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise([config.task.num_inputs, *kept, NUM_CLASSES]))

    def width(self, config: NonlocalityConfig) -> int:
        """Of the population that it belongs to: its own widest layer, rounded up."""
        return _rounded_width(config, [int(keep_H.sum()) for keep_H in self.keep])


class Recovery:
    """Trains every copy on its task for a number of updates, or until it makes no mistake.

    Args:
        remember: names of the copies whose networks are asked for afterwards.

    Attributes:
        accuracies: of every copy, before the first update and after every `updates_per_evaluation` of them, on fresh samples.
        networks: of the remembered copies, as they were when they were last measured; on the CPU.

    Source: arXiv:2505.15811, Fig 3, bottom. Differs: accuracy is measured on fresh samples, where the authors take that of the
    last training batch; a copy that makes no mistake on them counts as recovered, and leaves.
    """

    def __init__(
        self, config: NonlocalityConfig, copies: Sequence[Copy], *, remember: Sequence[Name], device: torch.device
    ) -> None:
        self._config = config
        self._remember = set(remember)
        self._device = device
        self._num_copies = len(copies)
        self.accuracies: dict[Name, list[float]] = {copy.name: [] for copy in copies}
        self.networks: dict[Name, dict[str, Tensor]] = {}
        alike: dict[tuple[int, Code], list[Copy]] = {}
        for copy in copies:
            alike.setdefault((copy.width(config), copy.code), []).append(copy)
        self._queue = [part for group in alike.values() for part in _parts(config, group)]
        self._turn = 0  # place in the queue of the copies that train; its length when nothing is left to do
        self._group: _Group | None = None  # of this turn, once it has begun

    @property
    def progress(self) -> float:
        """Share of the copies that are done, those that train counted by their updates; 1.0 when nothing is left to do."""
        if self._turn == len(self._queue):
            return 1.0
        waiting = sum(map(len, self._queue[self._turn + 1 :]))
        left = 1.0 if self._group is None else 1 - self._group.update / max(1, self._config.recovery_updates)
        return 1 - (waiting + left * len(self._queue[self._turn])) / self._num_copies

    @property
    def flops(self) -> float:
        """Floating-point operations of training so far: six a parameter and sample of every copy."""
        every, most = self._config.updates_per_evaluation, self._config.recovery_updates
        return sum(
            6.0 * copy.num_parameters(self._config) * self._config.recovery_samples * min(most, every * (num_measured - 1))
            for part in self._queue
            for copy in part
            if (num_measured := len(self.accuracies[copy.name]))
        )

    def advance(self, num_updates: int) -> None:
        """Make at least `num_updates`, up to the next measurement; of several populations where they are done sooner."""
        made = 0
        while made < num_updates and self._turn < len(self._queue):
            if self._group is None:
                self._group = _Group(self._config, self._queue[self._turn], self._device)
                self._measure(self._group)
            start = self._group.update
            stop = min(start + self._config.updates_per_evaluation, self._config.recovery_updates)
            if self._group.copies and start < stop:
                self._group.train_to(stop)
                self._measure(self._group)
                made += stop - start
            if not self._group.copies or stop == self._config.recovery_updates:
                self._turn += 1
                self._group = None

    def _measure(self, group: "_Group") -> None:
        """Measure all, remember networks, and let those go that make no mistake."""
        with evaluating():
            accuracies = group.measure()
        check_finite({str(copy.name): a for copy, a in zip(group.copies, accuracies, strict=True)}, where="a pruned copy")
        for place, (copy, accuracy) in enumerate(zip(group.copies, accuracies, strict=True)):
            self.accuracies[copy.name].append(accuracy)
            if copy.name in self._remember:
                self.networks[copy.name] = group.network(place)
        group.keep([place for place, accuracy in enumerate(accuracies) if accuracy < 1.0])

    def state_dict(self) -> dict[str, Any]:
        """Results so far, and the population that trains; what waits is cut again from the copies."""
        return {
            "accuracies": {name: list(found) for name, found in self.accuracies.items()},
            "networks": dict(self.networks),
            "turn": self._turn,
            "group": None if self._group is None else self._group.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of a recovery of the same copies."""
        self.accuracies = {name: list(found) for name, found in state["accuracies"].items()}
        self.networks = dict(state["networks"])
        self._turn = state["turn"]
        self._group = None
        if state["group"] is not None:
            self._group = _Group(self._config, self._queue[self._turn], self._device)
            self._group.load_state_dict(state["group"])


def measure_copy(
    config: NonlocalityConfig, name: Name, code: Code, network: Mapping[str, Tensor], update: int, device: torch.device
) -> float:
    """Measure a copy's accuracy as it was measured in its recovery, after so many updates: on the same samples.

    Args:
        network: the copy as it was then, as `Recovery.networks` has it.
    """
    widths = [network[f"layer{layer}.bias"].numel() for layer in range(config.depth - 1)]
    shape = _shape(config, _rounded_width(config, widths))
    population = Population(shape, join(shape, [network]).to(device), [config.learning_rate])
    key_P = stream_keys([("recovered", *name)], device)
    (accuracy,) = population.accuracies(*Batches(config.task, {code: config.score_samples}, key_P).draw(update)).tolist()
    return float(accuracy)


def _rounded_width(config: NonlocalityConfig, widths: Sequence[int]) -> int:
    """Of the population of networks with layers of these widths."""
    quantum = pad(-(-config.width // _SIZES))
    return max(1, -(-max(widths) // quantum)) * quantum


def _parts(config: NonlocalityConfig, copies: Sequence[Copy]) -> list[Sequence[Copy]]:
    """Divide copies of one width into populations that fit into memory."""
    width, layers = copies[0].width(config), config.depth - 1
    parameters = _shape(config, width).num_padded
    activations = 2 * layers * width * (config.recovery_samples + config.score_samples)
    most = max(1, _MAX_NUMBERS // (7 * parameters + activations))  # with gradients, in halves, Adam's moments, scratch
    return [copies[start : start + most] for start in range(0, len(copies), most)]


def _shape(config: NonlocalityConfig, width: int) -> Shape:
    return Shape.of_depth(num_inputs=config.task.num_inputs, depth=config.depth, width=width)


class _Group:
    """Copies that train as one population on one task."""

    def __init__(self, config: NonlocalityConfig, copies: Sequence[Copy], device: torch.device) -> None:
        self.copies = list(copies)
        self.update = 0
        self._config = config
        shape = _shape(config, copies[0].width(config))
        cut = [remove(copy.network, config.shape.neurons, copy.keep) for copy in copies]
        rates = [config.learning_rate] * len(copies)
        self._population = Population(shape, join(shape, cut).to(device), rates, adam_eps=TORCH_ADAM_EPS)
        self._bind()

    def _bind(self) -> None:
        """Make the streams and the loop of the copies that still train."""
        config, code, device = self._config, self.copies[0].code, self._population.parameter_PF.device
        keys = {
            purpose: stream_keys(((purpose, *copy.name) for copy in self.copies), device) for purpose in ("recovery", "recovered")
        }
        training = Batches(config.task, {code: config.recovery_samples}, keys["recovery"])
        self._evaluation = Batches(config.task, {code: config.score_samples}, keys["recovered"])
        population = self._population  # the loop must not hold the group, or both outlive it until Python looks for cycles
        self._loop = UpdateLoop(lambda index: population.update(*training.draw(index)), device=device)

    def train_to(self, stop: int) -> None:
        self._loop.run(self.update, stop)
        self.update = stop

    def measure(self) -> list[float]:
        accuracies: list[float] = self._population.accuracies(*self._evaluation.draw(self.update)).tolist()
        return accuracies

    def network(self, place: int) -> dict[str, Tensor]:
        """A copy as it is now, without the units that only pad it."""
        tensors = split(self._population.shape, self._population.parameter_PF[place : place + 1])
        kept = [int(keep_H.sum()) for keep_H in self.copies[place].keep]
        counts = [self._config.task.num_inputs, *kept, NUM_CLASSES]
        network = {}
        for layer, (fan_in, fan_out) in enumerate(pairwise(counts)):
            network[f"layer{layer}.weight"] = tensors[f"layer{layer}.weight"][0, :fan_in, :fan_out].clone().cpu()
            network[f"layer{layer}.bias"] = tensors[f"layer{layer}.bias"][0, :fan_out].clone().cpu()
        return network

    def keep(self, places: list[int]) -> None:
        """Let the others go."""
        if len(places) == len(self.copies):
            return
        self.copies = [self.copies[place] for place in places]
        if places:
            self._population.keep(torch.tensor(places, device=self._population.parameter_PF.device))
            self._bind()

    def state_dict(self) -> dict[str, Any]:
        names = [copy.name for copy in self.copies]
        return {"names": names, "update": self.update, "population": self._population.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.update = state["update"]
        self.copies = [copy for copy in self.copies if copy.name in state["names"]]
        self._population.load_state_dict(state["population"])
        self._bind()
