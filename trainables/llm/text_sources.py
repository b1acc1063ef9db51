"""Where documents come from: files, tables, the hub, the installed packages. Each has a text and a domain."""

import dataclasses
import glob
import gzip
import importlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from trainables.laws import require
from trainables.llm.text_cleaning import decoded, with_plain_newlines
from trainables.llm.text_installed import DOMAINS, installed_texts
from trainables.randomness import stream_key

Kind = Literal["files", "jsonl", "parquet", "hub", "installed"]
KINDS: tuple[Kind, ...] = ("files", "jsonl", "parquet", "hub", "installed")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A text and what kind of text it is."""

    domain: str
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Some documents, named by values that JSON knows.

    A document that cannot be decoded, or whose row has no text or no domain, is left out.
    """

    kind: Kind
    """`files`: a document each. `jsonl`, `parquet`: a document each row. `hub`: a data set, through the library `datasets`.
    `installed`: the standard library's and the installed packages' files of one of three domains."""
    where: str = ""
    """A file, a folder or a pattern with `*`, `?` and `**`; the hub's name of a data set; empty for `installed`."""
    domain: str | None = None
    """Of all its documents; for `installed`: python, cpp or prose."""
    domain_column: str | None = None
    """The column that names a row's domain; this or `domain`."""
    text_column: str = "text"
    """The column with a row's text."""
    hub_config: str | None = None
    """Which part of a data set of the hub, where it has parts."""
    hub_split: str = "train"
    """Which split of a data set of the hub; it is split again."""

    def __post_init__(self) -> None:
        require(self.kind in KINDS, f"a source's kind must be one of {', '.join(KINDS)}", repr(self.kind), "name one of them")
        law, got = "a source must have either a domain or a domain_column", f"{self.domain!r} and {self.domain_column!r}"
        require((self.domain is None) != (self.domain_column is None), law, got, "give one of them")
        require("" not in (self.domain, self.domain_column), "a domain must have a name", "''", "give it one")
        has_rows = self.kind not in ("files", "installed")
        law = f"a source of kind {self.kind} must have a domain, for it has no columns"
        require(has_rows or self.domain is not None, law, "none", "give a domain")
        if self.kind == "installed":
            law = f"the domain of installed files must be one of {', '.join(DOMAINS)}"
            require(self.domain in DOMAINS, law, repr(self.domain), "name one of them")
        else:
            require(self.where != "", f"a source of kind {self.kind} must say where", "''", "give a path, a pattern or a name")


def read_documents(source: Source, seed: int) -> Iterator[Document]:
    """Read a source's documents, one after the other, in the same order each time.

    Files come in an order that depends on their paths, relative to the pattern's fixed part, and the seed; rows as they are.

    Raises:
        ValueError: if there is no such file, a column is missing, or a line is no JSON.
        ImportError: if the source is on the hub and `datasets` is not installed.
    """
    if source.kind == "installed":
        texts: Iterable[str] = installed_texts(str(source.domain), seed)
    elif source.kind == "files":
        texts = (text for path in _find(source.where, seed) if (text := decoded(path.read_bytes())) is not None)
    else:
        yield from _row_documents(source)
        return
    for text in texts:
        yield Document(domain=str(source.domain), text=text)


def check_source(source: Source) -> None:
    """See whether a source is there, and has its columns where that can be told by a look.

    Raises:
        ValueError, ImportError: as `read_documents` does.
    """
    if source.kind == "hub":
        _hub_library(source)
    elif source.kind == "parquet":
        paths = _find(source.where)
        from pyarrow import parquet

        for path in paths:
            _require_columns(source, parquet.read_schema(path).names, str(path))
    elif source.kind != "installed":
        _find(source.where)


def _row_documents(source: Source) -> Iterator[Document]:
    for row in _ROWS[source.kind](source):
        text = row[source.text_column]
        domain = source.domain if source.domain_column is None else row[source.domain_column]
        if isinstance(text, str) and isinstance(domain, str) and domain:
            yield Document(domain=domain, text=with_plain_newlines(text))


def _find(where: str, seed: int | None = None) -> list[Path]:
    """The files of a path, folder or pattern: in a seeded order, or sorted."""
    pattern = os.path.join(glob.escape(where), "**") if os.path.isdir(where) else where
    paths = [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
    require(bool(paths), f"there must be a file at {where}", "none", "name a file, a folder or a pattern of this machine")
    if seed is None:
        return sorted(map(Path, paths))
    fixed = where if os.path.isdir(where) else os.path.dirname(where.split("*")[0].split("?")[0].split("[")[0])
    order = {path: stream_key("files", seed, Path(os.path.relpath(path, fixed or ".")).as_posix()) for path in paths}
    return [Path(path) for path in sorted(paths, key=lambda path: (order[path], path))]


def _json_rows(source: Source) -> Iterator[Mapping[str, Any]]:
    for path in _find(source.where):
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                text = decoded(line)
                if text is not None and text.strip():
                    yield _json_row(text, source, f"line {number} of {path}")


def _json_row(text: str, source: Source, place: str) -> Mapping[str, Any]:
    law, remedy = f"{place} must be a JSON object", "write one object a line"
    try:
        row = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{law}, but {error}; {remedy}") from error
    require(isinstance(row, dict), law, type(row).__name__, remedy)
    _require_columns(source, row, place)
    return dict(row)


def _parquet_rows(source: Source) -> Iterator[Mapping[str, Any]]:
    paths = _find(source.where)
    from pyarrow import parquet

    for path in paths:
        with parquet.ParquetFile(path) as file:
            _require_columns(source, file.schema_arrow.names, str(path))
            for batch in file.iter_batches(batch_size=1024, columns=_columns(source)):
                yield from batch.to_pylist()


def _hub_library(source: Source) -> Any:
    law, remedy = f"the library datasets must be installed for {source.where}, a data set of the hub", "pip install datasets"
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise ImportError(f"{law}, but got {error}; {remedy}") from error


def _hub_rows(source: Source) -> Iterator[Mapping[str, Any]]:
    library, asked = _hub_library(source), {"name": source.hub_config, "split": source.hub_split, "streaming": True}
    for row in library.load_dataset(source.where, **asked, **_refusing_code(library)):
        _require_columns(source, row, source.where)
        yield row


def _refusing_code(library: Any) -> dict[str, Any]:
    """What keeps the library from running a data set's own script; from 4 on it runs none, and knows no such option."""
    major = str(getattr(library, "__version__", "4")).partition(".")[0]
    return {"trust_remote_code": False} if major.isdigit() and int(major) < 4 else {}


_ROWS = {"jsonl": _json_rows, "parquet": _parquet_rows, "hub": _hub_rows}


def _columns(source: Source) -> list[str]:
    return [source.text_column, *([source.domain_column] if source.domain_column else [])]


def _require_columns(source: Source, names: Collection[str], place: str) -> None:
    missing = [column for column in _columns(source) if column not in names]
    law = f"{place} must have the columns {' and '.join(_columns(source))}"
    require(not missing, law, f"no {' and no '.join(missing)}", "name its columns with text_column and domain_column")
