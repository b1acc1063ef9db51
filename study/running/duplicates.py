"""Which parameter sets a study has, so that none is run twice."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any


class ParameterSets:
    """The parameter sets of trials, as digests: one look answers, however many there are."""

    def __init__(self) -> None:
        self._digests: dict[int, bytes] = {}
        self._trials: dict[bytes, set[int]] = defaultdict(set)

    def add(self, trial: int, params: Mapping[str, Any]) -> None:
        """Note what a trial drew."""
        digest = self._digests[trial] = _digest(params)
        self._trials[digest].add(trial)

    def forget(self, trial: int) -> None:
        """A trial failed: what it drew was not found out, and may be drawn again."""
        if (digest := self._digests.pop(trial, None)) is not None:
            self._trials[digest].discard(trial)

    def first_with(self, params: Mapping[str, Any]) -> int | None:
        """The first trial with a parameter set; None if none has it."""
        return min(self._trials.get(_digest(params), ()), default=None)


def _digest(params: Mapping[str, Any]) -> bytes:
    text = json.dumps(params, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
