"""What several trials need and one of them makes: a teacher, a base model.

It lies in a folder of the study's storage. Its file's name holds the digest of its recipe, so that equal recipes share it,
and the digest of its bytes, so that a damaged file is known when it is read.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainables.laws import require
from trainables.storage import Folder, StorageError, storage_errors

_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")  # with all that is added to it, still a file's name
_NUM_TRIES = 3
_DIGEST_LENGTH = 16  # hex digits

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How to make tensors that many trials share.

    Attributes:
        name: what is made, for people and file names: letters, digits, '-' and '_'.
        ingredients: everything that what is made depends on, as JSON values (architecture, data fingerprint, seed, a
            version number of the code that makes it): equal ingredients, equal tensors.
        make: makes it, on the device given; returns named tensors, on any device. It draws from generators of its own, never
            from torch's global one: a trial's numbers must not depend on whether it was the one that made.
        needs: what it is made of and is itself made once, such as a corpus; `make` then has a second argument, the tensors of
            each by name.
        check: refuses, by a ValueError, inputs that are missing or of no use; asked before a study starts, not by its trials.
    """

    name: str
    ingredients: Mapping[str, Any]
    make: Callable[..., dict[str, Tensor]]
    needs: "Mapping[str, Recipe]" = dataclasses.field(default_factory=dict)
    check: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        law = "a recipe's name must be 1 to 100 letters, digits, '-' and '_'"
        require(_NAME.fullmatch(self.name) is not None, law, repr(self.name), "it becomes a part of a file's name")
        _ = self.canonical  # raises now, not when a trial is under way

    @property
    def canonical(self) -> str:
        """Name and ingredients as JSON, the same text for equal ones.

        Raises:
            ValueError: if the ingredients are no JSON values.
        """
        law, remedy = f"the ingredients of {self.name} must be JSON values", "use text, numbers, lists and dicts"
        try:
            content: dict[str, Any] = {"name": self.name, "ingredients": dict(self.ingredients)}
            if self.needs:
                content["needs"] = {name: recipe.key for name, recipe in self.needs.items()}
            text = json.dumps(content, sort_keys=True, allow_nan=False, separators=(",", ":"))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{law}, but {error}; {remedy}") from error
        require(_has_text_keys(content), law, "a dict with a key that is no text", remedy)  # `json` takes 1 for "1"
        return text

    @property
    def key(self) -> str:
        """What the files are named by: the recipe's name and the digest of all of it."""
        return f"{self.name}-{_digest(self.canonical.encode())}"

    def check_all(self) -> None:
        """Check it and all that it needs.

        Raises:
            ValueError: from the first check that finds something.
        """
        self.check()
        for recipe in self.needs.values():
            recipe.check_all()


