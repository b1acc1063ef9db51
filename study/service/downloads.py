"""A model's folder as one ZIP file, made while it is sent; what it is made of is gone afterwards."""

import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from study.asking.choosing import take_out
from study.asking.query import Study
from study.errors import UserError

LABEL = r"^(0|[1-9]\d{0,8})(\.(0|[1-9]\d{0,8}))?$"
"""How models are called: 3, the last one of trial 3; 3.4, its candidate 4."""
_PIECE = 256 * 1024
_EPOCH = (1980, 1, 1, 0, 0, 0)


def take_model(study: Study, label: str) -> Path:
    """Copy a model into a temporary folder of its own; returns it. Its parent is to be removed.

    Raises:
        UserError: if there is no such model, or it was dropped.
    """
    if not re.fullmatch(LABEL, label, re.ASCII):
        raise UserError(f"a model must be TRIAL or TRIAL.CANDIDATE, but got {label!r}; try 3, or 3.4 for candidate 4 of trial 3")
    trial, _, candidate = label.partition(".")
    row = study.model(int(trial), int(candidate) if candidate else None)
    folder = Path(tempfile.mkdtemp(prefix="study-model-"))
    try:
        return take_out(row, folder / f"{study.name}-{label}")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


class _Pipe:
    """What a ZIP file writes into, and hands on."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._pieces.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is kept back."""

    def close(self) -> None:
        """Nothing is held."""

    def drain(self) -> bytes:
        """All that was written since."""
        data = b"".join(self._pieces)
        self._pieces.clear()
        return data


def zip_pieces(folder: Path) -> Iterator[bytes]:
    """A folder as a ZIP file, piece by piece; the same bytes for the same files. Weights do not shrink, so nothing is packed."""
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
            entry = zipfile.ZipInfo(f"{folder.name}/{path.relative_to(folder).as_posix()}", _EPOCH)
            entry.external_attr = 0o644 << 16
            with path.open("rb") as source, archive.open(entry, "w", force_zip64=path.stat().st_size >= 2**31 - 1) as target:
                while piece := source.read(_PIECE):
                    target.write(piece)
                    yield pipe.drain()
    yield pipe.drain()


class ModelResponse(StreamingResponse):
    """Sends a model's folder, and removes it, be the client there to the end or not."""

    def __init__(self, folder: Path, on_end: Callable[[], None]) -> None:
        self._folder, self._on_end = folder, on_end
        headers = {"Content-Disposition": f'attachment; filename="{folder.name}.zip"', "Cache-Control": "no-store"}
        super().__init__(zip_pieces(folder), media_type="application/zip", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()
            shutil.rmtree(self._folder.parent, ignore_errors=True)
