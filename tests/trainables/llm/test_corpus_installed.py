import os
import subprocess
import sys
import time

import pytest

pytest.importorskip("tokenizers")

from trainables.llm import corpus_recipe as recipe_module
from trainables.llm import text_installed
from trainables.llm.corpus import Corpus, load_corpus
from trainables.llm.corpus_documents import SPLITS, CorpusConfig
from trainables.llm.corpus_recipe import corpus_recipe, make_corpus
from trainables.llm.corpus_stream import Stream
from trainables.llm.text_installed import DOMAINS, domain_of, installed_texts
from trainables.shared import Shared
from trainables.storage import Folder

SMALL = CorpusConfig(domain_bytes=300_000, vocabulary=1024)


def forget_files():
    text_installed.installed_files.cache_clear()
    text_installed._ordered.cache_clear()


@pytest.fixture(scope="module")
def corpus():
    start_s = time.process_time()
    made = Corpus.of(make_corpus(SMALL))
    assert time.process_time() - start_s < 20
    return made


@pytest.fixture
def other_machine(monkeypatch, tmp_path):
    """Where other packages are installed."""
    for number in range(60):
        package = tmp_path / "packages" / f"p{number}"
        package.mkdir(parents=True)
        for name in ("a.py", "b.h", "README.md"):
            (package / name).write_text(f"{name} of the package number {number}\n" * 5)
    monkeypatch.setattr(text_installed, "installed_roots", lambda: (tmp_path / "packages",))
    return tmp_path / "packages"


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("os.py", "python"),
        ("ATen.h", "cpp"),
        ("kernel.cuh", "cpp"),
        ("README.md", "prose"),
        ("notes.rst", "prose"),
        ("LICENSE", "prose"),
        ("LICENCE.txt", "prose"),
        ("COPYING.txt", "prose"),
        ("METADATA", "prose"),
        ("RECORD", None),
        ("requires.txt", None),
        ("iris.txt", None),
        ("module.so", None),
        ("LICENSE.json", None),
        ("license.py", "python"),
    ],
)
def test_a_file_s_name_tells_its_domain(name, domain):
    assert domain_of(name) == domain


def test_the_installed_packages_have_three_domains(corpus):
    assert corpus.domains == tuple(sorted(DOMAINS))
    for domain in DOMAINS:
        assert 200_000 < corpus.about["bytes"][domain] <= 300_000
        assert corpus.about["documents"][domain] >= 60
        assert sum(len(corpus.tokens(domain, split)) for split in SPLITS) * 1.5 < corpus.about["bytes"][domain]
    assert corpus.largest_id < 1024


def test_domains_read_as_what_they_are_called(corpus):
    tokenizer = corpus.tokenizer()
    text = {domain: tokenizer.decode(corpus.tokens(domain, "training").tolist()) for domain in DOMAINS}
    assert max(DOMAINS, key=lambda domain: text[domain].count("\nimport ")) == "python"
    assert max(DOMAINS, key=lambda domain: text[domain].count("#include")) == "cpp"
    assert max(DOMAINS, key=lambda domain: text[domain].lower().count(" the ")) == "prose"


def test_windows_of_the_installed_packages_are_text(corpus):
    token_BT = Stream(corpus, weights={"python": 0.5, "prose": 0.5}, length=128, batch_size=4, seed=0).batch(3)
    assert token_BT.shape == (4, 129)
    assert all(len(corpus.tokenizer().decode(token_T.tolist())) > 150 for token_T in token_BT)


def test_another_process_makes_the_same_corpus():
    code = (
        "from trainables.llm.corpus import Corpus; from trainables.llm.corpus_recipe import make_corpus\n"
        "from trainables.llm.corpus_documents import CorpusConfig\n"
        "print(Corpus.of(make_corpus(CorpusConfig(domain_bytes=60_000, vocabulary=500))).fingerprint())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    here = Corpus.of(make_corpus(CorpusConfig(domain_bytes=60_000, vocabulary=500)))
    assert result.stdout.strip() == here.fingerprint()


def test_a_study_keeps_its_corpus_where_other_packages_are_installed(other_machine, tmp_path, monkeypatch):
    config, shared = CorpusConfig(domain_bytes=20_000, vocabulary=300), Shared(Folder(tmp_path / "shared"))
    key, first = corpus_recipe(config).key, load_corpus(shared, config)
    for path in other_machine.rglob("*.*"):
        path.write_text(path.read_text().replace("package", "parcel"))
    monkeypatch.setattr(recipe_module, "make_corpus", None)  # whoever makes it again fails
    assert corpus_recipe(config).key == key
    assert load_corpus(shared, config).fingerprint() == first.fingerprint()
    assert first.tokenizer().encode(["package"]) == load_corpus(shared, config).tokenizer().encode(["package"])


def test_a_seed_chooses_among_the_files(other_machine):
    first, again, other = (list(installed_texts("python", seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert sorted(first) == sorted(other)
    assert len(first) == 60


def test_what_a_program_wrote_and_what_cannot_be_read_is_left_out(other_machine):
    (other_machine / "p0" / "made_pb2.py").write_text("# Generated by the compiler.  DO NOT EDIT!\nx = 1\n")
    (other_machine / "p1" / "latin.py").write_bytes("# Grüße".encode("latin-1"))
    (other_machine / "p2" / "nowhere.py").symlink_to(other_machine / "gone.py")
    (other_machine / "p3" / "__pycache__").mkdir()
    (other_machine / "p3" / "__pycache__" / "cached.py").write_text("x = 1\n")
    forget_files()
    assert len(list(installed_texts("python", 0))) == 60


def test_of_metadata_the_description_is_prose(other_machine):
    (other_machine / "p0" / "METADATA").write_text("Name: p0\nVersion: 1\n\n# About\n\nIt is good.\n")
    forget_files()
    assert "# About\n\nIt is good.\n" in list(installed_texts("prose", 0))
