import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("tokenizers")

import tokenizers

from trainables.llm.tokens import END, own_tokenizer, require_fits, tokenizer_from_json, train_tokenizer

TEXTS = ["def f(x):\n    return x + 1\n" * 3, "the quick brown fox jumps over the lazy dog\n" * 3, "Grüße aus Köln 世界 🌍"] * 20
HARD = [
    "",
    " ",
    "\n\n\t  x",
    "Grüße, 世界 🌍👩‍👩‍👧",
    "\r\n",
    "\0\x7f",
    "مرحبا",
    "a\u0301",
    "<|end|>",
    "x<|end|><|end|> y",
    "  \u00a0 ",
]


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(TEXTS, 300)


def test_a_text_comes_back(trained):
    for text, ids in zip(HARD, trained.encode(HARD), strict=True):
        assert trained.decode(ids) == text
        assert trained.end_id not in ids
        assert all(0 <= token <= trained.largest_id for token in ids)


def test_frequent_pairs_are_tokens(trained):
    assert trained.largest_id == 299
    short, long = trained.encode(["return", "~" * 6])
    assert len(short) < len(long) == 6
    assert train_tokenizer(["ab"], 1000).largest_id == 257  # all bytes, the end, and the one pair


def test_the_end_has_a_name_of_its_own(trained):
    assert trained.decode([trained.end_id]) == END
    assert trained.start_id is None


def test_a_tokenizer_survives_its_json(trained, tmp_path):
    (tmp_path / "tokenizer.json").write_text(trained.json)
    again = tokenizer_from_json((tmp_path / "tokenizer.json").read_text(), end_id=trained.end_id)
    assert again.encode(HARD) == trained.encode(HARD)
    assert again.fingerprint == trained.fingerprint
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert library.encode(TEXTS[0]).ids == trained.encode(TEXTS)[0]
    assert tokenizer_from_json(trained.json, end_id=1).fingerprint != trained.fingerprint


def test_the_same_texts_give_the_same_tokenizer_in_any_process(trained):
    code = (
        "import json, sys; from trainables.llm.tokens import train_tokenizer\n"
        "print(train_tokenizer(json.load(sys.stdin), 300).json)"
    )
    for seed, threads in ("1", "1"), ("2", "3"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        result = subprocess.run(
            [sys.executable, "-c", code], input=json.dumps(TEXTS), env=environment, capture_output=True, text=True, check=True
        )
        assert result.stdout.strip() == trained.json


def test_truncation_and_padding_of_a_tokenizer_do_not_reach_a_corpus(trained):
    library = tokenizers.Tokenizer.from_str(trained.json)
    library.enable_truncation(4)
    library.enable_padding(length=4)
    assert own_tokenizer(library, end_id=0).encode(TEXTS[:2]) == trained.encode(TEXTS[:2])


def transformers_tokenizer(trained, *, adds_start):
    transformers = pytest.importorskip("transformers")
    library = tokenizers.Tokenizer.from_str(trained.json)
    library.add_special_tokens(["<s>"])
    if adds_start:
        start = [("<s>", library.token_to_id("<s>"))]
        library.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=start)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=library, eos_token=END, bos_token="<s>")


@pytest.mark.parametrize("adds_start", [True, False])
def test_a_model_s_own_tokenizer_is_taken(trained, adds_start):
    theirs = transformers_tokenizer(trained, adds_start=adds_start)
    own = own_tokenizer(theirs)
    assert own.end_id == theirs.eos_token_id == trained.end_id
    assert own.start_id == (theirs.bos_token_id if adds_start else None)
    assert own.largest_id == (300 if adds_start else 299)
    assert own.encode(HARD) == trained.encode(HARD)
    assert own.encode(TEXTS[:1]) == [theirs.encode(TEXTS[0], add_special_tokens=False)]
    assert [own.decode(ids) for ids in own.encode(HARD)] == HARD


class Characters:
    def encode(self, text):
        return [ord(character) for character in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


def test_anything_that_can_encode_is_taken():
    own = own_tokenizer(Characters(), end_id=0)
    assert own.encode(["ab", ""]) == [[97, 98], []]
    assert own.decode([97, 98]) == "ab"
    assert (own.json, own.end_id, own.start_id) == ("", 0, None)
    assert (
        own.fingerprint == own_tokenizer(Characters(), end_id=0).fingerprint != own_tokenizer(Characters(), end_id=1).fingerprint
    )


def test_a_tokenizer_without_an_end_is_refused():
    with pytest.raises(ValueError, match="a tokenizer must have an end token, but got none; give its number as end_id"):
        own_tokenizer(Characters())


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(trained):
    require_fits(trained.largest_id, 300)
    law = "a tokenizer must fit the model, with tokens in 0..298, but got a token 299; use the model's own tokenizer"
    with pytest.raises(ValueError, match=law):
        require_fits(trained.largest_id, 299)


@pytest.mark.parametrize("vocabulary", [0, 256, 65537])
def test_a_vocabulary_that_cannot_be_trained_is_refused(vocabulary):
    with pytest.raises(ValueError, match=rf"must be in 257..65536, but got {vocabulary}; use 2048"):
        train_tokenizer(TEXTS, vocabulary)


def test_a_machine_without_the_library_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"the library tokenizers must be installed .* but got .*; pip install tokenizers"):
        train_tokenizer(TEXTS, 300)


def test_the_largest_token_is_one_that_a_text_can_give(trained):
    library = tokenizers.Tokenizer.from_str(trained.json)
    library.add_tokens(["wholeword"])
    library.add_special_tokens(["<image>"])  # Gemma 3 has one beyond the rows of its model
    own = own_tokenizer(library, end_id=0)
    assert own.encode(["wholeword"]) == [[300]]
    assert own.largest_id == 300
    assert max(own.encode(["<image>"])[0]) < 300
