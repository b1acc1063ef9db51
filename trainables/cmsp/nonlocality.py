"""Where does a skill live? Prune a broad network for one task and see what of another comes back (arXiv:2505.15811, Fig 3).

A trial trains `num_seeds` networks on two composite tasks, A and B, and their atoms; ranks the hidden neurons by A; prunes
copies at every sparsity of a grid, and trains each on A alone and on B alone. With a method, the group lasso on A follows,
and the same again. What the trial reports in the end is of the last curve.
"""

import statistics
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from trainables.charts import Chart
from trainables.clock import evaluating
from trainables.cmsp.networks import join, probe_logits
from trainables.cmsp.nonlocality_charts import draw_curves, draw_losses, draw_scores
from trainables.cmsp.nonlocality_config import NonlocalityConfig
from trainables.cmsp.nonlocality_metrics import METRICS, SparsityCurve, mean_overlap, unpruned_metrics
from trainables.cmsp.nonlocality_training import Training
from trainables.cmsp.recovery import Copy, Name, Recovery, measure_copy
from trainables.cmsp.scoring import score_neurons
from trainables.cmsp.task import Code
from trainables.experiment import Account, Experiment, Removal
from trainables.pruning.selection import choose_kept
from trainables.randomness import generator
from trainables.relu_networks import by_seed, from_modules, from_seeds, initial_network

Stage = Literal["pretraining", "before", "lasso", "after"]
"""Pretraining and lasso train the networks; before and after the lasso, pruned copies of them recover."""

_SHARE_OF_FULL_SIZE = 1 / 3  # what a pruned copy's update costs, over the grid, of an unpruned one's


