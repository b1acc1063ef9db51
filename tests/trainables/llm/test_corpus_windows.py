import dataclasses
import json
from pathlib import Path

import pytest
import torch
from corpus_texts import END, START, bytes_tokenizer, write_texts

from trainables.llm import corpus_recipe as recipe_module
from trainables.llm.corpus import Corpus, load_corpus
from trainables.llm.corpus_documents import SPLITS, CorpusConfig, Selection
from trainables.llm.corpus_recipe import corpus_recipe, make_corpus
from trainables.llm.packed_files import pack_files
from trainables.llm.text_sources import Source
from trainables.llm.tokens import IDS_FILE, train_tokenizer
from trainables.shared import Recipe, Shared
from trainables.storage import Folder

CPU = torch.device("cpu")


@pytest.fixture
def config(tmp_path):
    for domain in ("prose", "a/b"):
        write_texts(tmp_path / "in", domain, 40)
    sources = [Source(kind="files", where=str(tmp_path / "in" / domain), domain=domain) for domain in ("prose", "a/b")]
    return CorpusConfig(sources=tuple(sources), attribution_fraction=0.2, evaluation_fraction=0.2)


def test_documents_are_packed_one_after_the_other(config, monkeypatch):
    monkeypatch.setattr(recipe_module, "_DOCUMENTS_AT_ONCE", 7)
    corpus = Corpus.of(make_corpus(config, bytes_tokenizer()))
    assert corpus.domains == ("a/b", "prose")
    for domain in corpus.domains:
        for split in SPLITS:
            texts = [document.text for got, document in Selection(config) if (got, document.domain) == (split, domain)]
            expected = [token for text in texts for token in (*text.encode(), END)]
            assert corpus.tokens(domain, split).tolist() == expected
            assert corpus.tokens(domain, split).dtype == torch.uint16
            pieces = corpus.tokens(domain, split).to(torch.int32).tensor_split(corpus.starts(domain, split)[1:])
            assert [bytes(piece.tolist()[:-1]).decode() for piece in pieces] == texts
            assert all(piece[-1] == END for piece in pieces)
    assert corpus.about["documents"] == {"a/b": 40, "prose": 40}
    assert corpus.about["bytes"]["prose"] == sum(len(corpus.tokens("prose", split)) for split in SPLITS) - 40
    assert corpus.largest_id == END


def test_tokens_take_four_bytes_only_where_they_must(config):
    for shift, dtype in (65535 - 256, torch.uint16), (65536 - 256, torch.int32):
        tensors = make_corpus(config, bytes_tokenizer(shift=shift))
        assert {tensor.dtype for name, tensor in tensors.items() if name.startswith("tokens/")} == {dtype}
        corpus = Corpus.of(tensors)
        assert corpus.largest_id == corpus.tokens("prose", "training")[-1].item() == 256 + shift
        assert corpus.windows("prose", 5, 1, "training").min() > shift


@pytest.mark.parametrize("length", [1, 7, 64])
def test_windows_ask_for_every_token_once(config, length):
    corpus = Corpus.of(make_corpus(config, bytes_tokenizer()))
    token_N = corpus.tokens("prose", "training").long()
    count = corpus.num_windows("prose", "training", length)
    assert count == (len(token_N) - 1) // length
    window_WT = corpus.windows("prose", length, limit=10**6, split="training")
    assert window_WT.shape == (count, length + 1)
    assert window_WT.dtype == torch.int64
    assert torch.equal(window_WT[:, 1:].flatten(), token_N[1 : count * length + 1])
    assert torch.equal(window_WT[1:, 0], window_WT[:-1, -1])