class Shared:
    """Things made once in a storage folder, read by every trial of a study, in every process and after a resume.

    On a disk there is at most one maker of a thing at a time, and what it has made nobody makes again: the others wait at a
    lock, which the kernel frees when its holder is killed. This holds among the machines that the locks of the file system
    reach: all that mount an NFS folder, unless with `nolock` or `local_lock`.

    On an object store there is no lock, so several may make the same thing at once, but all use the same one. Each uploads
    its own, then claims it by a second, tiny object; the earliest claim by the store's clock wins, and the losers remove
    theirs. This holds while a claim's upload, plus one tick of that clock, takes less than `settle_s`. A maker that is
    killed may leave an upload that nobody uses and nobody removes.

    Args:
        folder: where they lie; it may hold other files too.
        settle_s: how long after seeing a claim to look for an earlier one; used on object stores alone.

    Attributes:
        digests: of what was read so far, by the keys of its recipes: the first 16 hex digits of its file's sha256.
    """

    def __init__(self, folder: Folder, *, settle_s: float = 2.0) -> None:
        self._folder = folder
        self._settle_s = settle_s
        self.digests: dict[str, str] = {}

    def get(self, recipe: Recipe, device: torch.device) -> dict[str, Tensor]:
        """Read what a recipe makes, after making it on `device` if nobody has.

        Whatever `recipe.make` raises is raised here, and leaves nothing behind; who asks next tries for itself.

        Returns:
            CPU tensors as the storage gives them, mapped where it is a disk: the maker too uses what all others will.

        Raises:
            StorageError: if the storage fails, or does not give back what it was given.
        """
        find = self._from_disk if self._folder.is_local else self._from_object_store
        name, tensors = find(recipe, device)
        self.digests[recipe.key] = name.removesuffix(".safetensors")[-_DIGEST_LENGTH:]
        return tensors

    def _from_disk(self, recipe: Recipe, device: torch.device) -> tuple[str, dict[str, Tensor]]:
        """The name of the file that holds it, and what it holds."""
        for name in self._published(recipe.key):
            tensors = self._read(name, recipe)
            if tensors is not None:
                return name, tensors
        with _locked(Path(self._folder.address) / f"{recipe.key}.lock", recipe.key):
            return self._from_disk_alone(recipe, device)

    def _from_disk_alone(self, recipe: Recipe, device: torch.device) -> tuple[str, dict[str, Tensor]]:
        """Make it, unless another has while this one waited; the caller holds the lock."""
        self._sweep(recipe.key)
        for name in self._published(recipe.key):
            tensors = self._read(name, recipe)
            if tensors is not None:
                return name, tensors
            self._drop_damaged(name)
        data = _make(recipe, device, self.get)
        name = f"{recipe.key}-{_digest(data)}.safetensors"
        self._write(name, data)
        tensors = self._read(name, recipe)
        if tensors is None:
            raise _unkept(recipe.key)
        return name, tensors

    def _published(self, key: str) -> list[str]:
        """The files of a key: one, or none."""
        # Listed, not looked up by name: an NFS client remembers for a while that a name was missing, but asks its server
        # for news of a folder that is opened.
        pattern = re.compile(_data_pattern(key))
        with storage_errors(key):
            return [name for name in self._folder.names() if pattern.fullmatch(name)]

    def _sweep(self, key: str) -> None:
        """Remove what makers left that were killed while they wrote; the caller holds the lock, so none of them still does."""
        pattern = re.compile(rf"\.{_data_pattern(key)}\.[0-9a-f]{{32}}\.partial")
        with storage_errors(key):
            for path in Path(self._folder.address).iterdir():
                if pattern.fullmatch(path.name):
                    path.unlink(missing_ok=True)

    def _from_object_store(self, recipe: Recipe, device: torch.device) -> tuple[str, dict[str, Tensor]]:
        for _ in range(_NUM_TRIES):
            winner = self._winner(recipe.key)
            if winner is None:
                winner = self._compete(recipe.key, _make(recipe, device, self.get), recipe.canonical)
            name = f"{winner}.safetensors"
            tensors = self._read(name, recipe)
            if tensors is not None:
                return name, tensors
            self._drop_damaged(f"{winner}.claim", name)
        raise _unkept(recipe.key)

    def _compete(self, key: str, data: bytes, claim: str) -> str:
        """Upload and claim what was made, unless another has a claim; returns whose is used, maybe this one's own."""
        winner = self._winner(key)
        if winner is not None:
            return winner
        own = f"{key}-{uuid.uuid4().hex}-{_digest(data)}"
        self._write(f"{own}.safetensors", data)
        self._write(f"{own}.claim", claim.encode())
        winner = self._winner(key) or own
        if winner != own:
            self._delete(f"{own}.claim", f"{own}.safetensors")
        return winner

    def _winner(self, key: str) -> str | None:
        """Name, without its ending, of what all use; None while nothing is claimed."""
        if not self._claims(key):
            return None
        time.sleep(self._settle_s)  # a claim that will beat this one may be on its way
        claims = self._claims(key)
        return min(claims, key=lambda name: (claims[name], name), default=None)

    def _claims(self, key: str) -> dict[str, int]:
        pattern = re.compile(rf"({re.escape(key)}-[0-9a-f]{{32}}-[0-9a-f]{{16}})\.claim")
        with storage_errors(key):
            times = self._folder.modified_ns()
        return {match[1]: time_ns for name, time_ns in times.items() if (match := pattern.fullmatch(name))}

    def _write(self, name: str, data: bytes) -> None:
        with storage_errors(name):
            self._folder.write(name, data)

    def _delete(self, *names: str) -> None:
        for name in names:
            with storage_errors(name):
                self._folder.delete(name)

    def _drop_damaged(self, *names: str) -> None:
        logger.warning("%s/%s is damaged; making it again", self._folder.address, names[-1])
        self._delete(*names)

    def _read(self, name: str, recipe: Recipe) -> dict[str, Tensor] | None:
        """Read a file if it is there, whole, and made by this recipe."""
        with storage_errors(name):
            try:
                if self._folder.is_local:
                    return self._map(Path(self._folder.address) / name, recipe)
                data = self._folder.read(name)
            except FileNotFoundError:
                return None
        is_whole = name.endswith(f"-{_digest(data)}.safetensors")
        return safetensors.torch.load(data) if is_whole and _recipe_in(data) == recipe.canonical else None

    def _map(self, path: Path, recipe: Recipe) -> dict[str, Tensor] | None:
        """Map a file: all processes of a machine share its pages, until one of them writes to its copy."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:_DIGEST_LENGTH]
        if not path.name.endswith(f"-{digest}.safetensors"):
            return None
        try:
            with safe_open(path, framework="pt") as tensors:
                is_its_own = (tensors.metadata() or {}).get("recipe") == recipe.canonical
                return {key: tensors.get_tensor(key) for key in tensors.keys()} if is_its_own else None
        except SafetensorError:
            return None


@contextlib.contextmanager
def _locked(path: Path, key: str) -> Iterator[None]:
    """Let in one at a time, of all threads of all processes."""
    with storage_errors(key):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")  # for writing, as NFS demands; it is never removed, for others may wait at it
    with file:
        with storage_errors(key):
            _wait_for_lock(file, key)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # closing does not do while a process that `make` forked has a copy


def _wait_for_lock(file: BinaryIO, key: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.info("waits for %s, which another process is making", key)
        fcntl.flock(file, fcntl.LOCK_EX)


def make_alone(recipe: Recipe, device: torch.device) -> dict[str, Tensor]:
    """Make it, and what it needs, for one user, with no storage."""
    if not recipe.needs:
        return recipe.make(device)
    return recipe.make(device, {name: make_alone(need, device) for name, need in recipe.needs.items()})


def _make(recipe: Recipe, device: torch.device, get: Callable[[Recipe, torch.device], dict[str, Tensor]]) -> bytes:
    needed = ({name: get(need, device) for name, need in recipe.needs.items()},) if recipe.needs else ()
    logger.info("makes %s", recipe.key)
    start_s = time.monotonic()
    made = recipe.make(device, *needed)
    # Tensors that share memory, as tied weights do, cannot be written: each becomes one of its own.
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in made.items()}
    data = safetensors.torch.save(tensors, {"recipe": recipe.canonical})
    logger.info("made %s in %.1f s", recipe.key, time.monotonic() - start_s)
    return data


def _recipe_in(data: bytes) -> object:
    """The recipe that a safetensors file names in its header, or None."""
    num_bytes = int.from_bytes(data[:8], "little")
    try:
        return json.loads(data[8 : 8 + num_bytes])["__metadata__"]["recipe"]
    except (ValueError, KeyError, TypeError):
        return None


def _has_text_keys(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _has_text_keys(inner) for key, inner in value.items())
    return all(map(_has_text_keys, value)) if isinstance(value, list | tuple) else True


def _data_pattern(key: str) -> str:
    return rf"{re.escape(key)}-[0-9a-f]{{16}}\.safetensors"


def _unkept(key: str) -> StorageError:
    return StorageError(f"the storage must give back what it was given, but got a damaged {key}; mend it and resume the study")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGEST_LENGTH]
