"""Which documents make a corpus: clean, each once, up to so many bytes a domain, and of which split each is."""

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from trainables.laws import require
from trainables.llm.text_cleaning import cut, identity, is_readable
from trainables.llm.text_installed import DOMAINS
from trainables.llm.text_sources import Document, Source, read_documents
from trainables.llm.tokens import require_trainable

SPLITS = ("attribution", "training", "evaluation")
_SHARE = 128
"""A document takes at most this part of its domain's bytes, so that every split gets some of many documents."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CorpusConfig:
    """The documents of a corpus, and the tokenizer if it is trained on them.

    Source: arXiv:2505.15811, section 4: codeparrot/github-code, Python. Differs: several domains; without duplicates;
    disjoint splits by hash, where the authors split by position in the stream and report training loss.
    """

    sources: tuple[Source, ...] = tuple(Source(kind="installed", domain=domain) for domain in DOMAINS)
    """In this order; of the copies of a text the first stays. Default: Python, C++ and prose of the installed packages."""
    domains: tuple[str, ...] = ()
    """Which to keep, all of them must have documents; none named: all that the sources have."""
    domain_bytes: int | None = 2_000_000
    """Of UTF-8, at most, in each domain, from the documents that come first; None: all there are."""
    attribution_fraction: float = 0.1
    """Of the documents, about, in (0, 1): to score units by. Paper: 1024 documents."""
    evaluation_fraction: float = 0.1
    """Of the documents, about, in (0, 1): held out, to measure losses on. Paper: none."""
    vocabulary: int = 2048
    """Tokens of a tokenizer that is trained on the corpus; not used with a model's own."""
    seed: int = 0
    """Orders the files, of which the first are kept."""

    def __post_init__(self) -> None:
        sources = tuple(Source(**source) if isinstance(source, Mapping) else source for source in self.sources)
        object.__setattr__(self, "sources", sources)  # JSON makes dicts of sources and lists of tuples
        object.__setattr__(self, "domains", tuple(self.domains))
        require(bool(sources), "a corpus must have at least one source", "none", "name one, or leave the default")
        law = "domain_bytes must be at least 1000, or none"
        require(self.domain_bytes is None or self.domain_bytes >= 1000, law, self.domain_bytes, "use 2_000_000")
        require_trainable(self.vocabulary)
        for name in ("attribution_fraction", "evaluation_fraction"):
            require(0 < getattr(self, name) < 1, f"{name} must be in (0, 1)", getattr(self, name), "use 0.1")
        total = self.attribution_fraction + self.evaluation_fraction
        require(total < 1, "the fractions for attribution and evaluation must leave some to train on", total, "use 0.1 each")

    @property
    def named_domains(self) -> frozenset[str]:
        """Domains that are known before any document is read: each must have some."""
        return frozenset(self.domains) or frozenset(source.domain for source in self.sources if source.domain is not None)


@dataclasses.dataclass(slots=True)
class Selection:
    """The documents of a corpus, read anew by each iteration, with a count of what was left out of the last one."""

    config: CorpusConfig
    left_out: Counter[str] = dataclasses.field(default_factory=Counter)
    """Documents by reason: empty, unreadable, duplicate."""
    num_bytes: Counter[str] = dataclasses.field(default_factory=Counter)
    """Of UTF-8 that were kept, by domain."""

    def __iter__(self) -> Iterator[tuple[str, Document]]:
        """Split and document, in the order of the sources."""
        self.left_out.clear()
        self.num_bytes.clear()
        seen, full = set[str](), set[str]()
        for source in self.config.sources:
            for document in read_documents(source, self.config.seed):
                if self._possible(source) <= full:
                    break
                if not self._is_known(document.domain) or document.domain in full:
                    continue
                text = self._cut(document.text)
                split = self._split(document.text, text, seen)
                if split is not None and self._has_room(document.domain, text, full):
                    yield split, Document(domain=document.domain, text=text)

    def _possible(self, source: Source) -> frozenset[str]:
        """Domains that a source may still give; a name that none has where they are not known."""
        if source.domain is not None:
            return frozenset({source.domain} if self._is_known(source.domain) else ())
        return frozenset(self.config.domains) or frozenset({""})

    def _is_known(self, domain: str) -> bool:
        return not self.config.domains or domain in self.config.domains

    def _cut(self, text: str) -> str:
        """What is kept of a text."""
        limit = self.config.domain_bytes
        return text if limit is None else cut(text, math.ceil(limit / _SHARE))

    def _split(self, whole: str, text: str, seen: set[str]) -> str | None:
        """The split of a text; None if it is not worth keeping, or the whole or what is kept of it was seen before."""
        reason = "unreadable" if not is_readable(whole) else "empty" if not text.strip() else None
        names = [] if reason else [identity(part) for part in dict.fromkeys((whole, text))]
        if reason is None and not seen.isdisjoint(names):
            reason = "duplicate"  # long texts that start alike, as licences do, would be in several splits
        if reason is not None:
            self.left_out[reason] += 1
            return None
        seen.update(names)
        return split_of(names[0], self.config)

    def _has_room(self, domain: str, text: str, full: set[str]) -> bool:
        """Whether a domain has room for one more text; it is full when it has not."""
        limit, size = self.config.domain_bytes, len(text.encode())
        if limit is not None and self.num_bytes[domain] + size > limit:
            full.add(domain)
            return False
        self.num_bytes[domain] += size
        return True


def split_of(name: str, config: CorpusConfig) -> str:
    """Which split a document belongs to: by its identity alone, so that documents that are added move none.

    Larger fractions move documents out of training alone.
    """
    digest = hashlib.blake2b(name.encode(), digest_size=8, person=b"split").digest()
    place = int.from_bytes(digest, "little") / 2**64
    if place < config.evaluation_fraction:
        return "evaluation"
    return "attribution" if place >= 1 - config.attribution_fraction else "training"


def ingredients(config: CorpusConfig) -> dict[str, Any]:
    """The config as JSON values."""
    return {**dataclasses.asdict(config), "sources": [dataclasses.asdict(source) for source in config.sources]}
