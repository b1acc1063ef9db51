"""Checkpoints of one trial: the newest whole one wins, and the one before is kept until then.

A checkpoint's name holds its step, the attempt that wrote it and the digest of its bytes, so that one rename publishes all
of it, and a damaged file is known when it is read.

An attempt may outlive its study's patience: its node was out of reach, its driver died, and another attempt took the trial.
So each attempt but the first writes down, before anything else, which checkpoints it found. What an older attempt writes
after that is not among them and is never loaded; and the older attempt finds the note and gives up.
"""

import hashlib
import io
import json
import logging
import re
from collections.abc import Mapping
from typing import Any

import torch

from trainables.failures import SupersededError
from trainables.storage import Folder, storage_errors

_NAME = re.compile(r"step-(\d{8})-(\d{4,})-([0-9a-f]{16})\.pt")
_CLAIM = re.compile(r"attempt-(\d{4,})\.json")
NUM_KEPT = 2

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of a trial, as one attempt sees them.

    Args:
        folder: of the trial's checkpoints.
        attempt: 1 for the first.
    """

    def __init__(self, folder: Folder, attempt: int) -> None:
        self._folder, self._attempt = folder, attempt
        self._damaged: set[str] = set()

    def claim(self) -> None:
        """Take the trial over from older attempts.

        Raises:
            SupersededError: if a younger one has it already.
            StorageError: if the storage fails.
        """
        names, visible = self._look()
        if self._attempt > 1:
            with storage_errors("checkpoints"):
                self._folder.write(f"attempt-{self._attempt:04d}.json", json.dumps(visible).encode())
                self._folder.sweep()
                for attempt, name in _claims(names).items():
                    if attempt < self._attempt:
                        self._folder.delete(name)

    def refuse_if_superseded(self) -> None:
        """Find out whether the trial is still this attempt's.

        Raises:
            SupersededError: if a younger attempt has it.
            StorageError: if the storage fails.
        """
        self._look()

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write a state of tensors and plain values, then drop all but the newest two.

        Raises:
            SupersededError: if a younger attempt has the trial.
            StorageError: if the storage fails.
        """
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        data = buffer.getvalue()
        names, visible = self._look()
        new = f"step-{step:08d}-{self._attempt:04d}-{_digest(data)}.pt"
        kept = sorted({*visible, new} - self._damaged)[-NUM_KEPT:]
        with storage_errors("checkpoints"):
            self._folder.write(new, data)
            for name in names:
                if _NAME.fullmatch(name) and name not in kept:
                    self._folder.delete(name)

    def load(self) -> dict[str, Any] | None:
        """Read the newest checkpoint whose bytes are whole, or None if there is none; tensors come on the CPU.

        A damaged one is passed over with a warning. Nothing is unpickled but tensors and plain values.
        """
        _, visible = self._look()
        for name in reversed(visible):
            with storage_errors("checkpoints"):
                try:
                    data = self._folder.read(name)
                except FileNotFoundError:  # a worker that outlived its driver is still pruning
                    continue
            match = _NAME.fullmatch(name)
            if match and match[3] == _digest(data):
                state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
                return state
            self._damaged.add(name)
            logger.warning("checkpoint %s/%s is damaged; going back to the one before", self._folder.address, name)
        return None

    def _look(self) -> tuple[list[str], list[str]]:
        """Every file here; and the checkpoints that count, oldest first: those that the last claim found, and later ones."""
        with storage_errors("checkpoints"):
            names = self._folder.names()
            claims = _claims(names)
            latest = max(claims, default=1)
            found = json.loads(self._folder.read(claims[latest])) if claims else []
        if latest > self._attempt:
            raise SupersededError(
                f"a trial must have one attempt at a time, but attempt {latest} took over from attempt {self._attempt}; "
                "leave it to that one"
            )
        attempts = {name: int(match[2]) for name in names if (match := _NAME.fullmatch(name))}
        return names, sorted(name for name, attempt in attempts.items() if attempt >= latest or name in found)


def _claims(names: list[str]) -> dict[int, str]:
    return {int(match[1]): name for name in names if (match := _CLAIM.fullmatch(name))}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
