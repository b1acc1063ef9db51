"""How a corpus becomes tensors that all trials of a study share: made once, never again where other files are installed.

A study's storage keeps them as one safetensors file of flat arrays, not as Parquet or Arrow: that is what `Shared` keeps whole
and knows again, its arrays are mapped as they are (Parquet's must be decoded), so that all trials of a machine read the same
pages, and a machine that trains needs neither pyarrow nor tokenizers. Domain and split are in an array's name.

Axes: N tokens of a split, D documents of a split.
"""

import json
import logging
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from trainables.laws import require
from trainables.llm.corpus_documents import SPLITS, CorpusConfig, Selection, ingredients
from trainables.llm.packed_files import as_bytes_tensor, unpack_files
from trainables.llm.text_sources import Document, check_source
from trainables.llm.tokens import TextTokenizer, tokenizer_of, train_tokenizer
from trainables.shared import Recipe

_VERSION = 2
"""Of the code that reads, cleans, splits and packs: another number makes other corpora."""
_DOCUMENTS_AT_ONCE = 256

logger = logging.getLogger(__name__)


def corpus_recipe(config: CorpusConfig, tokenizer: TextTokenizer | Recipe | None = None) -> Recipe:
    """How the corpus of a config is made: one for each config and tokenizer, whatever the files of a machine hold.

    What it makes: `trainables.llm.corpus.Corpus` reads it.

    Args:
        tokenizer: a model's own, or how it is made (`trainables.llm.pretrained.tokenizer_recipe`); None for one that is
            trained on the documents to train on.
    """
    own = tokenizer.fingerprint if isinstance(tokenizer, TextTokenizer) else None
    needs = {"tokenizer": tokenizer} if isinstance(tokenizer, Recipe) else {}

    def make(device: torch.device, given: Mapping[str, Mapping[str, Tensor]] = MappingProxyType({})) -> dict[str, Tensor]:
        if isinstance(tokenizer, Recipe):
            return make_corpus(config, tokenizer_of(unpack_files(given["tokenizer"])))
        return make_corpus(config, tokenizer)

    content = {"version": _VERSION, "tokenizer": own, **ingredients(config)}
    return Recipe(name="corpus", ingredients=content, make=make, needs=needs, check=lambda: _check_sources(config))


def _check_sources(config: CorpusConfig) -> None:
    for source in config.sources:
        check_source(source)


def make_corpus(config: CorpusConfig, tokenizer: TextTokenizer | None = None) -> dict[str, Tensor]:
    """Read, clean, split and pack the documents; the documents are read twice if a tokenizer is to be trained.

    Returns:
        `tokens/<split>/<domain>`: uint16_N, or int32_N where two bytes are too few, each document followed by the end token.
        `starts/<split>/<domain>`: int64_D, where documents start.
        `tokenizer.json` and `about.json`: uint8.

    Raises:
        ValueError: if a domain or a split has no documents, or a source is not there.
        ImportError: if a library is not installed that a source or the tokenizer needs.
    """
    selection = Selection(config)
    if tokenizer is None:
        texts = (document.text for split, document in selection if split == "training")
        tokenizer = train_tokenizer(texts, config.vocabulary)
    packs = _pack(selection, tokenizer)
    _require_documents(packs, config)
    largest_id = _largest_id(packs, tokenizer)
    dtype = torch.uint16 if largest_id < 2**16 else torch.int32
    tensors = {}
    for (split, domain), pack in sorted(packs.items()):
        tensors[f"tokens/{split}/{domain}"] = pack.tokens(dtype)
        tensors[f"starts/{split}/{domain}"] = torch.tensor(pack.starts, dtype=torch.int64)
    vocabulary = max(largest_id, tokenizer.largest_id) + 1
    about = {"largest_id": largest_id, "vocabulary": vocabulary, **_about(selection, packs, tokenizer)}
    logger.info("corpus: %s", about)
    texts_of = {"tokenizer.json": tokenizer.json, "about.json": json.dumps(about, sort_keys=True)}
    return tensors | {name: as_bytes_tensor(text.encode()) for name, text in texts_of.items()}


class _Pack:
    """The tokens of a split of a domain, one document after the other."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self._token = array("i")

    def add(self, ids: list[int], end_id: int) -> None:
        self.starts.append(len(self._token))
        self._token.extend(ids)
        self._token.append(end_id)

    def tokens(self, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.frombuffer(self._token, dtype=torch.int32).to(dtype)


def _pack(selection: Iterable[tuple[str, Document]], tokenizer: TextTokenizer) -> dict[tuple[str, str], _Pack]:
    packs: dict[tuple[str, str], _Pack] = defaultdict(_Pack)
    for chunk in _chunks(selection):
        for (split, document), ids in zip(chunk, tokenizer.encode([document.text for _, document in chunk]), strict=True):
            packs[split, document.domain].add(ids, tokenizer.end_id)
    return dict(packs)


def _chunks(selection: Iterable[tuple[str, Document]]) -> Iterator[list[tuple[str, Document]]]:
    chunk = []
    for item in selection:
        chunk.append(item)
        if len(chunk) == _DOCUMENTS_AT_ONCE:
            yield chunk
            chunk = []
    yield chunk


def _require_documents(packs: dict[tuple[str, str], _Pack], config: CorpusConfig) -> None:
    """Every domain must have documents, and every split of it."""
    found = {domain for _, domain in packs}
    missing = sorted(config.named_domains - found)
    remedy = "name sources that have some, or leave the domain out"
    require(not missing, "every domain of a corpus must have documents", f"none of {', '.join(missing)}", remedy)
    require(bool(found), "a corpus must have documents", "none", "name sources that have some")
    for domain in sorted(found):
        count = {split: len(packs[split, domain].starts) if (split, domain) in packs else 0 for split in SPLITS}
        law = f"every split of domain {domain} must have documents"
        got = " and ".join(f"none for {split}" for split in SPLITS if not count[split])
        require(not got, law, f"{got} of its {sum(count.values())}", "give it more documents or larger fractions")


def _largest_id(packs: dict[tuple[str, str], _Pack], tokenizer: TextTokenizer) -> int:
    """Of all windows; what a tokenizer says of itself may be less."""
    largest = max(int(pack.tokens().max()) for pack in packs.values())
    return largest if tokenizer.start_id is None else max(largest, tokenizer.start_id)


def _about(selection: Selection, packs: dict[tuple[str, str], _Pack], tokenizer: TextTokenizer) -> dict[str, Any]:
    num_documents = Counter[str]()
    for (_, domain), pack in packs.items():
        num_documents[domain] += len(pack.starts)
    return {
        "end_id": tokenizer.end_id,
        "start_id": tokenizer.start_id,
        "documents": dict(num_documents),
        "bytes": dict(selection.num_bytes),
        "left_out": dict(selection.left_out),
    }
