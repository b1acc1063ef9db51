"""What one narrowing trial reads: windows to score units and to measure losses on, and batches to train on.

Axes: W windows, T tokens that a window asks a model for.
"""

import torch
from torch import Tensor, nn

from trainables.laws import require
from trainables.llm.corpus import Corpus
from trainables.llm.corpus_stream import Stream
from trainables.llm.narrowing_config import NarrowingConfig, Stage
from trainables.llm.tokens import require_fits
from trainables.llm.training import Training, mean_loss_nats
from trainables.randomness import stream_key

_TOKENS_AT_ONCE = 8192  # that losses are measured on


class Texts:
    """The texts of a corpus, as one config reads them.

    Attributes:
        others: the domains beside the kept one, ascending.

    Raises:
        ValueError: if the corpus has not the kept domain and another, or a split is shorter than a window.
    """

    def __init__(self, config: NarrowingConfig, corpus: Corpus) -> None:
        self._config, self._corpus = config, corpus
        self.others = [domain for domain in corpus.domains if domain != config.kept_domain]
        law = f"a corpus must have {config.kept_domain!r} and another domain"
        is_fit = config.kept_domain in corpus.domains and bool(self.others)
        require(is_fit, law, ", ".join(corpus.domains), "name a kept_domain of it, or add sources")
        self._windows = {
            domain: corpus.windows(domain, config.window_length, config.evaluation_windows) for domain in corpus.domains
        }

    def require_readable(self, model: nn.Module) -> None:
        """Refuse a model that does not know the corpus' tokens, or takes no sequences of the lengths that it is to read.

        Raises:
            ValueError: naming what does not fit.
        """
        rows = next(module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding))
        require_fits(self._corpus.largest_id, rows)
        limit = getattr(model.config, "max_position_embeddings", None)
        if limit is None:
            return
        config = self._config
        lengths = {f"{stage}.length": training.length for stage, training in config.trainings.items()}
        for name, length in ({"window_length": config.window_length} | lengths).items():
            law = f"{name} must be at most the model's limit of {limit} tokens"
            require(length <= limit, law, length, "use shorter sequences")
        shows_all = config.method == "attribution"  # also a window's last token, of which nothing is asked
        law = f"window_length must be below the model's limit of {limit} tokens for attribution"
        require(config.window_length < limit or not shows_all, law, config.window_length, "use shorter windows")

    def score_windows(self) -> Tensor:
        """Of the kept domain, to score units on: token_WT, W x (T + 1)."""
        config = self._config
        return self._corpus.windows(config.kept_domain, config.window_length, config.score_windows, "attribution")

    def stream(self, stage: Stage, training: Training) -> Stream:
        """The batches that a stage trains on."""
        seed = stream_key(self._config.seed, stage)
        weights = self._weights(stage)
        return Stream(self._corpus, weights=weights, length=training.length, batch_size=training.batch_size, seed=seed)

    def _weights(self, stage: Stage) -> dict[str, float]:
        config = self._config
        given = config.other_weights or dict.fromkeys(self.others, 1.0)
        share = {"lasso": config.lasso_breadth, "recovery": config.breadth, "relearning": 1.0}[stage]
        # what is taught again is all that was to be forgotten, whatever the mixture before
        others = dict.fromkeys(self.others, 1.0) if stage == "relearning" else given
        total = sum(others.values())
        return {config.kept_domain: 1 - share} | {domain: share * weight / total for domain, weight in others.items()}

    def evaluation_windows(self) -> dict[str, Tensor]:
        """What losses are measured on, by domain: window_WT, in as few bytes as its tokens take."""
        dtype = torch.uint16 if self._corpus.largest_id < 2**16 else torch.int32
        return {domain: window_WT.to(dtype) for domain, window_WT in self._windows.items()}

    def loss_nats(self, model: nn.Module, domain: str) -> float:
        """Held-out loss of a domain.

        Raises:
            DivergedError: if it is not finite.
        """
        return held_out_loss_nats(model, self._windows[domain])

    def losses(self, model: nn.Module) -> dict[str, float]:
        """Held-out losses of all domains."""
        return {domain: self.loss_nats(model, domain) for domain in self._windows}


def held_out_loss_nats(model: nn.Module, window_WT: Tensor) -> float:
    """Mean loss a token of windows, of which each asks for T tokens.

    Raises:
        DivergedError: if it is not finite.
    """
    batch_size = max(1, _TOKENS_AT_ONCE // (window_WT.shape[1] - 1))
    return mean_loss_nats(model, window_WT, batch_size=batch_size)
