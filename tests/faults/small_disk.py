"""A disk of a few megabytes that can be filled up."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

PAGE = 4096


class SmallDisk:
    """A tmpfs: what is on it is gone with it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self, *, leave: int = 0) -> None:
        """Take all room but so many pages."""
        if self.num_free() < leave:
            self.make_room()
        with self._filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):  # somebody else may be faster
            while self.num_free() > leave:
                file.write(bytes(PAGE))

    def fill_alone(self, *, leave: int) -> None:
        """Take all room but exactly so many pages, while nobody else writes: the kernel's count of free ones may lag behind."""
        with self._filler.open("ab", buffering=0) as file:
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(PAGE))
            file.truncate(max(0, file.seek(0, os.SEEK_END) - leave * PAGE))

    def make_room(self) -> None:
        self._filler.unlink(missing_ok=True)

    def num_free(self) -> int:
        """Pages that are left."""
        return os.statvfs(self.path).f_bavail


@contextlib.contextmanager
def small_disk(path: Path, *, megabytes: int) -> Iterator[SmallDisk]:
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
    refusal = subprocess.run(mount, capture_output=True, text=True).stderr
    if refusal:
        pytest.skip(f"a tmpfs must be mounted, which needs root: {refusal.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)  # somebody may have a file open that is about to close it
