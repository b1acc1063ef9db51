import itertools
import sys
from types import SimpleNamespace

import pytest
from corpus_texts import bytes_tokenizer, write_texts

from trainables.llm.corpus_documents import SPLITS, CorpusConfig, Selection
from trainables.llm.corpus_recipe import make_corpus
from trainables.llm.text_cleaning import cut, identity, is_readable
from trainables.llm.text_sources import Source

HALVES = {"attribution_fraction": 0.3, "evaluation_fraction": 0.3, "domain_bytes": None}


def config(folder, *domains, **settings):
    sources = tuple(Source(kind="files", where=str(folder / domain), domain=domain) for domain in domains)
    return CorpusConfig(sources=sources, **{**HALVES, **settings})


def split_by_text(settings):
    selected = list(Selection(settings))
    assert len({document.text for _, document in selected}) == len(selected)
    return {document.text: split for split, document in selected}


LICENCE = "MIT License\n\nCopyright (c) 2020 A. B.\n\nPermission is hereby granted, free of charge"


@pytest.mark.parametrize(
    "copy",
    [
        LICENCE.replace("\n", "\n\n   ") + "\t\n",
        LICENCE.replace("hereby granted, ", "hereby\ngranted,\n"),
        LICENCE.replace("2020 A. B.", "2021-2024 The Others and contributors"),
        LICENCE.replace("Copyright (c)", "# © Copyright"),
    ],
)
def test_copies_are_known_by_their_words(copy):
    assert identity(copy) == identity(LICENCE)


@pytest.mark.parametrize("other", [LICENCE.replace("free", "not free"), LICENCE.lower(), LICENCE + ","])
def test_other_words_are_another_text(other):
    assert identity(other) != identity(LICENCE)


def test_copyright_lines_alone_and_paragraphs_about_copyright_are_texts():
    assert identity("Copyright 2020 A") != identity("Copyright 2021 B")
    paragraph = "Whoever writes a text has a copyright. " + "It lasts for many years after the death of its author. " * 5
    assert identity(paragraph) != identity(paragraph.replace("many", "seventy"))


@pytest.mark.parametrize(
    ("text", "readable"),
    [
        ("def f():\n    return 1\n", True),
        ("one paragraph on a line " * 100, True),
        ("\u4e16\u754c" * 1000, True),
        ("nothing\0here", False),
        ("a = '" + "QUJD" * 200 + "'", False),
        ("1, 2, 3, " * 2000, False),
        ("half a pair \ud83d", False),
    ],
)
def test_what_nobody_wrote_to_be_read_is_known(text, readable):
    assert is_readable(text) is readable


@pytest.mark.parametrize(
    ("text", "max_bytes", "expected"),
    [("short", 5, "short"), ("one\ntwo\n", 7, "one\n"), ("shorter", 5, "short"), ("äää", 5, "ää")],
)
def test_texts_are_cut_at_lines_and_between_characters(text, max_bytes, expected):
    assert cut(text, max_bytes) == expected


def test_a_text_is_kept_once_and_only_if_it_is_one(tmp_path):
    texts = write_texts(tmp_path, "prose", 6)
    write_texts(tmp_path, "code", 3)
    for name, text in {"copy.txt": f"  {texts[0]}\n\n", "empty.txt": " \n", "nothing.txt": "", "data.txt": "x" * 900}.items():
        (tmp_path / "prose" / name).write_text(text)
    (tmp_path / "code" / "copy.txt").write_text(texts[1])
    selection = Selection(config(tmp_path, "prose", "code"))
    kept = [document for _, document in selection]
    assert len([document for document in kept if document.domain == "prose"]) == 6
    assert len([document for document in kept if document.domain == "code"]) == 3
    assert selection.left_out == {"duplicate": 2, "empty": 2, "unreadable": 1}
    assert selection.num_bytes["prose"] == sum(len(document.text) for document in kept if document.domain == "prose")
    assert [document for _, document in selection] == kept
    assert selection.left_out == {"duplicate": 2, "empty": 2, "unreadable": 1}


def test_splits_are_disjoint_complete_and_of_the_asked_size(tmp_path):
    texts = write_texts(tmp_path, "prose", 400)
    split = split_by_text(config(tmp_path, "prose", attribution_fraction=0.2, evaluation_fraction=0.3))
    assert set(split) == set(texts)
    share = {name: sum(got == name for got in split.values()) / 400 for name in SPLITS}
    for name, fraction in {"attribution": 0.2, "training": 0.5, "evaluation": 0.3}.items():
        assert abs(share[name] - fraction) < 4 * (fraction * (1 - fraction) / 400) ** 0.5


def test_documents_that_are_added_move_none(tmp_path):
    write_texts(tmp_path, "prose", 100)
    before = split_by_text(config(tmp_path, "prose"))
    write_texts(tmp_path, "prose", 300)
    write_texts(tmp_path, "code", 50)
    after = split_by_text(config(tmp_path, "code", "prose", seed=5))
    assert before.items() <= after.items()
    assert len(after) == 350


