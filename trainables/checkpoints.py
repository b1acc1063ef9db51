"""Checkpoints of one trial: the newest whole one wins, and the one before is kept until then.

A checkpoint's name holds its step and the digest of its bytes, so that one rename publishes both, and a damaged file is
known when it is read.
"""

import hashlib
import io
import logging
import re
from collections.abc import Mapping
from typing import Any

import torch

from trainables.storage import Folder, storage_errors

_NAME = re.compile(r"step-(\d{8})-([0-9a-f]{16})\.pt")
NUM_KEPT = 2

logger = logging.getLogger(__name__)


def save_checkpoint(folder: Folder, step: int, state: Mapping[str, Any]) -> None:
    """Write a state of tensors and plain values, then drop all but the newest two."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    data = buffer.getvalue()
    with storage_errors("checkpoints"):
        folder.write(f"step-{step:08d}-{_digest(data)}.pt", data)
        for name in _checkpoints(folder)[:-NUM_KEPT]:
            folder.delete(name)


def load_checkpoint(folder: Folder) -> dict[str, Any] | None:
    """Read the newest checkpoint whose bytes are whole, or None if there is none; tensors come on the CPU.

    A damaged one is passed over with a warning. Nothing is unpickled but tensors and plain values.
    """
    with storage_errors("checkpoints"):
        names = _checkpoints(folder)
    for name in reversed(names):
        with storage_errors("checkpoints"):
            try:
                data = folder.read(name)
            except FileNotFoundError:  # a worker that outlived its driver is still pruning
                continue
        match = _NAME.fullmatch(name)
        if match and match[2] == _digest(data):
            state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            return state
        logger.warning("checkpoint %s/%s is damaged; going back to the one before", folder.address, name)
    return None


def _checkpoints(folder: Folder) -> list[str]:
    return [name for name in folder.names() if _NAME.fullmatch(name)]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
