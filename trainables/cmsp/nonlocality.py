"""Where does a skill live? Prune a broad network for one task and see what of another comes back (arXiv:2505.15811, Fig 3).

A trial trains `num_seeds` networks on two composite tasks, A and B, and their atoms; ranks the hidden neurons by A; prunes
copies at every sparsity of a grid, and trains each on A alone and on B alone. With a method, the group lasso on A follows,
and the same again. What the trial reports in the end is of the last curve.

Axes: P networks, one a seed; B samples; C codes.
"""

import math
import statistics
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from trainables.charts import Chart
from trainables.cmsp.networks import for_modules, initial_network, join, modules, split
from trainables.cmsp.nonlocality_charts import draw_curves, draw_losses, draw_scores
from trainables.cmsp.nonlocality_config import NonlocalityConfig
from trainables.cmsp.nonlocality_metrics import METRICS, SparsityCurve, mean_overlap, unpruned_metrics
from trainables.cmsp.population import ADAM_EPS, Population
from trainables.cmsp.recovery import ADAM_EPS as DEFAULT_EPS
from trainables.cmsp.recovery import Copy, Name, Recovery
from trainables.cmsp.scoring import score_neurons
from trainables.cmsp.task import Batches, Code
from trainables.cmsp.update_loop import UpdateLoop
from trainables.experiment import DivergedError, Experiment
from trainables.pruning.penalties import add_group_lasso_gradient, proximal_step
from trainables.pruning.selection import choose_kept
from trainables.pruning.surgery import remove
from trainables.randomness import generator, stream_key

TRAINING = ("pretraining", "lasso")
"""The stages that train the networks themselves; the others prune copies of them and let these recover."""


