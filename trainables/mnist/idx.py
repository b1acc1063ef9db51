"""IDX, the format of MNIST's files: a magic number and the dimensions, big-endian, then one byte a value.

The magic number is 0x000008DD: 08 for unsigned bytes, DD for the number of dimensions.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy
import torch
from torch import Tensor

from trainables.laws import require

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
"""What MNIST's files are called, and those of the sets that took its place (Fashion-MNIST, KMNIST)."""
_MAGIC = {"images": 0x00000803, "labels": 0x00000801}
_GZIP = b"\x1f\x8b"
_AGAIN = "download the file again"


def find_files(folder: Path) -> tuple[Path, Path, Path, Path]:
    """Find training images, training labels, test images and test labels, in this order.

    A file may be gzipped (`.gz`), and a dot may stand before `idx` as on some mirrors. What is not gzipped comes first: it
    can be mapped.

    Raises:
        ValueError: if the folder or any of the files is missing.
    """
    require(folder.is_dir(), "data_dir must be a folder with MNIST's four files", folder, "name a folder of this machine")
    found = [_find(folder, name) for name in FILES]
    missing = [name for name, path in zip(FILES, found, strict=True) if path is None]
    got = f"no {' and no '.join(missing)} in {folder}"
    require(not missing, "data_dir must hold MNIST's four files, gzipped or not", got, "put them there")
    train_images, train_labels, test_images, test_labels = (path for path in found if path is not None)
    return train_images, train_labels, test_images, test_labels


def _find(folder: Path, name: str) -> Path | None:
    spellings = [f"{spelling}{suffix}" for suffix in ("", ".gz") for spelling in (name, name.replace("-idx", ".idx"))]
    return next((folder / spelling for spelling in spellings if (folder / spelling).is_file()), None)


def read_images(path: Path) -> Tensor:
    """Read a file of images; one that is not gzipped is mapped, so that only what is looked at is read.

    Returns:
        uint8 of shape (images, rows, columns).

    Raises:
        ValueError: if the file is damaged, holds something else, or more or less than its header says.
    """
    return _read(path, "images")


def read_labels(path: Path) -> Tensor:
    """Read a file of labels, 0..255: uint8, one an image.

    Raises:
        ValueError: as `read_images` does.
    """
    return _read(path, "labels")


def _read(path: Path, kind: str) -> Tensor:
    content = _content(path)
    _require_kind(path, kind, content[:4].tobytes())
    num_dimensions = _MAGIC[kind] & 0xFF
    header = 4 + 4 * num_dimensions
    require(len(content) >= header, f"{path} must hold a header of {header} bytes", f"{len(content)} bytes", _AGAIN)
    shape = struct.unpack(f">{num_dimensions}I", content[4:header].tobytes())
    require(min(shape) > 0, f"{path} must hold something in every dimension", " x ".join(map(str, shape)), _AGAIN)
    size = header + math.prod(shape)
    require(len(content) == size, f"{path} must hold {size} bytes, as its header says", f"{len(content)} bytes", _AGAIN)
    return torch.from_numpy(content[header:]).view(shape)


def _content(path: Path) -> numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.uint8]]:
    """All bytes of a file, without gzip's wrapping, in memory that torch may write to."""
    with path.open("rb") as file:
        start = file.read(2)
    if start == _GZIP:
        return numpy.frombuffer(_decompressed(path), dtype=numpy.uint8)
    if not start:
        return numpy.zeros(0, dtype=numpy.uint8)  # nothing cannot be mapped
    # "c", copy on write: torch has no read-only tensors and warns of a buffer that is; a write would stay in this process.
    # All processes that read the file share its pages.
    return numpy.memmap(path, dtype=numpy.uint8, mode="c")


def _decompressed(path: Path) -> bytearray:
    try:
        with gzip.open(path) as file:
            return bytearray(file.read())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} must be whole to be unzipped, but got {error}; {_AGAIN}") from error


def _require_kind(path: Path, kind: str, start: bytes) -> None:
    magic = int.from_bytes(start, "big")
    other = next((name for name, number in _MAGIC.items() if number == magic and name != kind), None)
    got = f"a file that starts with 0x{start.hex() or '(nothing)'}"
    remedy = "give a file in the IDX format of unsigned bytes"
    if other:
        got, remedy = f"a file that holds {other}, not {kind}", "are two files swapped?"
    require(magic == _MAGIC[kind], f"{path} must hold {kind} and start with 0x{_MAGIC[kind]:08x}", got, remedy)
