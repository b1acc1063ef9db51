"""From texts to tokens and back: a model's own tokenizer, or one trained on a corpus.

A tokenizer here adds no token by itself, and takes what a text says for text: `<|endoftext|>` in a source file is no end.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from trainables.laws import require

END = "<|end|>"
"""What the end token of a trained tokenizer is called."""
MIN_VOCABULARY, MAX_VOCABULARY = 257, 65536
"""Of a trained tokenizer: all bytes and the end token; all that two bytes can tell apart."""
IDS_FILE = "narrow_study_ids.json"
"""Tells what a tokenizer.json does not: end_id and start_id."""
_PROBE = "def f(x):\n\treturn x**2  # Grüße, 世界 🌍\r\n0123456789 <a href='b'>C++ \\ \"quoted\"</a>"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TextTokenizer:
    """Numbers for texts."""

    encode: Callable[[Sequence[str]], list[list[int]]]
    """The tokens of each text."""
    decode: Callable[[Sequence[int]], str]
    """The text of tokens; special tokens by their names."""
    end_id: int
    """Stands after every document."""
    start_id: int | None
    """Stands before all else where the model was trained so (Llama, Gemma); None where it was not."""
    largest_id: int
    """That a text can give, as far as the tokenizer tells, `end_id` and `start_id` included."""
    json: str
    """A tokenizer.json; empty for a tokenizer that has none."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits that tell the tokenizer: of its JSON, or of what it makes of a text."""
        content = self.json or repr((self.largest_id, self.encode([_PROBE])))
        return hashlib.sha256(repr((content, self.end_id, self.start_id)).encode()).hexdigest()[:16]


def tokenizer_from_json(text: str, *, end_id: int, start_id: int | None = None) -> TextTokenizer:
    """Make a tokenizer of a tokenizer.json's content.

    Raises:
        ImportError: if the library `tokenizers` is not installed.
    """
    backend = _tokenizers().Tokenizer.from_str(text)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True  # as text; it is no part of the JSON
    plain = {token for token, added in backend.get_added_tokens_decoder().items() if not added.special}

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(ids: Sequence[int]) -> str:
        return str(backend.decode(list(ids), skip_special_tokens=False))

    known = {*backend.get_vocab(with_added_tokens=False).values(), *plain, end_id, end_id if start_id is None else start_id}
    return TextTokenizer(encode=encode, decode=decode, end_id=end_id, start_id=start_id, largest_id=max(known), json=text)


def tokenizer_of(files: Mapping[str, bytes]) -> TextTokenizer:
    """Make a tokenizer of its tokenizer.json and the file that names its ids, by their names."""
    ids = json.loads(files[IDS_FILE])
    return tokenizer_from_json(files["tokenizer.json"].decode(), end_id=ids["end_id"], start_id=ids["start_id"])


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> TextTokenizer:
    """Train a byte-level BPE; the same one for the same texts, in any process.

    Args:
        vocabulary: tokens at most, the end token and 256 bytes among them; fewer if the texts have no more pairs to merge.

    Raises:
        ValueError: if the vocabulary is out of its range.
        ImportError: if the library `tokenizers` is not installed.
    """
    require_trainable(vocabulary)
    library = _tokenizers()
    backend = library.Tokenizer(library.models.BPE())
    backend.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return tokenizer_from_json(backend.to_str(), end_id=backend.token_to_id(END))


def require_trainable(vocabulary: int) -> None:
    """Refuse a number of tokens that no tokenizer can be trained to."""
    law = f"the vocabulary of a trained tokenizer must be in {MIN_VOCABULARY}..{MAX_VOCABULARY}"
    require(MIN_VOCABULARY <= vocabulary <= MAX_VOCABULARY, law, vocabulary, "use 2048")


def own_tokenizer(tokenizer: Any, *, end_id: int | None = None, start_id: int | None = None) -> TextTokenizer:
    """Take a model's own tokenizer: of transformers, of tokenizers, or any object that can `encode` and `decode` a text.

    Args:
        end_id: unless the tokenizer has an `eos_token_id`.
        start_id: unless the tokenizer puts its `bos_token_id` before a text by itself.

    Raises:
        ValueError: if there is no end token.
    """
    end_id = getattr(tokenizer, "eos_token_id", None) if end_id is None else end_id
    require(end_id is not None, "a tokenizer must have an end token", "none", "give its number as end_id")
    start_id = _start_id(tokenizer) if start_id is None else start_id
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "to_str"):
        return tokenizer_from_json(backend.to_str(), end_id=int(end_id or 0), start_id=start_id)
    return _any_tokenizer(tokenizer, end_id=int(end_id or 0), start_id=start_id)


def require_fits(largest_id: int, vocabulary: int) -> None:
    """Refuse tokens that a model does not know.

    Args:
        largest_id: of a tokenizer (before a corpus is made) or of a corpus (exactly what the model will see).
        vocabulary: rows of the model's embedding.

    Raises:
        ValueError: if a token has no row.
    """
    law = f"a tokenizer must fit the model, with tokens in 0..{vocabulary - 1}"
    require(largest_id < vocabulary, law, f"a token {largest_id}", "use the model's own tokenizer or a larger vocabulary")


def _any_tokenizer(tokenizer: Any, *, end_id: int, start_id: int | None) -> TextTokenizer:
    # one of transformers would add tokens unless told not to; others do not know the argument
    plain = {"add_special_tokens": False} if hasattr(tokenizer, "all_special_ids") else {}

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [[int(token) for token in tokenizer.encode(text, **plain)] for text in texts]

    ids = tokenizer.get_vocab().values() if hasattr(tokenizer, "get_vocab") else encode([_PROBE])[0]
    largest = max({*ids, end_id, end_id if start_id is None else start_id})
    return TextTokenizer(encode=encode, decode=tokenizer.decode, end_id=end_id, start_id=start_id, largest_id=largest, json="")


def _start_id(tokenizer: Any) -> int | None:
    """The token that a tokenizer of transformers puts before a text by itself."""
    start_id = getattr(tokenizer, "bos_token_id", None)
    if start_id is None:
        return None
    first = [int(token) for token in tokenizer.encode("a")][:1]
    return int(start_id) if first == [start_id] else None


def _tokenizers() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError as error:
        law = "the library tokenizers must be installed to turn texts into tokens"
        raise ImportError(f"{law}, but got {error}; pip install tokenizers") from error
    return tokenizers
