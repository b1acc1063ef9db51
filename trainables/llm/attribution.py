"""Is a cheap score of a unit worth an ablation? Of a sample of a language model's units, the one is held against the other."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainables.charts import Chart
from trainables.clock import evaluating
from trainables.experiment import Account, DivergedError, Experiment
from trainables.laws import require
from trainables.llm.anatomy import neurons, residual
from trainables.llm.attribution_charts import draw_agreement
from trainables.llm.attribution_config import BLIND, REFERENCE, AttributionConfig
from trainables.llm.attribution_metrics import METRICS, correlations
from trainables.llm.attribution_sample import Sample, ablate, draw_sample, whole_batches
from trainables.llm.base import base_recipes
from trainables.llm.corpus import Corpus
from trainables.llm.dissection import dissect
from trainables.llm.gates import NextTokenLoss
from trainables.llm.shared_model import unpack_model
from trainables.llm.tokens import require_fits
from trainables.pruning.scores import SCORES
from trainables.randomness import generator
from trainables.shared import Recipe

_LOGITS_AT_ONCE = 2**28  # in a pass of ablations


class Attribution(Experiment):
    """What does a score tell of ablation? A trial is one score on one length of text.

    Args:
        given: what `needs` asks for.

    Source: arXiv:2505.15811, Fig 11. Differs: packed windows; a model's ablations are batched; the score may read other
    text than the ablations, and every score of the toolkit is compared.
    """

    Config: ClassVar[Any] = AttributionConfig
    METRICS = METRICS
    libraries = ("transformers", "tokenizers")

    def __init__(self, config: AttributionConfig, *, device: torch.device, given: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.config, self.device = config, device
        corpus = Corpus.of(given["corpus"])
        law = f"a corpus must have {config.kept_domain!r}"
        require(config.kept_domain in corpus.domains, law, ", ".join(corpus.domains), "name a kept_domain of it")
        windows = corpus.windows(config.kept_domain, config.score_length, config.score_windows, "attribution")
        self._read = whole_batches(windows, config.batch_size)
        limit, split = config.ablation_windows, config.ablation_split
        self._ablated_on = corpus.windows(config.kept_domain, config.ablation_length, limit, split)
        self._model = unpack_model(given["base"]).to(device)
        self._anatomy = dissect(self._model)
        self._tensors = dict(self._model.named_parameters())
        self._layers = [*neurons(self._anatomy, self._tensors), residual(self._anatomy, self._tensors)]
        self._require_readable(corpus)
        self._sample = draw_sample(
            self._layers,
            num_neurons=config.num_neurons,
            num_dimensions=config.num_dimensions,
            generator=generator(config.seed, "sample"),
        )
        self._scores: dict[str, Tensor] = {}  # of the sample, by name, once the first step has made them
        self._ablation_S = torch.empty(0)  # of the first units of the sample

    @classmethod
    def needs(cls, config: AttributionConfig) -> dict[str, Recipe]:
        """The corpus and the base model; of a pretrained one its tokenizer, too."""
        return base_recipes(config.base, config.corpus, config.base_seed)

    @property
    def _num_tokens_known(self) -> int:
        """Rows of the model's embedding."""
        return len(self._tensors[f"{self._anatomy.embeddings[0]}.weight"])

    def _require_readable(self, corpus: Corpus) -> None:
        """Refuse a model that does not know the corpus' tokens, or takes no sequences as long as a window."""
        require_fits(corpus.largest_id, self._num_tokens_known)
        limit = getattr(self._model.config, "max_position_embeddings", None)
        for name, length in (("score_length", self.config.score_length), ("ablation_length", self.config.ablation_length)):
            law = f"{name} must be below the model's limit of {limit} tokens"  # it also sees the last, of which nothing is asked
            require(limit is None or length < limit, law, length, "use shorter windows")

    def step(self) -> dict[str, float]:
        """Ablate some more units; the first step makes the scores, too."""
        if not self._scores:
            self._scores = self._score()
        start = len(self._ablation_S)
        part = self._sample.part(start, start + self.config.units_per_step)
        if len(part):
            self._ablation_S = torch.cat([self._ablation_S, self._ablate(part)])
        self._check_finite()
        with evaluating():
            return self._metrics()

    def _score(self) -> dict[str, Tensor]:
        """What every score says of the sample."""
        losses = self._losses(self._read, batch_size=self.config.batch_size)
        return {
            name: self._sample.of(SCORES[name](self._tensors, self._layers, losses, generator(self.config.seed, "scores")))
            for name in self.config.scores
        }

    def _ablate(self, part: Sample) -> Tensor:
        """Window by window, as each counts once for every unit of a pass."""
        losses = self._losses(self._ablated_on, batch_size=1)
        logits = self._ablated_on.shape[1] * self._num_tokens_known
        return ablate(self._tensors, self._layers, losses, part, units_at_once=max(1, _LOGITS_AT_ONCE // logits))

    def _losses(self, windows: Tensor, *, batch_size: int) -> list[NextTokenLoss]:
        return [NextTokenLoss(self._model, self._anatomy, part) for part in torch.split(windows.to(self.device), batch_size)]

    def _check_finite(self) -> None:
        odd = [name for name, value_S in self._table().items() if not bool(value_S.isfinite().all())]
        if odd:
            told = ", ".join(odd)
            raise DivergedError(f"scores must be finite, but those by {told} are not; lower the base model's learning rate")

    def _known(self) -> dict[str, Tensor]:
        """Scores of the units that are ablated so far: score_S by name."""
        return {name: score_S[: len(self._ablation_S)] for name, score_S in self._scores.items()}

    def _is_residual(self) -> Tensor:
        """Which of the units that are ablated so far are residual dimensions."""
        return self._sample.layer_S[: len(self._ablation_S)] == len(self._layers) - 1

    def _metrics(self) -> dict[str, float]:
        num, is_blind = len(self._ablation_S), self.config.score in BLIND
        return correlations(self._ablation_S, self._known(), self.config.score, self._is_residual()) | {
            "units_ablated": num,
            "score_tokens": 0 if is_blind else self._read.numel(),
            "ablation_tokens": num * self._ablated_on.numel(),
        }

    @property
    def progress(self) -> float:
        return len(self._ablation_S) / len(self._sample)

    def flops(self) -> float:
        """Two a parameter and token that a unit's ablation read; what scores read is not counted."""
        num_parameters = sum(tensor.numel() for tensor in self._tensors.values())
        return 2.0 * num_parameters * len(self._ablation_S) * self._ablated_on.numel()

    def state_dict(self) -> dict[str, Any]:
        return {"scores": dict(self._scores), "ablation": self._ablation_S}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._scores, self._ablation_S = dict(state["scores"]), state["ablation"]

    def _table(self) -> dict[str, Tensor]:
        part = self._sample.part(0, len(self._ablation_S))
        return {"layer": part.layer_S, "index": part.index_S, REFERENCE: self._ablation_S, **self._known()}

    def model_tensors(self) -> dict[str, Tensor]:
        """A table, a row a unit: its layer, its place in it, its ablation, its scores.

        Layers are counted from 0: the MLPs of the blocks, then the residual stream.
        """
        return {name: value_S.clone() for name, value_S in self._table().items()}  # a file takes no views of larger tensors

    @classmethod
    def rebuild(cls, config: AttributionConfig, tensors: Mapping[str, Tensor], files: Mapping[str, bytes]) -> nn.ParameterDict:
        """The table of `model_tensors`, by column; nothing is trained here."""
        return nn.ParameterDict({name: nn.Parameter(tensor, requires_grad=False) for name, tensor in tensors.items()})

    def account(self) -> Account:
        """Which of the table's layers is the residual stream, and digests of what scores and ablations read."""
        read = {"calibration windows": self._read, "ablation windows": self._ablated_on}
        return Account(evidence={"residual_layer": torch.tensor([len(self._layers) - 1])}, read=read)

    @classmethod
    def evaluate(
        cls, config: AttributionConfig, model: nn.ParameterDict, evidence: Mapping[str, Tensor], *, device: torch.device
    ) -> dict[str, float]:
        """How well the table's scores agree with its ablations."""
        table = {name: value_S.detach() for name, value_S in model.items()}
        scores, is_residual_S = {name: table[name] for name in config.scores}, table["layer"] == evidence["residual_layer"]
        found = correlations(table[REFERENCE], scores, config.score, is_residual_S)
        return found | {"units_ablated": len(is_residual_S)}

    def charts(self) -> list[Chart]:
        """Every score against ablation (Fig 11)."""
        return [draw_agreement(self._ablation_S, self._known(), self._is_residual())]