def test_a_start_token_stands_before_every_window(config):
    corpus = Corpus.of(make_corpus(config, bytes_tokenizer(start_id=START)))
    token_N = corpus.tokens("prose", "evaluation").long()
    assert START not in token_N
    window_WT = corpus.windows("prose", 10, limit=10**6)
    assert window_WT.shape == (len(token_N) // 10, 11)
    assert (window_WT[:, 0] == START).all()
    assert torch.equal(window_WT[:, 1:].flatten(), token_N[: len(token_N) // 10 * 10])
    assert corpus.largest_id == START
    assert corpus.num_windows("prose", "evaluation", len(token_N)) == 1


def test_windows_for_evaluation_are_spread_and_limited(config):
    corpus = Corpus.of(make_corpus(config, bytes_tokenizer()))
    everything = corpus.windows("prose", 16, limit=10**6)
    some = corpus.windows("prose", 16, limit=5)
    places = [next(place for place, window in enumerate(everything) if torch.equal(window, one)) for one in some]
    assert places == [place * len(everything) // 5 for place in range(5)]
    assert torch.equal(some, corpus.windows("prose", 16, limit=5))


def test_what_is_shared_is_what_was_made(config, tmp_path):
    folder, made = tmp_path / "shared", Corpus.of(make_corpus(config, bytes_tokenizer()))
    first = load_corpus(Shared(Folder(folder)), config, bytes_tokenizer())
    again = load_corpus(Shared(Folder(folder)), config, bytes_tokenizer(), CPU)
    assert first.fingerprint() == again.fingerprint() == made.fingerprint()
    assert first.about == made.about
    assert torch.equal(first.windows("a/b", 8, 4), made.windows("a/b", 8, 4))
    assert len(list(folder.glob("corpus-*.safetensors"))) == 1
    assert corpus_recipe(config, bytes_tokenizer()).key != corpus_recipe(config, bytes_tokenizer(start_id=START)).key


def test_a_vocabulary_has_room_for_every_token_of_the_corpus_and_of_its_tokenizer(config):
    assert Corpus.of(make_corpus(config, bytes_tokenizer())).vocabulary == START + 1  # which no text gives
    too_modest = dataclasses.replace(bytes_tokenizer(), largest_id=3)
    assert Corpus.of(make_corpus(config, too_modest)).vocabulary == END + 1


def test_a_corpus_of_a_models_own_tokenizer_needs_it_and_is_the_same_as_if_it_were_given(config, tmp_path):
    pytest.importorskip("tokenizers")
    trained = train_tokenizer(["prose0-1 prose0-2"] * 9, 300)
    files = {"tokenizer.json": trained.json.encode(), IDS_FILE: json.dumps({"end_id": 7, "start_id": 9}).encode()}
    needed = Recipe(name="tokenizer", ingredients={}, make=lambda device: pack_files(files))
    recipe = corpus_recipe(config, needed)
    assert recipe.needs == {"tokenizer": needed}
    assert recipe.key not in {corpus_recipe(config).key, corpus_recipe(config, trained).key}
    corpus = Corpus.of(Shared(Folder(tmp_path / "shared")).get(recipe, CPU))
    direct = Corpus.of(make_corpus(config, dataclasses.replace(trained, end_id=7, start_id=9)))
    assert corpus.fingerprint() == direct.fingerprint()
    assert (corpus.end_id, corpus.start_id, corpus.tokenizer_json) == (7, 9, trained.json)


def test_sources_are_looked_at_before_a_corpus_is_made(config):
    corpus_recipe(config).check_all()
    gone = Source(kind="files", where="/nowhere/*.txt", domain="prose")
    with pytest.raises(ValueError, match=r"there must be a file at /nowhere/\*.txt"):
        corpus_recipe(dataclasses.replace(config, sources=(*config.sources, gone))).check_all()


def test_a_shared_file_is_mapped(config, tmp_path):
    corpus = load_corpus(Shared(Folder(tmp_path / "shared")), config, bytes_tokenizer())
    path = next((tmp_path / "shared").glob("*.safetensors"))
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if path.name in line]
    ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines]
    for domain in corpus.domains:
        address = corpus.tokens(domain, "training").data_ptr()
        assert any(low <= address < high for low, high in ranges)


def test_fingerprints_tell_corpora_apart(config):
    tensors = make_corpus(config, bytes_tokenizer())
    before = Corpus.of(tensors).fingerprint()
    token_N = tensors["tokens/training/prose"].to(torch.int32)
    token_N[3] += 1
    changed = {**tensors, "tokens/training/prose": token_N.to(torch.uint16)}
    assert Corpus.of(changed).fingerprint() != before == Corpus.of(dict(reversed(tensors.items()))).fingerprint()


def test_a_tokenizer_without_json_cannot_be_given_back(config):
    corpus = Corpus.of(make_corpus(config, bytes_tokenizer()))
    with pytest.raises(ValueError, match="must hold the tokenizer's JSON to give it back, but got none; use the tokenizer"):
        corpus.tokenizer()


@pytest.mark.parametrize(
    ("arguments", "law"),
    [
        (("rust", 8, 4), "a domain of the corpus must be one of a/b, prose, but got 'rust'; name one"),
        (("prose", 8, 4, "test"), "a split must be one of attribution, training, evaluation, but got 'test'; name one"),
        (("prose", 0, 4), "a sequence must have at least 1 token, but got 0; use"),
        (("prose", 8, 0), "there must be at least 1 window, but got 0; use"),
        (("prose", 10**6, 4), r"no longer than the \d+ tokens of domain prose for evaluation, but got 1000000; use shorter"),
    ],
)
def test_windows_that_are_not_there_are_refused(config, arguments, law):
    corpus = Corpus.of(make_corpus(config, bytes_tokenizer()))
    with pytest.raises(ValueError, match=law):
        corpus.windows(*arguments)


def test_a_sequence_may_be_as_long_as_the_split_allows(config):
    corpus = Corpus.of(make_corpus(config, bytes_tokenizer()))
    longest = len(corpus.tokens("prose", "evaluation")) - 1
    assert corpus.windows("prose", longest, 9).shape == (1, longest + 1)
    with pytest.raises(ValueError, match=f"no longer than the {longest} tokens .* but got {longest + 1}"):
        corpus.windows("prose", longest + 1, 9)
