"""A folder of a study's storage, on a disk or on an object store: whole files in, whole files out.

A reader sees a file complete or not at all: on a disk it is written beside its place, synced and renamed; an object
store shows an object when its upload is complete.
"""

import contextlib
import errno
import functools
import os
import shutil
import urllib.parse
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeGuard

from trainables.failpoints import failpoint

_PARTIAL = ".partial"
_NUM_TRIES = 3


class StorageError(OSError):
    """The storage failed, not the experiment: the trial is sound and may go on when the storage does."""


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Tell a failing storage from everything else that may fail.

    Raises:
        StorageError: for any error inside.
    """
    try:
        yield
    except Exception as error:
        if is_full(error):
            folder = os.path.dirname(error.filename or "") or "the storage"
            trouble = f"have room for {what}, but the disk of {folder} is full ({error.strerror}); make room there"
        else:
            trouble = f"keep {what}, but it does not ({error}); mend it"
        raise StorageError(f"the storage must {trouble} and resume the study") from error


def is_full(error: BaseException) -> TypeGuard[OSError]:
    """Whether a disk has no room left, or its user has used up a quota."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


class Folder:
    """One folder, by path or URI.

    Args:
        address: a local path, or `s3://bucket/key`, `gs://...`: whatever `pyarrow.fs.FileSystem.from_uri` knows, with its options
            after a `?`. Where S3 is not Amazon's, AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL says where.
    """

    def __init__(self, address: str | Path) -> None:
        self.address = str(address).rstrip("/")
        self.is_local = "://" not in self.address
        self._remote: tuple[Any, str] | None = None

    def child(self, name: str) -> Self:
        """The folder `name` inside this one."""
        if self.is_local:
            return type(self)(f"{self.address}/{name}")
        place, mark, options = self.address.partition("?")
        return type(self)(f"{place.rstrip('/')}/{name}{mark}{options}")

    def write(self, name: str, data: bytes) -> None:
        """Put a whole file in its place; its readers see the old one or the new one.

        Raises:
            OSError: if it cannot; nothing of the new one is left, and of a local file it says which.
        """
        self.write_all({name: data})

    def write_all(self, files: Mapping[str, bytes]) -> None:
        """Put whole files in their places, in their order; when this returns, all of them are there to stay.

        Raises:
            OSError: as `write`; those before the one that failed may be in their places.
        """
        if self.is_local:
            paths = {f"{self.address}/{name}": data for name, data in files.items()}
            folders = {os.path.dirname(path) for path in paths}
            for folder in folders:
                os.makedirs(folder, exist_ok=True)
            for path, data in paths.items():
                _put(path, data)
            for folder in folders:
                _sync_folder(folder)
            return
        filesystem, base = self._filesystem()
        for name, data in files.items():
            with filesystem.open_output_stream(f"{base}/{name}") as stream:
                stream.write(data)

    def read(self, name: str) -> bytes:
        """Read a whole file.

        Raises:
            FileNotFoundError: if there is none.
        """
        if self.is_local:
            with open(f"{self.address}/{name}", "rb") as file:
                return file.read()
        filesystem, base = self._filesystem()
        with filesystem.open_input_stream(f"{base}/{name}") as stream:
            return bytes(stream.read())

    def names(self) -> list[str]:
        """Names of the files here, sorted; none if the folder does not exist."""
        if not self.is_local:
            return sorted(info.base_name for info in self._objects())
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(name for name in os.listdir(self.address) if not name.startswith("."))
        return []

    def modified_ns(self) -> dict[str, int]:
        """When each file here was last written: nanoseconds since 1970 by the storage's own clock, which may tick in seconds."""
        if not self.is_local:
            return {info.base_name: info.mtime_ns for info in self._objects()}
        times = {}
        for name in self.names():
            with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                times[name] = (Path(self.address) / name).stat().st_mtime_ns
        return times

    def delete(self, name: str) -> None:
        """Remove a file; one that is gone already is no error."""
        with contextlib.suppress(FileNotFoundError):
            if self.is_local:
                (Path(self.address) / name).unlink()
            else:
                filesystem, base = self._filesystem()
                filesystem.delete_file(f"{base}/{name}")

    def sizes(self) -> dict[str, int]:
        """Bytes of every file here and below, by its path from here; also of those that are half-written."""
        if not self.is_local:
            base = self._filesystem()[1].rstrip("/")
            return {info.path.removeprefix(f"{base}/"): info.size for info in self._objects(recursive=True)}
        sizes = {}
        for folder, _, names in os.walk(self.address):
            for name in names:
                path = Path(folder) / name
                with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                    sizes[path.relative_to(self.address).as_posix()] = path.lstat().st_size
        return sizes

    def remove(self) -> None:
        """Remove this folder with all that is in it; one that is gone already is no error.

        What somebody else writes here at this moment may stay.
        """
        if self.is_local:
            _remove_tree(Path(self.address))
            return
        from pyarrow import fs

        filesystem, base = self._filesystem()
        if filesystem.get_file_info(base).type == fs.FileType.Directory:
            with contextlib.suppress(FileNotFoundError):
                filesystem.delete_dir(base)

    def sweep(self) -> None:
        """Remove what a process that was killed left half-written here; a process that still writes fails."""
        if self.is_local:  # an object store shows whole objects only
            for partial in Path(self.address).glob(f".*{_PARTIAL}"):
                partial.unlink(missing_ok=True)

    def download(self, destination: Path) -> None:
        """Copy every file here into a local folder."""
        destination.mkdir(parents=True, exist_ok=True)
        for name in self.names():
            if self.is_local:
                shutil.copyfile(Path(self.address) / name, destination / name)
            else:
                (destination / name).write_bytes(self.read(name))

    def _objects(self, *, recursive: bool = False) -> list[Any]:
        from pyarrow import fs

        filesystem, base = self._filesystem()
        found = filesystem.get_file_info(fs.FileSelector(base, allow_not_found=True, recursive=recursive))
        return [info for info in found if info.type == fs.FileType.File]

    def _filesystem(self) -> tuple[Any, str]:
        if self._remote is None:
            self._remote = _open_s3(self.address) if self.address.startswith("s3://") else _open(self.address)
        return self._remote


