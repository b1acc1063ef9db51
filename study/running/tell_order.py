"""In what order the record hears how trials ended, and so what a draw knows of those before it.

At once, as a rule: then a study with several workers depends on which of them was faster. In the deterministic mode draws
and tells take turns in one fixed order, whoever is faster and however often the study is interrupted: with a lookahead of
2, draw 0, draw 1, tell 0, draw 2, tell 1, draw 3, and so on. An end that comes too early waits in memory only: after a
crash its trial is handed out again, already finished.
"""

from collections.abc import Callable


class TellOrder:
    """Tells the record of ends.

    Args:
        lookahead: a trial is drawn when all but this many, less one, of those before it are told; None: whenever there is room.
        num_drawn, num_told: of the study so far.
        num_trials: its budget.
    """

    def __init__(self, lookahead: int | None, *, num_drawn: int, num_told: int, num_trials: int) -> None:
        self._lookahead = lookahead
        self._num_drawn, self._num_told, self._num_trials = num_drawn, num_told, num_trials
        self._waiting: dict[int, Callable[[], None]] = {}

    def may_draw(self) -> bool:
        """Whether the next trial may be drawn now."""
        return self._lookahead is None or self._num_drawn < self._num_told + self._lookahead

    def drawn(self) -> None:
        """Note that a trial was drawn; tell what has waited for it."""
        self._num_drawn += 1
        self._tell_those_due()

    def end(self, number: int, tell: Callable[[], None]) -> None:
        """Tell of a trial's end now, or when its turn comes."""
        self._waiting[number] = tell
        self._tell_those_due()

    @property
    def num_waiting(self) -> int:
        """Ends that the record has not heard of yet."""
        return len(self._waiting)

    def _tell_those_due(self) -> None:
        while (number := self._next_due()) is not None:
            self._waiting.pop(number)()
            self._num_told += 1

    def _next_due(self) -> int | None:
        if self._lookahead is None:
            return next(iter(self._waiting), None)
        has_its_turn = self._num_drawn >= min(self._num_told + self._lookahead, self._num_trials)
        return self._num_told if has_its_turn and self._num_told in self._waiting else None