def test_a_larger_fraction_takes_from_training_alone(tmp_path):
    write_texts(tmp_path, "prose", 200)
    small, large = (
        split_by_text(config(tmp_path, "prose", attribution_fraction=fraction, evaluation_fraction=fraction))
        for fraction in (0.1, 0.3)
    )
    moved = {(small[text], large[text]) for text in small if small[text] != large[text]}
    assert moved == {("training", "attribution"), ("training", "evaluation")}


def test_a_domain_has_so_many_bytes_at_most(tmp_path):
    write_texts(tmp_path, "prose", 200, words=200)
    write_texts(tmp_path, "code", 3, words=3)
    selection = Selection(config(tmp_path, "prose", "code", domain_bytes=20_000))
    sizes = [len(document.text) for _, document in selection if document.domain == "prose"]
    assert max(sizes) <= 157  # a 128th, rounded up
    assert 20_000 - 157 < sum(sizes) <= 20_000
    assert selection.num_bytes["prose"] == sum(sizes)
    everything = [document.text for _, document in Selection(config(tmp_path, "prose"))]
    assert [text[:157] for text in everything[: len(sizes)]] == [
        document.text for _, document in selection if document.domain == "prose"
    ]


def test_texts_that_start_alike_are_copies_once_they_are_cut(tmp_path):
    (tmp_path / "prose").mkdir()
    for number in range(5):
        (tmp_path / "prose" / f"{number}.txt").write_text("The same licence.\n" * 100 + f"With appendix {number}.\n")
    assert len(list(Selection(config(tmp_path, "prose")))) == 5
    selection = Selection(config(tmp_path, "prose", domain_bytes=20_000))
    assert len(list(selection)) == 1
    assert selection.left_out == {"duplicate": 4}


def test_a_source_is_read_no_longer_than_its_domains_have_room(monkeypatch):
    def rows():
        for number in itertools.count():
            assert number < 3000, "reads on"
            yield {"text": f"{number} " * 10, "language": "abc"[number % 3]}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *args, **kwargs: rows()))
    endless = Source(kind="hub", where="x/y", domain_column="language")
    selection = Selection(CorpusConfig(sources=(endless,), domains=("a", "b"), domain_bytes=3000))
    assert {document.domain for _, document in selection} == {"a", "b"}
    assert min(selection.num_bytes.values()) > 2900
    named = Source(kind="hub", where="x/y", domain="all")
    assert len(list(Selection(CorpusConfig(sources=(named,), domain_bytes=3000)))) > 50
    assert list(Selection(CorpusConfig(sources=(named,), domains=("other",)))) == []


def test_an_empty_domain_is_refused_by_name(tmp_path):
    write_texts(tmp_path, "prose", 50)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "empty.py").write_text("\n")
    with pytest.raises(ValueError, match="every domain of a corpus must have documents, but got none of code; name sources"):
        make_corpus(config(tmp_path, "prose", "code"), bytes_tokenizer())
    with pytest.raises(ValueError, match="must have documents, but got none of cpp, rust; name sources"):
        make_corpus(config(tmp_path, "prose", domains=("rust", "prose", "cpp")), bytes_tokenizer())


def test_an_empty_split_is_refused_by_name(tmp_path):
    write_texts(tmp_path, "prose", 50)
    write_texts(tmp_path, "code", 1)
    law = "every split of domain code must have documents, but got none for [a-z]+ and none for [a-z]+ of its 1; give it more"
    with pytest.raises(ValueError, match=law):
        make_corpus(config(tmp_path, "prose", "code"), bytes_tokenizer())


def test_a_config_may_come_from_json():
    source = {"kind": "files", "where": "x", "domain": "code"}
    settings = CorpusConfig(sources=[source], domains=["code"])
    assert settings == CorpusConfig(sources=(Source(**source),), domains=("code",))
    assert settings.named_domains == {"code"}


@pytest.mark.parametrize(
    ("settings", "law"),
    [
        ({"sources": ()}, "a corpus must have at least one source, but got none; name one"),
        ({"domain_bytes": 10}, "domain_bytes must be at least 1000, or none, but got 10; use"),
        ({"attribution_fraction": 0.0}, r"attribution_fraction must be in \(0, 1\), but got 0.0; use 0.1"),
        ({"evaluation_fraction": float("nan")}, r"evaluation_fraction must be in \(0, 1\), but got nan; use 0.1"),
        ({"attribution_fraction": 0.5, "evaluation_fraction": 0.5}, "must leave some to train on, but got 1.0; use"),
        ({"vocabulary": 256}, "the vocabulary of a trained tokenizer must be in 257..65536, but got 256; use 2048"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(settings, law):
    with pytest.raises(ValueError, match=law):
        CorpusConfig(**settings)
