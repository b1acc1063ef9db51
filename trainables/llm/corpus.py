"""The tokens of a corpus, by domain and split, and windows of them that a model reads.

Windows are packed: no padding, and a window may begin within a document and reach into the next.

Axes: N tokens of a split, D documents of a split, W windows, T tokens that a window asks a model for.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from trainables.laws import require
from trainables.llm.corpus_documents import SPLITS, CorpusConfig
from trainables.llm.corpus_recipe import corpus_recipe
from trainables.llm.tokens import TextTokenizer, tokenizer_from_json
from trainables.shared import Shared


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Corpus:
    """What `trainables.llm.corpus_recipe` makes, as the storage gives it. Tokens stay where they are, mapped or in memory."""

    tensors: Mapping[str, Tensor]
    """By name: see `trainables.llm.corpus_recipe.make_corpus`."""
    about: Mapping[str, Any]
    """end_id, start_id, largest_id, vocabulary; documents and bytes of each domain; left_out: documents by reason."""
    domains: tuple[str, ...]
    """Sorted."""

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Take the tensors of a recipe."""
        domains = sorted({name.split("/", 2)[2] for name in tensors if name.startswith("tokens/")})
        return cls(tensors=tensors, about=json.loads(_text(tensors["about.json"])), domains=tuple(domains))

    @property
    def end_id(self) -> int:
        """The token after every document."""
        return int(self.about["end_id"])

    @property
    def start_id(self) -> int | None:
        """The token at the start of every window, if the tokenizer has one."""
        start_id = self.about["start_id"]
        return None if start_id is None else int(start_id)

    @property
    def tokenizer_json(self) -> str:
        """The content of a tokenizer.json, to save beside a model; empty if the tokenizer had none."""
        return _text(self.tensors["tokenizer.json"])

    def tokenizer(self) -> TextTokenizer:
        """Make the tokenizer anew.

        Raises:
            ValueError: if it had no JSON.
            ImportError: if the library `tokenizers` is not installed.
        """
        law = "a corpus must hold the tokenizer's JSON to give it back"
        require(self.tokenizer_json != "", law, "none", "use the tokenizer that it was made with")
        return tokenizer_from_json(self.tokenizer_json, end_id=self.end_id, start_id=self.start_id)

    @property
    def largest_id(self) -> int:
        """The largest token that any window holds: for `trainables.llm.tokens.require_fits`."""
        return int(self.about["largest_id"])

    @property
    def vocabulary(self) -> int:
        """How many tokens a model must know to read whatever the tokenizer makes of a text."""
        return int(self.about["vocabulary"])

    def fingerprint(self) -> str:
        """16 hex digits of all tokens: what a model that was trained on them depends on; reads all of them."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
            digest.update(tensor.numpy().data)
        return digest.hexdigest()[:16]

    def tokens(self, domain: str, split: str) -> Tensor:
        """All tokens of a split of a domain.

        Returns:
            token_N: uint16 or int32; not for writing.

        Raises:
            ValueError: if there is no such domain or split.
        """
        law = f"a domain of the corpus must be one of {', '.join(self.domains)}"
        require(domain in self.domains, law, repr(domain), "name one of them")
        require(split in SPLITS, f"a split must be one of {', '.join(SPLITS)}", repr(split), "name one of them")
        return self.tensors[f"tokens/{split}/{domain}"]

    def starts(self, domain: str, split: str) -> Tensor:
        """Where the documents of a split of a domain start: start_D, int64; each ends with the token before the next."""
        self.tokens(domain, split)
        return self.tensors[f"starts/{split}/{domain}"]

    def num_windows(self, domain: str, split: str, length: int) -> int:
        """How many windows a split has, of which each asks for `length` tokens of its own.

        Raises:
            ValueError: if the length is not positive, or longer than the split.
        """
        require(length >= 1, "a sequence must have at least 1 token", length, "use 256 or so")
        num_tokens = len(self.tokens(domain, split))
        longest = num_tokens - 1 if self.start_id is None else num_tokens
        law = f"a sequence must be no longer than the {longest} tokens of domain {domain} for {split}"
        require(length <= longest, law, length, "use shorter sequences or more documents")
        return longest // length

    def window(self, domain: str, split: str, length: int, place: int) -> Tensor:
        """Cut out one window.

        Args:
            length: T.
            place: 0..num_windows-1; windows follow each other in the order of the documents.

        Returns:
            T + 1 tokens, int64: a model reads all but the last and is asked for all but the first. The first is the start token,
            or without one the last token of the window before: no token is asked for twice, and only a split's first may never
            be asked for.
        """
        return cut_window(self.tokens(domain, split), length, place, self.start_id)

    def windows(self, domain: str, length: int, limit: int, split: str = "evaluation") -> Tensor:
        """Windows of a domain, the same each time, spread evenly over its split: to measure losses on, or to score units by.

        Args:
            length: T.
            limit: windows at most; all there are, if they are fewer.

        Returns:
            window_WT: int64, W x (T + 1), as `window` cuts them.

        Raises:
            ValueError: if the domain or the split is not known, the length does not fit, or the limit is not positive.
        """
        require(limit >= 1, "there must be at least 1 window", limit, "use 64 or so")
        available = self.num_windows(domain, split, length)
        count = min(limit, available)
        return torch.stack([self.window(domain, split, length, place * available // count) for place in range(count)])


def cut_window(token_N: Tensor, length: int, place: int, start_id: int | None) -> Tensor:
    """Cut one window out of a split's tokens, as `Corpus.window` says."""
    first = place * length
    if start_id is None:
        return token_N[first : first + length + 1].to(torch.int64)
    return torch.cat([torch.tensor([start_id]), token_N[first : first + length].to(torch.int64)])


def load_corpus(
    shared: Shared, config: CorpusConfig, tokenizer: TextTokenizer | None = None, device: torch.device | None = None
) -> Corpus:
    """Read the corpus that the trials of a study share, after making it if nobody has.

    Raises:
        ValueError, ImportError: as `trainables.llm.corpus_recipe.make_corpus` does.
        StorageError: if the storage fails.
    """
    return Corpus.of(shared.get(corpus_recipe(config, tokenizer), device or torch.device("cpu")))


def _text(byte_N: Tensor) -> str:
    return bytes(byte_N.numpy()).decode()
