"""Does a broad mixture teach a skill that its narrow data alone cannot? (arXiv:2505.15811, Figs 2 and 7)

A trial trains `num_seeds` networks at once on one mixture of a composite subtask, its atoms and other codes, and counts
the samples until the composite is learned.

Axes: P networks in the batch, S all seeds of the trial, B samples, I inputs, C codes.
"""

import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from trainables.charts import Chart, Panel, Series
from trainables.cmsp.curriculum_config import CurriculumConfig
from trainables.cmsp.curriculum_pack import CurriculumPack, pack_key, pack_size
from trainables.cmsp.curriculum_record import Record
from trainables.cmsp.curriculum_training import Training, evaluation_batches, measure
from trainables.cmsp.networks import join, probe_logits, split
from trainables.cmsp.population import Population
from trainables.experiment import Account, Experiment, Metric
from trainables.relu_networks import for_modules, from_modules, modules


class Curriculum(Experiment):
    """Trains `num_seeds` networks on one mixture until all have learned the composite or spent the sample budget.

    Every network draws its weights and its data from streams of its own seed. A network that has converged leaves the
    batch. One that never does counts at the sample budget, and `fraction_converged` says how many did.

    Source: arXiv:2505.15811, Figs 2 and 7. Converged there: the least composite loss within the last 100 updates is below
    0.1 bit; with an evaluation at least every 50 updates and a stop at the first such loss, ours is the same moment.
    Differs: evaluated every 50 updates and not every one; the composite's share of a batch is a parameter.
    """

    Config: ClassVar[Any] = CurriculumConfig
    METRICS = (
        Metric(
            name="samples_to_convergence",
            goal="min",
            unit="samples",
            meaning="Training samples until the composite is learned, median over seeds; the budget for a seed that never does.",
        ),
        Metric(
            name="composite_loss_bits",
            goal="min",
            unit="bits",
            meaning="Loss of the composite at its latest evaluation, median over seeds; chance is 1.",
        ),
        Metric(
            name="atomic_loss_bits",
            goal="min",
            unit="bits",
            meaning="Mean loss over the composite's atoms at the latest evaluation, median over seeds.",
        ),
        Metric(
            name="fraction_converged",
            goal="max",
            unit="1",
            meaning="Share of seeds whose composite loss fell below the target.",
        ),
        Metric(
            name="samples_used",
            goal="min",
            unit="samples",
            meaning="Training samples drawn so far, over all codes, mean over seeds.",
        ),
        Metric(name="parameters", goal="min", unit="parameters", meaning="Weights and biases of one network."),
    )

    def __init__(self, config: CurriculumConfig, *, device: torch.device) -> None:
        self.config = config
        self.record = Record(config, device)
        self._training: Training | None = None  # of this trial alone

    def step(self) -> dict[str, float]:
        self._training = self._training or Training([self.record])
        for error in self._training.advance().values():
            raise error
        return self.record.report()

    @classmethod
    def pack_key(cls, config: CurriculumConfig) -> Hashable:
        return pack_key(config)

    @classmethod
    def pack_size(cls, config: CurriculumConfig, *, num_cpus: float, num_gpus: float) -> int:
        return pack_size(config) if num_gpus == 0 else 1  # on a GPU nobody has measured it

    @classmethod
    def pack(cls, members: Sequence[Self]) -> CurriculumPack:
        for member in members:
            member._training = None
        return CurriculumPack(members)

    @property
    def progress(self) -> float:
        return 1.0 if self.record.is_done else self.record.update / self.config.num_updates

    def flops(self) -> float:
        """Six a parameter and training sample of every network: two forward, four backward. Adam's own are not counted."""
        samples = sum(self.record.updates_made) * self.config.samples_per_update
        return 6.0 * self.config.shape.num_parameters * samples

    def state_dict(self) -> dict[str, Any]:
        return self.record.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.record.load_state_dict(state)
        self._training = None

    def model_tensors(self) -> dict[str, Tensor]:
        """Every seed's network, as it converged or as it is now.

        Returns:
            for layer 0, 1, ...: `layer0.weight` of shape (S, outputs, inputs) and `layer0.bias` of shape (S, outputs).
        """
        return for_modules(split(self.config.shape, self.record.parameters()))

    @classmethod
    def rebuild(
        cls, config: CurriculumConfig, tensors: Mapping[str, Tensor], files: Mapping[str, bytes]
    ) -> list[torch.nn.Sequential]:
        """One torch.nn.Sequential a seed: control bits and task bits in, two logits out."""
        return [modules({name: tensor[seed] for name, tensor in tensors.items()}) for seed in range(config.num_seeds)]

    def account(self) -> Account:
        """When each network was measured last: with which samples."""
        return Account(evidence={"updates": torch.tensor(self.record.updates_made)})

    @classmethod
    def probe(cls, config: CurriculumConfig, model: list[torch.nn.Sequential]) -> dict[str, Tensor]:
        """Logits of every network."""
        return probe_logits(model)

    @classmethod
    def evaluate(
        cls,
        config: CurriculumConfig,
        model: list[torch.nn.Sequential],
        evidence: Mapping[str, Tensor],
        *,
        device: torch.device,
    ) -> dict[str, float]:
        """The losses, of the samples that they were measured on last; who converged, converged there."""
        measured = []
        for seed, (network, update) in enumerate(zip(model, evidence["updates"].tolist(), strict=True)):
            parameter_PF = join(config.shape, [from_modules(network)]).to(device)
            population = Population(config.shape, parameter_PF, [config.learning_rate])
            measured += measure(config, population, evaluation_batches(config, [config.seed + seed], device), update)
        composite_bits, atomic_bits = zip(*measured, strict=True)
        return {
            "composite_loss_bits": statistics.median(composite_bits),
            "atomic_loss_bits": statistics.median(atomic_bits),
            "fraction_converged": sum(bits < config.target_loss_bits for bits in composite_bits) / config.num_seeds,
            "parameters": statistics.median(sum(tensor.numel() for tensor in network.parameters()) for network in model),
        }

    def charts(self) -> list[Chart]:
        """The losses over the samples (Fig 2, top)."""
        samples, *losses = zip(*self.record.history, strict=True)
        series = tuple(
            Series(label=label, x=samples, y=bits, color=color)
            for label, bits, color in zip(("composite", "atoms"), losses, ("#2f5fa8", "#e08a1e"), strict=True)
        )
        x_label = "samples (all codes, mean over seeds)"
        panel = Panel(title="", x_label=x_label, y_label="loss (bits; chance 1)", series=series, y_log=True)
        return [Chart(name="losses", title="Losses of the composite and its atoms, median over seeds", panels=(panel,))]
