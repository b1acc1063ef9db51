import gzip
import json
import sys
from types import SimpleNamespace

import pytest

from trainables.llm.text_sources import Document, Source, check_source, read_documents


def texts(source, seed=0):
    return [document.text for document in read_documents(source, seed)]


@pytest.fixture
def folder(tmp_path):
    for name, text in {"a.py": "x = 1\n", "deep/b.py": "y = 2\n", "deep/c.md": "# C\n", "d.py": "z = 3\r\nw\r"}.items():
        (tmp_path / "in").joinpath(name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(text.encode())
    return tmp_path / "in"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", {"x = 1\n", "y = 2\n", "# C\n", "z = 3\nw\n"}),
        ("a.py", {"x = 1\n"}),
        ("*.py", {"x = 1\n", "z = 3\nw\n"}),
        ("**/*.py", {"x = 1\n", "y = 2\n", "z = 3\nw\n"}),
    ],
)
def test_files_are_found_by_folder_name_and_pattern(folder, pattern, expected):
    source = Source(kind="files", where=str(folder / pattern), domain="code")
    documents = list(read_documents(source, 0))
    assert {document.text for document in documents} == expected
    assert len(documents) == len(expected)
    assert {document.domain for document in documents} == {"code"}


def test_files_come_in_an_order_of_the_seed_wherever_they_lie(folder, tmp_path):
    source = Source(kind="files", where=f"{folder}/**/*", domain="code")
    orders = [tuple(texts(source, seed)) for seed in range(20)]
    assert len(set(orders)) > 5
    assert orders == [tuple(texts(source, seed)) for seed in range(20)]
    folder.rename(tmp_path / "elsewhere")
    moved = Source(kind="files", where=f"{tmp_path}/elsewhere/**/*", domain="code")
    assert orders == [tuple(texts(moved, seed)) for seed in range(20)]


def test_what_is_not_utf_8_is_left_out(folder):
    (folder / "latin.py").write_bytes("# Grüße".encode("latin-1"))
    (folder / "marked.py").write_bytes("\ufeff# Grüße".encode())
    found = texts(Source(kind="files", where=f"{folder}/*.py", domain="code"))
    assert "# Grüße" in found
    assert len(found) == 3


ROWS = [
    {"content": "one\r\n", "language": "C++", "size": 1},
    {"content": "two", "language": "Python", "size": 2},
    {"content": None, "language": "Python", "size": 3},
    {"content": "four", "language": None, "size": 4},
]
BY_COLUMN = {"text_column": "content", "domain_column": "language"}
DOCUMENTS = [Document(domain="C++", text="one\n"), Document(domain="Python", text="two")]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_rows_of_json_lines(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    content = "\n\n".join(map(json.dumps, ROWS)).encode() + b'\n{"content": "\xff", "language": "C++"}\n'
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    assert list(read_documents(Source(kind="jsonl", where=str(tmp_path / "*.jsonl*"), **BY_COLUMN), 0)) == DOCUMENTS
    of_one_domain = Source(kind="jsonl", where=str(path), text_column="content", domain="mixed")
    assert [document.domain for document in read_documents(of_one_domain, 0)] == ["mixed"] * 3


def test_rows_of_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=1)
    parquet.write_table(pyarrow.Table.from_pylist(ROWS[1:2]), tmp_path / "b.parquet")
    assert list(read_documents(Source(kind="parquet", where=str(tmp_path), **BY_COLUMN), 0)) == [*DOCUMENTS, DOCUMENTS[1]]
    with pytest.raises(ValueError, match=r"a.parquet must have the columns text, but got no text; name its columns"):
        texts(Source(kind="parquet", where=str(tmp_path), domain="code"))


def test_rows_of_the_hub(monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return iter(ROWS)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    source = Source(kind="hub", where="codeparrot/github-code", hub_config="Python-all", **BY_COLUMN)
    assert list(read_documents(source, 0)) == DOCUMENTS
    assert asked == [(("codeparrot/github-code",), {"name": "Python-all", "split": "train", "streaming": True})]
    with pytest.raises(ValueError, match="codeparrot/github-code must have the columns text, but got no text; name"):
        texts(Source(kind="hub", where="codeparrot/github-code", domain="code"))


@pytest.mark.parametrize(("version", "options"), [("2.14.6", {"trust_remote_code": False}), ("4.0.0", {})])
def test_no_script_of_a_data_set_of_the_hub_is_run(monkeypatch, version, options):
    asked = {}

    def load_dataset(where, *, split, streaming, **others):
        asked.update(others)
        return iter(ROWS)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset, __version__=version))
    texts(Source(kind="hub", where="a/b", **BY_COLUMN))
    assert asked == {"name": None} | options


