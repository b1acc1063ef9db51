"""From a broad language model to a small one that keeps one domain: which way is cheapest, and what is left of the rest?

A trial takes one way. Pruning ways score the base model's neurons and residual dimensions on the kept domain, after a group
lasso or not, cut them out and train what is left; the others train a small model of the same shape from its start, with the
base model's answers or without. In the end the other domains are taught again, to see how much of them was only hidden.
"""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainables.charts import Chart
from trainables.clock import evaluating
from trainables.experiment import Account, DivergedError, Experiment, Removal
from trainables.llm.anatomy import neurons
from trainables.llm.base import base_recipes
from trainables.llm.corpus import Corpus
from trainables.llm.dissection import dissect
from trainables.llm.files import build, description, tensors_of, tokenizer_files
from trainables.llm.lasso import GroupLasso
from trainables.llm.narrowing_charts import draw_losses, draw_neurons
from trainables.llm.narrowing_config import NarrowingConfig, Stage
from trainables.llm.narrowing_metrics import METRICS, Ledger, loss_metrics, size_metrics
from trainables.llm.narrowing_models import cut, layers_of, num_parameters, parameters_of, require_cuttable, score_of, student
from trainables.llm.narrowing_texts import Texts, held_out_loss_nats
from trainables.llm.packed_files import FILES, unpack_files
from trainables.llm.pretrained import for_transformers
from trainables.llm.probe import probe_logits
from trainables.llm.shared_model import unpack_model
from trainables.llm.training import Teacher, Trainer
from trainables.shared import Recipe


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
    parallel = True
    libraries = ("transformers", "tokenizers")

    def __init__(self, config: NarrowingConfig, *, device: torch.device, given: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.config, self.device, self._given = config, device, given
        self._corpus = Corpus.of(given["corpus"])
        self._texts = Texts(config, self._corpus)
        num_base_parameters = sum(tensor.numel() for name, tensor in given["base"].items() if not name.startswith(FILES))
        self._ledger = Ledger(config, num_base_parameters=num_base_parameters)
        self._stages: list[Stage] = list(config.trainings)
        self._stage = 0  # place in them; their number when all is done
        self._relearned: list[float] = []  # loss on the other domains, of each learning rate
        self._kept: dict[str, Tensor] = {}  # keep_H of every layer that was cut
        self._begun: nn.Module | None = None
        self._trainer: Trainer | None = None  # of lasso and recovery
        self._lasso: GroupLasso | None = None

    @classmethod
    def needs(cls, config: NarrowingConfig) -> dict[str, Recipe]:
        """The corpus and the base model; of a pretrained one its tokenizer, too."""
        return base_recipes(config.base, config.corpus, config.base_seed)

    @property
    def _model(self) -> nn.Module:
        """The model as it is now. The first look makes it; going on from a checkpoint, nobody looks before it is loaded."""
        if self._begun is None:
            base = unpack_model(self._given["base"])
            self._texts.require_readable(base)
            require_cuttable(base, self.config)
            self._begun = (base if self.config.prunes else student(base, self.config)).to(self.device)
            self._note_sizes()
            if self._stages[0] == "recovery":
                self._begin_recovery()
            else:
                self._make_trainer("lasso")
        return self._begun

    def step(self) -> dict[str, float]:
        model = self._model
        if self._stage < len(self._stages):
            stage = self._stages[self._stage]
            if stage == "relearning":
                self._relearn(model)
            else:
                self._train(model, stage)
        return self._ledger.metrics(self._relearned)

    def _train(self, model: nn.Module, stage: Stage) -> None:
        """Make one step's updates, then measure."""
        assert self._trainer is not None
        budget = self.config.trainings[stage].updates
        self._run(self._trainer, min(self.config.updates_per_step, budget - self._trainer.update))
        self._ledger.note_training(stage, self._trainer.update, num_parameters(model))
        self._measure(model)
        if self._trainer.update == budget:
            self._stage += 1
            self._trainer = self._lasso = None  # with the optimizer's state: nothing of it is needed again
            if stage == "lasso":
                self._begin_recovery()

    def _run(self, trainer: Trainer, num_updates: int) -> None:
        """Make updates; a strength that adjusts itself hears of each."""
        if self._lasso is None or not self._lasso.adjusts:
            trainer.run(num_updates)
            return
        for _ in range(num_updates):
            trainer.run(1)
            self._lasso.adjust(trainer.last_loss_nats)

    def _begin_recovery(self) -> None:
        """Cut the model, if this way does, and measure what is left before any recovery."""
        model = self._model
        if self.config.prunes:
            num_tokens, self._kept = cut(model, self.config, self._texts.score_windows().to(self.device))
            self._ledger.note_scores(num_tokens, self._ledger.num_parameters)
            self._note_sizes()
        self._measure(model)
        self._ledger.note_pruned()
        self._make_trainer("recovery")

    def _measure(self, model: nn.Module) -> None:
        with evaluating():
            self._ledger.note_losses(self._texts.losses(model))

    def _note_sizes(self) -> None:
        self._ledger.note_sizes(*_sizes(self._model))

    def _make_trainer(self, stage: Stage) -> None:
        model, training = self._model, self.config.trainings[stage]
        stream = self._texts.stream(stage, training)
        if stage == "recovery":
            self._trainer = Trainer(model, stream, training, teacher=self._teacher())
            return
        config = self.config
        layers = neurons(dissect(model, verify=False), parameters_of(model))
        lasso = GroupLasso(layers, config.lasso_way, config.lasso_strength, config.lasso_rule)
        self._lasso = lasso
        self._trainer = Trainer(model, stream, training, add_penalty=lasso.add_penalty, after_update=lasso.after_update)

    def _teacher(self) -> Teacher | None:
        share = self.config.teacher_weight
        if share == 0:
            return None
        model = unpack_model(self._given["base"]).to(self.device)
        return Teacher(model=model, alpha=1 - share, temperature=self.config.temperature)

    def _relearn(self, model: nn.Module) -> None:
        """Teach a copy the other domains again, at the next learning rate."""
        config = self.config
        training = config.relearning_at(config.relearning_rates[len(self._relearned)])
        taught = copy.deepcopy(model)
        try:
            Trainer(taught, self._texts.stream("relearning", training), training).run(training.updates)
            losses = self._other_losses(taught)
        except DivergedError:  # a copy is lost, not the trial's model: at this rate nothing was relearned
            losses = self._other_losses(model)
        self._relearned.append(sum(losses) / len(losses))
        if len(self._relearned) == len(config.relearning_rates):
            self._stage += 1

    def _other_losses(self, model: nn.Module) -> list[float]:
        with evaluating():
            return [self._texts.loss_nats(model, domain) for domain in self._texts.others]

    @property
    def progress(self) -> float:
        if self._stage == len(self._stages):
            return 1.0
        works = [training.updates for training in self.config.trainings.values()]
        works[-1] *= len(self.config.relearning_rates)
        done = 0 if self._trainer is None else self._trainer.update
        if self._stages[self._stage] == "relearning":
            done = len(self._relearned) * self.config.relearning.updates
        return (sum(works[: self._stage]) + done) / (sum(works) + 1)

    def flops(self) -> float:
        """As the metric `flops_spent`, and six a parameter and token for what relearning read."""
        training = self.config.relearning
        num_tokens = len(self._relearned) * training.updates * training.batch_size * training.length
        return self._ledger.flops_spent + 6.0 * self._ledger.num_parameters * num_tokens

    def state_dict(self) -> dict[str, Any]:
        model = self._model
        return {
            "stage": self._stage,
            "relearned": list(self._relearned),
            "files": {name: data.decode() for name, data in description(model).items()},
            "tensors": {name: tensor.clone() for name, tensor in tensors_of(model).items()},
            "trainer": None if self._trainer is None else copy.deepcopy(self._trainer.state_dict()),
            "lasso": None if self._lasso is None else self._lasso.state_dict(),
            "ledger": self._ledger.state_dict(),
            "kept": dict(self._kept),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._stage, self._relearned = state["stage"], list(state["relearned"])
        files = {name: text.encode() for name, text in state["files"].items()}
        tensors = {name: tensor.to("cpu", copy=True) for name, tensor in state["tensors"].items()}
        self._begun = build(files, tensors).to(self.device)
        self._trainer = self._lasso = None
        if state["trainer"] is not None:
            self._make_trainer(self._stages[self._stage])
            assert self._trainer is not None
            self._trainer.load_state_dict(copy.deepcopy(state["trainer"]))  # the optimizer takes its tensors as they are
        if self._lasso is not None:
            self._lasso.load_state_dict(state["lasso"])
        self._ledger.load_state_dict(state["ledger"])
        self._kept = dict(state["kept"])

    def model_tensors(self) -> dict[str, Tensor]:
        """What the narrow model holds, by its names in transformers."""
        return tensors_of(self._model)

    def model_files(self) -> dict[str, bytes]:
        """The model's config and tokenizer: `AutoModelForCausalLM.from_pretrained` loads the folder.

        Where blocks have MLPs of different widths there is a module of code, too, and it asks for trust_remote_code=True.
        """
        if "tokenizer" in self._given:
            tokenizer = for_transformers(unpack_files(self._given["tokenizer"]))
        else:
            tokenizer = tokenizer_files(self._corpus.tokenizer_json)
        return tokenizer | description(self._model)

    @classmethod
    def rebuild(cls, config: NarrowingConfig, tensors: Mapping[str, Tensor], files: Mapping[str, bytes]) -> nn.Module:
        """The narrow model as transformers has it; blocks may have MLPs of different widths."""
        return build(files, tensors)

    def account(self) -> Account:
        """The text that losses are measured on, a digest of that which scores read, and which units are left."""
        windows = self._texts.evaluation_windows()
        read = {f"evaluation windows of {domain}": window_WT for domain, window_WT in windows.items()}
        if self.config.method == "attribution":
            read["calibration windows"] = self._texts.score_windows()
        removal = Removal(score=score_of(self.config), kept=self._kept) if self._kept else None
        return Account(evidence=windows, read=read, removal=removal)

    @classmethod
    def probe(cls, config: NarrowingConfig, model: nn.Module) -> dict[str, Tensor]:
        """Logits of a few tokens."""
        return probe_logits(model)

    @classmethod
    def evaluate(
        cls, config: NarrowingConfig, model: nn.Module, evidence: Mapping[str, Tensor], *, device: torch.device
    ) -> dict[str, float]:
        """Sizes, and held-out losses of all domains."""
        model.to(device)
        losses = {domain: held_out_loss_nats(model, window_WT.long()) for domain, window_WT in evidence.items()}
        return loss_metrics(losses, config.kept_domain) | size_metrics(*_sizes(model))

    def charts(self) -> list[Chart]:
        """The losses of every domain over the tokens (Figs 5, 12 and 13), and where the neurons are that were kept."""
        return [
            draw_losses(self.config, self._corpus.domains, self._ledger.history),
            draw_neurons(self.config, self._ledger.neurons),
        ]


def _sizes(model: nn.Module) -> tuple[int, list[int], int]:
    """Parameters, neurons of each block, and residual dimensions of a model."""
    *counts, dimensions = (units.count for units in layers_of(model, dissect(model, verify=False)))
    return num_parameters(model), counts, dimensions