class Nonlocality(Experiment):
    """Trains on tasks A and B, prunes for A, lets copies recover on A or on B; after a group lasso on A, once more.

    Source: arXiv:2505.15811, Figs 3, 8, 9 and 10. Differs: recovery stops where nothing is left to recover (recovery.py); the
    sparsity up to which A is kept ends at the first that loses it, where the paper takes the last that keeps it; B counts as
    it was at best in recovery, where the paper takes the end; losses are measured at every report and not at every update.
    """

    Config: ClassVar[Any] = NonlocalityConfig
    METRICS = METRICS

    def __init__(self, config: NonlocalityConfig, *, device: torch.device) -> None:
        self.config = config
        self.device = device
        self._stages = _stages(config)
        self._stage = 0  # place in them; their number when all is done
        self._update = 0  # of a stage that trains
        self._losses: list[list[float]] = []  # updates so far, then bits of A, B and the atoms
        self._accuracies = [0.5, 0.5]  # of A and B
        self._scores: dict[str, list[list[list[float]]]] = {}  # by stage: A's and B's, of every network's neurons
        self._rankings: list[list[Tensor]] = []  # scores that the stage's copies were cut by
        self._curves: dict[str, SparsityCurve] = {}
        self._pruned: list[dict[str, Tensor]] = []
        self._recovery: Recovery | None = None
        self._recovered_flops = 0.0  # of recoveries that are done
        networks = [initial_network(config.shape.layers, generator(seed, "weights")) for seed in config.seeds]
        self._training = Training(config, "pretraining", join(config.shape, networks).to(device))

    def step(self) -> dict[str, float]:
        if self._stage < len(self._stages):
            stage = self._stages[self._stage]
            if stage == "pretraining" or stage == "lasso":
                self._step_training(stage)
            else:
                self._step_recovery(stage)
        return self._metrics()

    def _step_training(self, stage: Stage) -> None:
        start, self._update = self._update, min(self._update + self.config.updates_per_step, self._budgets[stage])
        self._training.run(start, self._update)
        with evaluating():
            bits_C, accuracy_C = self._training.measure(self._updates_spent)
        self._losses.append([self._updates_spent, *bits_C])
        self._accuracies = accuracy_C[:2]
        if self._update == self._budgets[stage]:
            self._next_stage()

    def _step_recovery(self, stage: Stage) -> None:
        if self._recovery is None:
            self._score(stage)
            self._recovery = Recovery(self.config, self._copies(stage), remember=self._remembered(stage), device=self.device)
        self._recovery.advance(self.config.updates_per_step)
        if self._recovery.progress == 1.0:
            self._finish_recovery(stage, self._recovery)
            self._next_stage()

    def _next_stage(self) -> None:
        self._stage += 1
        self._update = 0
        self._recovery = None
        if self._stages[self._stage :][:1] == ["lasso"]:
            self._training = Training(self.config, "lasso", self._training.population.parameter_PF)

    @property
    def _budgets(self) -> dict[Stage, int]:
        """Updates of the stages that train."""
        return {"pretraining": self.config.pretraining_updates, "lasso": self.config.lasso_updates}

    @property
    def _updates_spent(self) -> int:
        """Updates of the unpruned networks so far."""
        return sum(self._budgets.get(stage, 0) for stage in self._stages[: self._stage]) + self._update

    @property
    def progress(self) -> float:
        if self._stage == len(self._stages):
            return 1.0
        stage, config = self._stages[self._stage], self.config
        copies = _SHARE_OF_FULL_SIZE * 2 * len(config.grid)
        samples: dict[Stage, float] = {
            "pretraining": config.pretraining_updates * config.pretraining_samples * len(config.mixture),
            "lasso": config.lasso_updates * config.lasso_samples,
            "before": copies * max(1, config.recovery_updates) * config.recovery_samples,
            "after": copies * max(1, config.recovery_updates) * config.recovery_samples,
        }
        recovered = 0.0 if self._recovery is None else self._recovery.progress
        share = self._update / self._budgets[stage] if stage in self._budgets else recovered
        done = sum(samples[before] for before in self._stages[: self._stage]) + share * samples[stage]
        return done / sum(samples[each] for each in self._stages)

    def _score(self, stage: Stage) -> None:
        """Score the neurons of every network: by ablation for A and B, and by what shall rank them."""
        config = self.config

        def score(kind: str, network: Mapping[str, Tensor], code: Code, seed: int) -> list[Tensor]:
            samples = config.score_samples
            return score_neurons(kind, config.task, config.shape, network, code, num_samples=samples, seed=seed)

        self._scores[stage], self._rankings = [], []
        for seed, network in zip(config.seeds, self._training.networks(), strict=True):
            of_a, of_b = (score("ablation", network, code, seed) for code in (config.target, config.other))
            self._scores[stage].append([torch.cat(of_a).tolist(), torch.cat(of_b).tolist()])
            self._rankings.append(of_a if config.score == "ablation" else score(config.score, network, config.target, seed))

    def _copies(self, stage: Stage) -> list[Copy]:
        """Every network at every sparsity, once for A and once for B."""
        config = self.config
        return [
            Copy(name=_name(stage, seed, sparsity, code), code=code, network=network, keep=choose_kept(ranking, sparsity))
            for seed, network, ranking in zip(config.seeds, self._training.networks(), self._rankings, strict=True)
            for sparsity in config.grid
            for code in (config.target, config.other)
        ]

    def _remembered(self, stage: Stage) -> list[Name]:
        """The copies that are the trial's pruned models."""
        return [_name(stage, seed, self.config.sparsity, self.config.target) for seed in self.config.seeds]

    def _finish_recovery(self, stage: Stage, recovery: Recovery) -> None:
        config = self.config
        accuracies = {
            task: [[recovery.accuracies[_name(stage, seed, s, code)] for s in config.grid] for seed in config.seeds]
            for task, code in (("target", config.target), ("other", config.other))
        }
        overlap = mean_overlap(self._scores["before"])
        self._curves[stage] = SparsityCurve(config, accuracies, overlap=overlap, updates_before=self._updates_spent)
        self._pruned = [recovery.networks[name] for name in self._remembered(stage)]
        self._recovered_flops += recovery.flops

    def flops(self) -> float:
        """Six a parameter and training sample: of the unpruned networks, and of the copies at their own sizes.

        What scores read and Adam's own are not counted.
        """
        config, spent = self.config, self._updates_spent
        pretraining = min(spent, config.pretraining_updates)
        samples = pretraining * config.pretraining_samples * len(config.mixture) + (spent - pretraining) * config.lasso_samples
        recovering = 0.0 if self._recovery is None else self._recovery.flops
        return 6.0 * config.shape.num_parameters * config.num_seeds * samples + self._recovered_flops + recovering

    def _metrics(self) -> dict[str, float]:
        size = self.config.composite_size
        _, a, b, *atoms = self._losses[-1]
        losses = {
            "target_loss_bits": a,
            "other_loss_bits": b,
            "target_atoms_loss_bits": statistics.fmean(atoms[:size]),
            "other_atoms_loss_bits": statistics.fmean(atoms[size:]),
        }
        if self._curves:
            return losses | list(self._curves.values())[-1].metrics()
        target, other = self._accuracies
        return losses | unpruned_metrics(self.config, target=target, other=other, updates_spent=self._updates_spent)

    def state_dict(self) -> dict[str, Any]:
        return {
            "stage": self._stage,
            "update": self._update,
            "losses": [list(row) for row in self._losses],
            "accuracies": list(self._accuracies),
            "scores": dict(self._scores),
            "rankings": list(self._rankings),
            "curves": {stage: curve.state_dict() for stage, curve in self._curves.items()},
            "pruned": list(self._pruned),
            "recovery": None if self._recovery is None else self._recovery.state_dict(),
            "recovered_flops": self._recovered_flops,
            "population": self._training.population.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._stage, self._update = state["stage"], state["update"]
        self._losses = [list(row) for row in state["losses"]]
        self._accuracies = list(state["accuracies"])
        self._scores = dict(state["scores"])
        self._rankings = [[score_H.to(self.device) for score_H in scores] for scores in state["rankings"]]
        self._curves = {stage: SparsityCurve(self.config, **fields) for stage, fields in state["curves"].items()}
        self._pruned = list(state["pruned"])
        self._recovered_flops = state.get("recovered_flops", 0.0)  # older states have none
        phase: Literal["pretraining", "lasso"] = "lasso" if "lasso" in self._stages[: self._stage + 1] else "pretraining"
        self._training = Training(self.config, phase, self._training.population.parameter_PF)
        self._training.population.load_state_dict(state["population"])
        self._recovery = None
        if state["recovery"] is not None:
            stage = self._stages[self._stage]
            self._recovery = Recovery(self.config, self._copies(stage), remember=self._remembered(stage), device=self.device)
            self._recovery.load_state_dict(state["recovery"])

    def model_tensors(self) -> dict[str, Tensor]:
        """Every seed's network, pruned to the config's sparsity and recovered on A; until there are such, as it is now.

        Returns:
            for seed and layer 0, 1, ...: `seed0.layer0.weight` of shape (outputs, inputs) and `seed0.layer0.bias`.
        """
        return by_seed(self._pruned or self._training.networks())

    @classmethod
    def rebuild(
        cls, config: NonlocalityConfig, tensors: Mapping[str, Tensor], files: Mapping[str, bytes]
    ) -> list[torch.nn.Sequential]:
        """One torch.nn.Sequential a seed, as small as it was pruned: control bits and task bits in, two logits out."""
        return from_seeds(tensors)

    def account(self) -> Account:
        """Which neurons are kept of every network, and when each was measured last: with which samples."""
        config = self.config
        if not self._curves:
            return Account()
        kept = {
            f"seed{place}.layer{layer}": keep_H
            for place, ranking in enumerate(self._rankings)
            for layer, keep_H in enumerate(choose_kept(ranking, config.sparsity))
        }
        last = list(self._curves.values())[-1].last_updates()
        return Account(evidence={"updates": torch.tensor(last)}, removal=Removal(score=config.score, kept=kept))

    @classmethod
    def probe(cls, config: NonlocalityConfig, model: list[torch.nn.Sequential]) -> dict[str, Tensor]:
        """Logits of every network."""
        return probe_logits(model)

    @classmethod
    def evaluate(
        cls,
        config: NonlocalityConfig,
        model: list[torch.nn.Sequential],
        evidence: Mapping[str, Tensor],
        *,
        device: torch.device,
    ) -> dict[str, float]:
        """Size and accuracy on A of the pruned networks; the other metrics are of networks that are gone."""
        stage, accuracies, neurons = _stages(config)[-1], [], []
        for seed, network, update in zip(config.seeds, model, evidence["updates"].tolist(), strict=True):
            name, tensors = _name(stage, seed, config.sparsity, config.target), from_modules(network)
            accuracies.append(measure_copy(config, name, config.target, tensors, update, device))
            neurons.append(sum(tensors[f"layer{layer}.bias"].numel() for layer in range(config.depth - 1)))
        return {"target_accuracy": statistics.fmean(accuracies), "neurons_kept": statistics.fmean(neurons)}

    def charts(self) -> list[Chart]:
        """The sparsity curves (Fig 3), the losses through training, and what each neuron matters to A and B (Fig 8)."""
        return [draw_curves(self._curves), draw_losses(self.config, self._losses), draw_scores(self._scores)]


def _stages(config: NonlocalityConfig) -> list[Stage]:
    """All that a trial goes through."""
    return ["pretraining", "before"] if config.method == "none" else ["pretraining", "before", "lasso", "after"]


def _name(stage: Stage, seed: int, sparsity: float, code: Code) -> Name:
    """Of a copy: its seed first, then what tells it from that seed's others."""
    return (seed, stage, str(sparsity), *code)
