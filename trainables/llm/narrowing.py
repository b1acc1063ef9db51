"""From a broad language model to a small one that keeps one domain: which way is cheapest, and what is left of the rest?

A trial takes one way. Pruning ways score the base model's neurons and residual dimensions on the kept domain, after a group
lasso or not, cut them out and train what is left; the others train a small model of the same shape from its start, with the
base model's answers or without. In the end the other domains are taught again, to see how much of them was only hidden.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trainables.charts import Chart
from trainables.experiment import DivergedError, Experiment
from trainables.laws import require
from trainables.llm.anatomy import Anatomy, neurons, residual
from trainables.llm.base import base_recipe, build_llama, draw_parameters, load_parameters, rebuild_llama
from trainables.llm.corpus import Corpus
from trainables.llm.corpus_recipe import corpus_recipe
from trainables.llm.corpus_stream import Stream
from trainables.llm.dissection import dissect
from trainables.llm.files import description, tokenizer_files
from trainables.llm.gates import NextTokenLoss
from trainables.llm.narrowing_charts import draw_losses
from trainables.llm.narrowing_config import NarrowingConfig
from trainables.llm.narrowing_metrics import METRICS, Ledger
from trainables.llm.surgery import remove
from trainables.llm.training import Teacher, Trainer, Training, mean_loss_nats
from trainables.pruning.penalties import add_group_lasso_gradient, proximal_step
from trainables.pruning.scores import SCORES
from trainables.pruning.selection import choose_kept, keep_more, num_removed
from trainables.pruning.units import Tensors, Units
from trainables.randomness import generator, stream_key
from trainables.shared import Recipe

Stage = Literal["lasso", "recovery", "relearning"]
_SCORE_OF = {"group_lasso": "weight_norm", "attribution": "attribution", "weight_norm": "weight_norm", "random": "random"}
_WINDOWS_AT_ONCE = 16


class Narrowing(Experiment):
    """Which way to a narrow language model is cheapest? A trial is one way to one size.

    Args:
        given: what `needs` asks for.

    Source: arXiv:2505.15811, Figs 5, 6, 12 and 13, Table 1. Differs: models are cut, not masked, before they recover; losses
    are of held-out text; random units are drawn without replacement; tokens that scores read are counted; what comes back of
    the other domains is measured for every way with the same learning rates.
    """

    Config: ClassVar[Any] = NarrowingConfig
    METRICS = METRICS

    def __init__(self, config: NarrowingConfig, *, device: torch.device, given: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.config, self.device = config, device
        self._corpus, self._base = Corpus.of(given["corpus"]), given["base"]
        self._others = [domain for domain in self._corpus.domains if domain != config.kept_domain]
        law = f"a corpus must have {config.kept_domain!r} and another domain"
        is_fit = config.kept_domain in self._corpus.domains and bool(self._others)
        require(is_fit, law, ", ".join(self._corpus.domains), "name a kept_domain of it, or add sources")
        length, limit = config.recovery.length, config.evaluation_windows
        self._windows = {domain: self._corpus.windows(domain, length, limit) for domain in self._corpus.domains}
        self._stages: list[Stage] = ["recovery", "relearning"]
        if config.method == "group_lasso":
            self._stages.insert(0, "lasso")
        self._stage = 0  # place in them; their number when all is done
        self._keep: list[Tensor] | None = None  # units of the base model that are left, once it is cut
        self._relearned: list[float] = []  # loss on the other domains, of each learning rate
        self._model = self._base_model() if config.prunes else self._student()
        self._ledger = Ledger(config, num_parameters=_num_parameters(self._base))
        if self._stages[0] == "recovery":
            self._begin_recovery()
        else:
            self._trainer = self._trainer_of("lasso")

    @classmethod
    def needs(cls, config: NarrowingConfig) -> dict[str, Recipe]:
        """The corpus, and the base model that was trained on it."""
        base = base_recipe(config.base, config.corpus, config.base_seed)
        return {"corpus": corpus_recipe(config.corpus), "base": base}

    def _base_model(self) -> nn.Module:
        model = build_llama(self.config.base, self._corpus.largest_id + 1)
        load_parameters(model, self._base)
        return model.to(self.device)

    def _student(self) -> nn.Module:
        """A small model of the shape that pruning leaves, all layers alike."""
        config = self.config
        mlp_width = config.base.mlp_width - num_removed(config.base.mlp_width, config.neuron_sparsity)
        model = build_llama(config.base, self._corpus.largest_id + 1, width=config.narrow_width, mlp_width=mlp_width)
        draw_parameters(model, config.seed, "student")
        return model.to(self.device)

    def step(self) -> dict[str, float]:
        if self._stage < len(self._stages):
            stage = self._stages[self._stage]
            if stage == "relearning":
                self._relearn()
            else:
                self._train(stage)
        return self._ledger.metrics(self._relearned)

    def _train(self, stage: Stage) -> None:
        """Make one step's updates, then measure."""
        budget = self._training_of(stage).updates
        self._trainer.run(min(self.config.updates_per_step, budget - self._trainer.update))
        self._ledger.note_training(stage, self._trainer.update, _num_parameters(self._tensors))
        self._measure()
        if self._trainer.update == budget:
            self._stage += 1
            if stage == "lasso":
                self._begin_recovery()

    def _begin_recovery(self) -> None:
        """Cut the model, if this way does, and measure what is left before any recovery."""
        anatomy = dissect(self._model)  # it stays true when units are removed
        if self.config.prunes:
            layers = self._layers(anatomy)
            self._keep = self._choose(anatomy, layers)
            remove(self._model, anatomy, layers, self._keep)
        *counts, dimensions = (units.count for units in self._layers(anatomy))
        self._ledger.note_sizes(_num_parameters(self._tensors), counts, dimensions)
        self._measure()
        self._ledger.note_pruned()
        self._trainer = self._trainer_of("recovery")

    @property
    def _tensors(self) -> dict[str, nn.Parameter]:
        """The model's parameters as they are now, those that are tied once."""
        return dict(self._model.named_parameters())

    def _layers(self, anatomy: Anatomy) -> list[Units]:
        """The neurons of every block, then the residual dimensions."""
        return [*neurons(anatomy, self._tensors), residual(anatomy, self._tensors)]

    def _choose(self, anatomy: Anatomy, layers: Sequence[Units]) -> list[Tensor]:
        """Score all units on the kept domain, and keep the best."""
        config = self.config
        tensors = self._tensors
        windows = self._corpus.windows(config.kept_domain, config.recovery.length, config.score_windows, "attribution")
        parts = torch.split(windows.to(self.device), _WINDOWS_AT_ONCE)
        losses = [NextTokenLoss(self._model, anatomy, part) for part in parts]
        reads = config.method == "attribution"
        scores = SCORES[_SCORE_OF[config.method]](tensors, layers, losses if reads else [], generator(config.seed, "scores"))
        if reads:
            self._ledger.note_scores(windows.numel(), _num_parameters(tensors))
        kept_neurons = choose_kept(scores[:-1], config.neuron_sparsity, per_layer=config.per_layer)
        (kept_dimensions,) = choose_kept(scores[-1:], config.residual_sparsity)
        return [*kept_neurons, keep_more(scores[-1], kept_dimensions, config.narrow_width)]

    def _training_of(self, stage: Stage) -> Training:
        return {"lasso": self.config.lasso, "recovery": self.config.recovery, "relearning": self.config.relearning}[stage]

    def _trainer_of(self, stage: Stage) -> Trainer:
        config = self.config
        weights = {config.kept_domain: 1 - config.breadth} | dict.fromkeys(self._others, config.breadth / len(self._others))
        stream = self._stream(stage, weights)
        if stage == "recovery":
            return Trainer(self._model, stream, config.recovery, teacher=self._teacher())
        layers = neurons(dissect(self._model), self._tensors)
        if config.lasso_way == "proximal":
            return Trainer(self._model, stream, config.lasso, after_update=partial(_shrink, layers, config.lasso_strength))
        penalise = partial(add_group_lasso_gradient, layers=layers, strength=config.lasso_strength)
        return Trainer(self._model, stream, config.lasso, add_penalty=penalise)

    def _stream(self, stage: Stage, weights: Mapping[str, float]) -> Stream:
        length, batch_size = self._training_of(stage).length, self._training_of(stage).batch_size
        return Stream(
            self._corpus, weights=weights, length=length, batch_size=batch_size, seed=stream_key(self.config.seed, stage)
        )

    def _teacher(self) -> Teacher | None:
        share = self.config.teacher_weight
        if share == 0:
            return None
        return Teacher(model=self._base_model(), alpha=1 - share, temperature=self.config.temperature)

    def _measure(self) -> None:
        self._ledger.note_losses({domain: self._loss_nats(self._model, domain) for domain in self._windows})

    def _loss_nats(self, model: nn.Module, domain: str) -> float:
        return mean_loss_nats(model, self._windows[domain], batch_size=self.config.recovery.batch_size)

    def _relearn(self) -> None:
        """Teach a copy the other domains again, at the next learning rate."""
        config = self.config
        training = config.relearning_at(config.relearning_rates[len(self._relearned)])
        model = copy.deepcopy(self._model)
        stream = self._stream("relearning", dict.fromkeys(self._others, 1.0))
        try:
            Trainer(model, stream, training).run(training.updates)
            losses = [self._loss_nats(model, domain) for domain in self._others]
        except DivergedError:  # a copy is lost, not the trial's model: at this rate nothing was relearned
            losses = [self._loss_nats(self._model, domain) for domain in self._others]
        self._relearned.append(sum(losses) / len(losses))
        if len(self._relearned) == len(config.relearning_rates):
            self._stage += 1

    @property
    def progress(self) -> float:
        if self._stage == len(self._stages):
            return 1.0
        config = self.config
        rates = len(config.relearning_rates)
        works = {
            "lasso": config.lasso.updates,
            "recovery": config.recovery.updates,
            "relearning": rates * config.relearning.updates,
        }
        stage = self._stages[self._stage]
        done = self._trainer.update if stage != "relearning" else len(self._relearned) * config.relearning.updates
        total = sum(works[each] for each in self._stages)
        return (sum(works[each] for each in self._stages[: self._stage]) + done) / (total + 1)

    def state_dict(self) -> dict[str, Any]:
        return {
            "stage": self._stage,
            "keep": self._keep,
            "relearned": list(self._relearned),
            "parameters": {name: parameter.detach().clone() for name, parameter in self._tensors.items()},
            "trainer": copy.deepcopy(self._trainer.state_dict()),
            "ledger": self._ledger.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._stage, self._relearned = state["stage"], list(state["relearned"])
        self._model = self._base_model() if self.config.prunes else self._student()
        self._keep = None
        if state["keep"] is not None:
            self._keep = [keep_H.to(self.device) for keep_H in state["keep"]]
            anatomy = dissect(self._model)
            remove(self._model, anatomy, self._layers(anatomy), self._keep)
        load_parameters(self._model, state["parameters"])
        self._trainer = self._trainer_of("lasso" if self._stages[self._stage : self._stage + 1] == ["lasso"] else "recovery")
        self._trainer.load_state_dict(state["trainer"])
        self._ledger.load_state_dict(state["ledger"])

    def model_tensors(self) -> dict[str, Tensor]:
        """The parameters of the narrow model, by their names in transformers."""
        return {name: parameter.detach().cpu() for name, parameter in self._tensors.items()}

    def model_files(self) -> dict[str, bytes]:
        """The model's config and tokenizer: `AutoModelForCausalLM.from_pretrained` loads the folder.

        Where blocks have MLPs of different widths there is a module of code, too, and it asks for trust_remote_code=True.
        """
        return tokenizer_files(self._corpus.tokenizer_json) | description(self._model)

    @classmethod
    def rebuild(cls, config: NarrowingConfig, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The narrow model as transformers has it; blocks may have MLPs of different widths."""
        return rebuild_llama(config.base, tensors, is_cut=config.prunes)

    def charts(self) -> list[Chart]:
        """The losses of every domain over the tokens (Figs 5, 12 and 13)."""
        return [draw_losses(self.config, self._corpus.domains, self._ledger.history)]


def _shrink(layers: Sequence[Units], strength: float, tensors: Tensors, learning_rate: float) -> None:
    proximal_step(tensors, layers, learning_rate * strength)


def _num_parameters(tensors: Tensors) -> int:
    return sum(tensor.numel() for tensor in tensors.values())