def _open(address: str) -> tuple[Any, str]:
    """A file system, and the place there that an address means."""
    from pyarrow import fs

    filesystem, base = fs.FileSystem.from_uri(address)
    return filesystem, base


def _open_s3(address: str) -> tuple[Any, str]:
    parts = urllib.parse.urlsplit(address)
    # A small object goes in one request, where it would take three.
    options = parts.query if "allow_delayed_open=" in parts.query else f"{parts.query}&allow_delayed_open=true".lstrip("&")
    settings = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    filesystem = _s3(parts._replace(path="", query=options).geturl(), settings)
    return filesystem, f"{parts.netloc.rpartition('@')[2]}{urllib.parse.unquote(parts.path)}"


@functools.lru_cache(maxsize=8)
def _s3(bucket: str, settings: tuple[tuple[str, str], ...]) -> Any:
    """One client a bucket, whose connections are used again.

    Args:
        settings: of the environment, from which it takes endpoint, region and keys when it is made.
    """
    return _open(bucket)[0]


def _remove_tree(folder: Path) -> None:
    if folder.is_symlink():  # what it leads to is somebody else's
        folder.unlink(missing_ok=True)
        return
    for _ in range(_NUM_TRIES):
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:  # of something in it that was removed meanwhile, or the folder itself
            if not folder.exists():
                return
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
        else:
            return


def _put(path: str, data: bytes) -> None:
    """Write a file beside its place, and rename it; the rename is yet to be synced."""
    folder, name = os.path.split(path)
    partial = f"{folder}/.{name}.{uuid.uuid4().hex}{_PARTIAL}"
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        failpoint("file written", name)
        os.rename(partial, path)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename = error.filename or path  # a failing write does not say of which file
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise


def _sync_folder(folder: str) -> None:
    """Make renames survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