class Nonlocality(Experiment):
    """Trains, prunes and recovers; with the group lasso, does the latter two again.

    Source: arXiv:2505.15811, Figs 3, 8, 9 and 10. Differs: recovery stops where nothing is left to recover (recovery.py); the
    sparsity up to which A is kept ends at the first that loses it, where the paper takes the last that keeps it; the
    proximal step is another way to the same penalty; losses are measured at every report and not at every update.
    """

    Config: ClassVar[Any] = NonlocalityConfig
    METRICS = METRICS

    def __init__(self, config: NonlocalityConfig, *, device: torch.device) -> None:
        self.config = config
        self.device = device
        self._stages = ["pretraining", "before"] + (["lasso", "after"] if config.method != "none" else [])
        self._stage = 0
        self._update = 0  # of this stage, where it trains
        self._losses: list[list[float]] = []  # updates so far, then bits of A, B and the atoms
        self._accuracy = (0.5, 0.5)
        self._curves: dict[str, SparsityCurve] = {}
        self._scores: dict[str, list[list[list[float]]]] = {}  # stage: A's and B's, of every network's neurons
        self._pruned: list[dict[str, Tensor]] = []
        self._recovery: Recovery | None = None
        networks = [initial_network(config.shape, generator(seed, "weights")) for seed in self._seeds]
        self._train(join(config.shape, networks).to(device))
        codes = [config.target, config.other, *config.atoms]
        self._evaluation = Batches(config.task, dict.fromkeys(codes, config.score_samples), self._keys("evaluation"))

    @property
    def _seeds(self) -> range:
        return range(self.config.seed, self.config.seed + self.config.num_seeds)

    @property
    def _name(self) -> str:
        return self._stages[min(self._stage, len(self._stages) - 1)]

    def _keys(self, purpose: str) -> Tensor:
        return torch.tensor([stream_key(seed, purpose) for seed in self._seeds], device=self.device)

    def _train(self, parameter_PF: Tensor) -> None:
        """Begin a stage of training with these networks: fresh optimizers, the stage's own samples."""
        config, lasso = self.config, self._name == "lasso"
        rates = [config.learning_rate] * config.num_seeds
        eps = DEFAULT_EPS if lasso else ADAM_EPS
        self._population = Population(config.shape, parameter_PF, rates, adam_eps=eps)
        counts = {config.target: config.lasso_samples} if lasso else dict.fromkeys(config.mixture, config.pretraining_samples)
        samples = Batches(config.task, counts, self._keys(self._name))
        update = self._update_with_lasso if lasso else self._population.update
        self._loop = UpdateLoop(lambda index: update(*samples.draw(index)), device=self.device)

    def _update_with_lasso(self, x_PBI: Tensor, y_PB: Tensor) -> None:
        config, population = self.config, self._population
        neurons = config.shape.padded.neurons
        population.backward(x_PBI, y_PB)
        if config.method == "subgradient":
            add_group_lasso_gradient(population.tensors, population.gradients, neurons, config.lasso_strength)
        population.adam()
        if config.method == "proximal":
            proximal_step(population.tensors, neurons, config.learning_rate * config.lasso_strength)

    def step(self) -> dict[str, float]:
        if self._stage < len(self._stages):
            if self._name in TRAINING:
                self._step_training()
            else:
                self._step_recovery()
        return self._metrics()

    def _step_training(self) -> None:
        budget = self._budgets[self._name]
        start, self._update = self._update, min(self._update + self.config.updates_per_step, budget)
        self._loop.run(start, self._update)
        self._measure()
        if self._update == budget:
            self._next_stage()

    def _step_recovery(self) -> None:
        if self._recovery is None:
            self._recovery = self._prune()
        self._recovery.advance()
        self._update = self._recovery.update
        if self._recovery.finished:
            self._finish_recovery(self._recovery)
            self._next_stage()

    def _next_stage(self) -> None:
        self._stage += 1
        self._update = 0
        self._recovery = None
        if self._stage < len(self._stages) and self._name == "lasso":
            self._train(self._population.parameter_PF)

    @property
    def _budgets(self) -> dict[str, int]:
        """Updates of each stage."""
        config = self.config
        each = {"pretraining": config.pretraining_updates, "lasso": config.lasso_updates}
        return {stage: each.get(stage, max(1, config.recovery_updates)) for stage in self._stages}

    @property
    def progress(self) -> float:
        if self._stage == len(self._stages):
            return 1.0
        budgets = list(self._budgets.values())
        return (sum(budgets[: self._stage]) + self._update) / sum(budgets)

    @torch.no_grad()
    def _measure(self) -> None:
        """Measure every code's loss and both tasks' accuracy on fresh samples."""
        config = self.config
        batch = self._evaluation.draw(self._updates_spent)
        loss_PC = (self._population.losses(*batch) / math.log(2)).view(config.num_seeds, -1, config.score_samples).mean(-1)
        bits_C = loss_PC.mean(0).tolist()
        if not all(map(math.isfinite, bits_C)):
            raise DivergedError(f"losses must be finite, but are {bits_C} bits; lower learning_rate = {config.learning_rate}")
        self._losses.append([self._updates_spent, *bits_C])
        right_PB = (self._population.margins(batch[0]) > 0) == (batch[1] > 0)
        accuracy_C = right_PB.view(config.num_seeds, -1, config.score_samples).float().mean((0, 2)).tolist()
        self._accuracy = (accuracy_C[0], accuracy_C[1])

    @property
    def _updates_spent(self) -> int:
        """Updates of the unpruned networks so far."""
        done = [budget for stage, budget in list(self._budgets.items())[: self._stage] if stage in TRAINING]
        return sum(done) + (self._update if self._name in TRAINING else 0)

    def _networks(self) -> list[dict[str, Tensor]]:
        tensors = split(self.config.shape, self._population.parameter_PF)
        return [{name: tensor[place] for name, tensor in tensors.items()} for place in range(self.config.num_seeds)]

    def _score(self, kind: str, tensors: Mapping[str, Tensor], seed: int, code: Code) -> list[Tensor]:
        config = self.config
        return score_neurons(kind, config.task, config.shape, tensors, code, num_samples=config.score_samples, seed=seed)

    def _prune(self) -> Recovery:
        """Rank the neurons of every network by A, and cut copies at all sparsities."""
        config, copies = self.config, []
        self._scores[self._name] = []
        for seed, tensors in zip(self._seeds, self._networks(), strict=True):
            both = [self._score("ablation", tensors, seed, code) for code in (config.target, config.other)]
            self._scores[self._name].append([torch.cat(scores).tolist() for scores in both])
            ranking = both[0] if config.score == "ablation" else self._score(config.score, tensors, seed, config.target)
            for sparsity in config.grid:
                pruned = remove(tensors, config.shape.neurons, choose_kept(ranking, sparsity))
                for code in (config.target, config.other):
                    copies.append(Copy(name=self._copy(seed, sparsity, code), code=code, tensors=pruned))
        return Recovery(config, copies, remember=self._remembered(), device=self.device)

    def _copy(self, seed: int, sparsity: float, code: Code) -> Name:
        return (self._name, seed, str(sparsity), *code)

    def _remembered(self) -> list[Name]:
        """The copies that the trial's pruned models come from."""
        return [self._copy(seed, self.config.sparsity, self.config.target) for seed in self._seeds]

    def _finish_recovery(self, recovery: Recovery) -> None:
        config = self.config
        accuracies = {
            task: [[recovery.accuracies[self._copy(seed, s, code)] for s in config.grid] for seed in self._seeds]
            for task, code in (("target", config.target), ("other", config.other))
        }
        self._curves[self._name] = SparsityCurve(
            config,
            accuracies=accuracies,
            overlap=mean_overlap(self._scores["before"]),
            updates_before=self._updates_spent,
        )
        self._pruned = [{n: t.clone() for n, t in recovery.networks[name].items()} for name in self._remembered()]

    def _metrics(self) -> dict[str, float]:
        size = self.config.composite_size
        bits = self._losses[-1][1:] if self._losses else [1.0] * (2 + 2 * size)
        losses = {
            "target_loss_bits": bits[0],
            "other_loss_bits": bits[1],
            "target_atoms_loss_bits": statistics.fmean(bits[2 : 2 + size]),
            "other_atoms_loss_bits": statistics.fmean(bits[2 + size :]),
        }
        if self._curves:
            return losses | list(self._curves.values())[-1].metrics()
        target, other = self._accuracy
        return losses | unpruned_metrics(self.config, target=target, other=other, updates_spent=self._updates_spent)

    def state_dict(self) -> dict[str, Any]:
        return {
            "stage": self._stage,
            "update": self._update,
            "losses": [list(row) for row in self._losses],
            "accuracy": list(self._accuracy),
            "curves": {stage: curve.state_dict() for stage, curve in self._curves.items()},
            "scores": dict(self._scores),
            "pruned": list(self._pruned),
            "recovery": None if self._recovery is None else self._recovery.state_dict(),
            "population": self._population.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._stage, self._update = state["stage"], state["update"]
        self._losses = [list(row) for row in state["losses"]]
        self._accuracy = (state["accuracy"][0], state["accuracy"][1])
        self._curves = {stage: SparsityCurve(self.config, **fields) for stage, fields in state["curves"].items()}
        self._scores = dict(state["scores"])
        self._pruned = list(state["pruned"])
        self._train(self._population.parameter_PF)
        self._population.load_state_dict(state["population"])
        self._recovery = None
        if state["recovery"] is not None:
            self._recovery = Recovery(self.config, [], remember=[], device=self.device)
            self._recovery.load_state_dict(state["recovery"])

    def model_tensors(self) -> dict[str, Tensor]:
        """Every seed's network, pruned to the config's sparsity and recovered on A; until there are such, as it is now.

        Returns:
            for seed and layer 0, 1, ...: `seed0.layer0.weight` of shape (outputs, inputs) and `seed0.layer0.bias`.
        """
        networks = self._pruned or [{name: tensor.cpu() for name, tensor in network.items()} for network in self._networks()]
        return {
            f"seed{place}.{name}": tensor
            for place, network in enumerate(networks)
            for name, tensor in for_modules(network).items()
        }

    @classmethod
    def rebuild(cls, config: NonlocalityConfig, tensors: Mapping[str, Tensor]) -> list[torch.nn.Sequential]:
        """One torch.nn.Sequential a seed, as small as it was pruned: control bits and task bits in, two logits out."""
        networks: list[dict[str, Tensor]] = [{} for _ in range(config.num_seeds)]
        for name, tensor in tensors.items():
            seed, _, parameter = name.partition(".")
            networks[int(seed.removeprefix("seed"))][parameter] = tensor
        return [modules(network) for network in networks]

    def charts(self) -> list[Chart]:
        """The sparsity curves (Fig 3), the losses through training, and what each neuron matters to A and B (Fig 8)."""
        return [draw_curves(self._curves), draw_losses(self.config, self._losses), draw_scores(self._scores)]
