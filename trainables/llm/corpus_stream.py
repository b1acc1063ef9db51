"""Batches of windows from a mixture of domains: any batch of a stream at any time, so that a checkpoint is one integer.

Axes: B sequences, T tokens that a sequence asks a model for, K domains of the mixture, W windows of a domain, C sequences that
are drawn at once.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from trainables.laws import require
from trainables.llm.corpus import Corpus, cut_window
from trainables.randomness import draw_words, stream_key

_CHUNK = 1 << 16  # sequences that are drawn and counted at once


class Mixture:
    """Which domain each sequence of an endless row is of, drawn by weight, and how many of its domain came before it.

    Args:
        weight_K: positive; only their ratios matter.
        key: from `trainables.randomness.stream_key`.
    """

    def __init__(self, weight_K: Tensor, key: int) -> None:
        edge_K = weight_K.to(torch.float64).cumsum(0)
        self._edge_K = edge_K / edge_K[-1]
        self._key = torch.tensor([key])
        self._counted = [torch.zeros(len(weight_K), dtype=torch.int64)]  # sequences of each domain before each chunk
        self._last: tuple[int, Tensor, Tensor] | None = None

    def draw(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Draw the sequences `first` to `first + count - 1`.

        Returns:
            domain_C: int64, 0..K-1.
            ordinal_C: int64, how many sequences of the same domain came before, from sequence 0 on.
        """
        chunks = range(first // _CHUNK, (first + count - 1) // _CHUNK + 1)
        drawn = [self._drawn(chunk) for chunk in chunks]
        within = slice(first % _CHUNK, first % _CHUNK + count)
        return torch.cat([domain_C for domain_C, _ in drawn])[within], torch.cat([ordinal_C for _, ordinal_C in drawn])[within]

    def _drawn(self, chunk: int) -> tuple[Tensor, Tensor]:
        """Domains and ordinals of a chunk; the last one is kept, for most batches are of one chunk."""
        if self._last is None or self._last[0] != chunk:
            domain_C = self._domains(chunk)
            is_domain_CK = domain_C[:, None] == torch.arange(len(self._edge_K))
            ordinal_CK = self._before(chunk) + is_domain_CK.cumsum(0) - 1
            self._last = chunk, domain_C, ordinal_CK.gather(1, domain_C[:, None])[:, 0]
        return self._last[1:]

    def _before(self, chunk: int) -> Tensor:
        """Count the domains of all chunks before this one; of each only once."""
        while len(self._counted) <= chunk:
            domain_C = self._domains(len(self._counted) - 1)
            self._counted.append(self._counted[-1] + domain_C.bincount(minlength=len(self._edge_K)))
        return self._counted[chunk]

    def _domains(self, chunk: int) -> Tensor:
        word_C = draw_words(self._key, chunk * _CHUNK, _CHUNK)[0]
        uniform_C = ((word_C >> 11) & ((1 << 53) - 1)).to(torch.float64) * 2.0**-53
        return torch.searchsorted(self._edge_K[:-1].contiguous(), uniform_C, right=True)


class Stream:
    """An endless row of batches from one split. In a domain, each epoch is a new permutation of all its windows.

    Two streams of the same arguments give the same batches, in any process; what was asked for before does not matter.

    Source: arXiv:2505.15811, section 4. Differs: packed windows, where the authors pad one truncated document to each sequence;
    a mixture of domains; shuffled.

    Args:
        weights: how much of each domain, by name, >= 0: shares of the sequences, once divided by their sum.
        length: T, tokens that each sequence asks for.
        batch_size: B, sequences of a batch.
        seed: of the mixture and the permutations.
        split: `training`, or another one.

    Raises:
        ValueError: if a weight is negative or not finite, all are 0, a domain or the split is not known, a domain's split is
            shorter than `length`, or a number is not positive.
    """

    def __init__(
        self, corpus: Corpus, *, weights: Mapping[str, float], length: int, batch_size: int, seed: int, split: str = "training"
    ) -> None:
        require_weights(weights, corpus)
        require(batch_size >= 1, "a batch must have at least 1 sequence", batch_size, "use 16 or so")
        self._start_id, self._length, self._batch_size, self._seed, self._split = corpus.start_id, length, batch_size, seed, split
        self._domains = sorted(domain for domain, weight in weights.items() if weight > 0)
        weight_K = torch.tensor([weights[domain] for domain in self._domains], dtype=torch.float64)
        self._mixture = Mixture(weight_K, stream_key(seed, split, "mixture"))
        self._tokens = {domain: corpus.tokens(domain, split) for domain in self._domains}
        self._num_windows = {domain: corpus.num_windows(domain, split, length) for domain in self._domains}
        self._orders: dict[str, tuple[int, Tensor]] = {}

    @property
    def tokens_per_batch(self) -> int:
        """How many tokens a batch asks a model for, B x T: none is padding."""
        return self._batch_size * self._length

    def batch(self, index: int) -> Tensor:
        """Make a batch.

        Args:
            index: from 0 on.

        Returns:
            token_BT: int64, B x (T + 1): a model reads all but the last token and is asked for all but the first.
        """
        require(index >= 0, "a batch's index must be at least 0", index, "count batches from 0")
        domain_B, ordinal_B = self._mixture.draw(index * self._batch_size, self._batch_size)
        drawn = zip(domain_B.tolist(), ordinal_B.tolist(), strict=True)
        return torch.stack([self._sequence(self._domains[domain], ordinal) for domain, ordinal in drawn])

    def _sequence(self, domain: str, ordinal: int) -> Tensor:
        epoch, step = divmod(ordinal, self._num_windows[domain])
        return cut_window(self._tokens[domain], self._length, int(self._order(domain, epoch)[step]), self._start_id)

    def _order(self, domain: str, epoch: int) -> Tensor:
        """The permutation of an epoch: place_W. The last one of each domain is kept."""
        known = self._orders.get(domain)
        if known is None or known[0] != epoch:
            key = stream_key(self._seed, self._split, "windows", domain, epoch)
            # not torch.randperm: another torch may draw others with it
            place_W = draw_words(torch.tensor([key]), 0, self._num_windows[domain])[0].argsort(stable=True)
            known = self._orders[domain] = epoch, place_W
        return known[1]


def require_weights(weights: Mapping[str, float], corpus: Corpus) -> None:
    """Refuse weights that are no mixture of a corpus' domains.

    Raises:
        ValueError: if a weight is negative or not finite, all are 0, or a domain is not known.
    """
    unknown = sorted(set(weights) - set(corpus.domains))
    law = f"a mixture's domains must be of the corpus ({', '.join(corpus.domains)})"
    require(not unknown, law, ", ".join(unknown), "name its domains")
    law = "a mixture's weights must be at least 0 and finite"
    require(all(0 <= weight < float("inf") for weight in weights.values()), law, dict(weights), "use shares, such as 0.5")
    require(sum(weights.values()) > 0, "a mixture must have a weight above 0", dict(weights), "give a domain some")