def test_the_hub_without_its_library_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"the library datasets must be installed for a/b, .* but got .*; pip install datasets"):
        texts(Source(kind="hub", where="a/b", domain="code"))


@pytest.mark.parametrize(
    ("line", "law"),
    [
        ("[1]", "line 2 of .*rows.jsonl must be a JSON object, but got list; write one object a line"),
        ('{"text": ', "line 2 of .*rows.jsonl must be a JSON object, but Expecting value.*; write one object a line"),
        ('{"txt": "a"}', "line 2 of .*rows.jsonl must have the columns text, but got no text; name its columns"),
    ],
)
def test_a_damaged_line_is_refused(tmp_path, line, law):
    (tmp_path / "rows.jsonl").write_text(f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(ValueError, match=law):
        texts(Source(kind="jsonl", where=f"{tmp_path}/rows.jsonl", domain="prose"))


@pytest.mark.parametrize("kind", ["files", "jsonl", "parquet"])
def test_a_pattern_without_files_is_refused(tmp_path, kind):
    with pytest.raises(ValueError, match=r"there must be a file at .*/\*.x, but got none; name a file, a folder or a pattern"):
        texts(Source(kind=kind, where=f"{tmp_path}/*.x", domain="code"))


@pytest.mark.parametrize("kind", ["files", "jsonl", "parquet"])
def test_a_look_finds_that_there_are_no_files(tmp_path, kind):
    with pytest.raises(ValueError, match=r"there must be a file at .*/\*.x, but got none; name a file, a folder or a pattern"):
        check_source(Source(kind=kind, where=f"{tmp_path}/*.x", domain="code"))


def test_a_look_finds_that_a_table_has_no_such_column(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    check_source(Source(kind="parquet", where=str(tmp_path), **BY_COLUMN))
    parquet.write_table(pyarrow.Table.from_pylist([{"text": "five"}]), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet must have the columns content and language, but got no content and no"):
        check_source(Source(kind="parquet", where=str(tmp_path), **BY_COLUMN))
    (tmp_path / "b.parquet").write_bytes(b"no table")
    with pytest.raises(ValueError, match="Parquet"):
        check_source(Source(kind="parquet", where=str(tmp_path), **BY_COLUMN))


def test_a_look_reads_no_rows_and_asks_nobody_elsewhere(tmp_path, monkeypatch):
    """Damaged lines are found by those who read them; a data set of the hub is asked for by name when it is read."""
    (tmp_path / "rows.jsonl").write_text("{")
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace())
    for source in (
        Source(kind="jsonl", where=f"{tmp_path}/rows.jsonl", domain="code"),
        Source(kind="hub", where="a/b", domain="code"),
        Source(kind="installed", domain="cpp"),
    ):
        check_source(source)


def test_a_look_finds_that_the_hubs_library_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"the library datasets must be installed for a/b, .*; pip install datasets"):
        check_source(Source(kind="hub", where="a/b", domain="code"))


@pytest.mark.parametrize(
    ("settings", "law"),
    [
        ({"kind": "csv", "where": "x", "domain": "a"}, "kind must be one of files, jsonl, .*, but got 'csv'; name one"),
        ({"kind": "jsonl", "where": "x"}, "either a domain or a domain_column, but got None and None; give one"),
        ({"kind": "jsonl", "where": "x", "domain": "a", "domain_column": "b"}, "either .* but got 'a' and 'b'; give one"),
        ({"kind": "jsonl", "where": "x", "domain": ""}, "a domain must have a name, but got ''; give it one"),
        ({"kind": "files", "where": "x", "domain_column": "b"}, "kind files must have a domain, for it has no columns"),
        ({"kind": "files", "domain": "b"}, "kind files must say where, but got ''; give a path"),
        ({"kind": "installed", "domain": "rust"}, "must be one of python, cpp, prose, but got 'rust'; name one"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused(settings, law):
    with pytest.raises(ValueError, match=law):
        Source(**settings)
