"""The live view of a running study: a bar and the front on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from search_spaces.space import Constraint
from study.fronts.pareto import non_dominated
from study.home import model_label
from study.reporting.report import duration
from study.running.record import Draw, PastTrial
from study.spec import StudySpec
from trainables.protocol import Failure

_MAX_FRONT_ROWS = 12

_Row = tuple[str, dict[str, Any], list[float]]
"""A model's label, its parameters, its objectives."""


class Board:
    """Follows a study; a `study.running.searcher.Watcher`.

    Args:
        past: trials that finished in earlier sessions.
        console: where to draw; a terminal gets the live view.
        num_failed, num_stopped: trials that failed, or were stopped early, in earlier sessions.
    """

    def __init__(
        self, spec: StudySpec, past: Sequence[PastTrial], console: Console, *, num_failed: int = 0, num_stopped: int = 0
    ) -> None:
        self._spec = spec
        self._goals = spec.description.objectives
        self._constraints = [Constraint.parse(text) for text in spec.description.constraints]
        self._console = console
        self._front: list[_Row] = []
        self._names: dict[str, None] = {}
        self._add_to_front([(model_label(t.number, t.candidate), t.params, t.values) for t in past if t.feasible])
        self._num_done = len(past)
        self._num_failed = num_failed
        self._num_stopped = num_stopped
        self._running: dict[int, float] = {}
        self._started_at = time.monotonic()
        self._done_before = self._num_over
        self._is_spent = False
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[counts]}"),
            console=console,
        )
        self._task = self._bar.add_task(spec.name, total=spec.num_trials, completed=self._num_over, counts="")
        self._live = Live(self, console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    @property
    def _num_over(self) -> int:
        return self._num_done + self._num_failed + self._num_stopped

    def trial_started(self, draw: Draw) -> None:
        self._running[draw.number] = 0.0
        if draw.attempt > 1:
            self._say(f"trial {draw.number} goes on (attempt {draw.attempt})")
        if draw.repeats is not None and not self._is_spent:
            self._is_spent = True
            self._say(f"the space seems spent: trial {draw.number} repeats trial {draw.repeats}, and others may follow")

    def trial_measured(self, number: int, progress: float) -> None:
        self._running[number] = progress

    def trial_finished(self, draw: Draw, metrics: Mapping[str, float], candidate: int | None) -> None:
        self._running.pop(draw.number, None)
        self._num_done += 1
        label = model_label(draw.number, candidate)
        values = [metrics[name] for name in self._goals]
        broken = [str(c) for c in self._constraints if c.violation(metrics) > 0]
        if not broken:
            self._add_to_front([(label, draw.params, values)])
        shown = ", ".join(f"{name} = {value:.6g}" for name, value in zip(self._goals, values, strict=True))
        self._tell(f"trial {label} finished: {shown}" + (f" (infeasible: {', '.join(broken)})" if broken else ""))

    def trial_stopped(self, draw: Draw, why: str) -> None:
        self._running.pop(draw.number, None)
        self._num_stopped += 1
        self._tell(f"trial {draw.number} stopped early: {why}")

    def trial_failed(self, draw: Draw, failure: Failure) -> None:
        self._running.pop(draw.number, None)
        self._num_failed += 1
        self._say(f"trial {draw.number} failed ({failure.cause}): {failure.error}")

    def trial_lost(self, draw: Draw, failure: Failure) -> None:
        self._running.pop(draw.number, None)
        what = {
            "preempted": "was preempted",
            "node_lost": "lost its node",
            "out_of_memory": "ran out of memory",
            "storage": "lost its storage",
        }
        self._say(f"trial {draw.number} {what.get(failure.cause, 'lost its worker')}; it goes on from its checkpoint")

    def _tell(self, line: str) -> None:
        """Plain output only: a terminal shows it in the front."""
        if not self._live:
            count = f"[{self._num_over}/{self._spec.num_trials}]"
            self._console.print(f"{count} {line}{self._time_left()}", highlight=False, markup=False)

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False)

    def _time_left(self) -> str:
        done = self._num_over - self._done_before
        if done == 0 or self._num_over >= self._spec.num_trials:
            return ""
        seconds_each = (time.monotonic() - self._started_at) / (done + sum(self._running.values()))
        left = self._spec.num_trials - self._num_over - sum(self._running.values())
        return f" | {60 / seconds_each:.1f} trials/min, about {duration(max(0.0, left * seconds_each))} left"

    def __rich__(self) -> Group:
        counts = f"{self._num_done} done, {len(self._running)} running, {self._num_failed} failed"
        counts += f", {self._num_stopped} stopped early" if self._num_stopped else ""
        completed = self._num_over + sum(self._running.values())
        self._bar.update(self._task, completed=completed, counts=counts + self._time_left())
        return Group(self._bar, self._front_table())

    def _add_to_front(self, rows: Sequence[_Row]) -> None:
        """Keep what no other model dominates; the front of a front and new rows is the front of all."""
        self._names |= dict.fromkeys(name for _, params, _ in rows for name in params)
        rows = [*self._front, *rows]
        if rows:
            signs = np.array([1.0 if goal == "min" else -1.0 for goal in self._goals.values()])
            mask = non_dominated(np.array([values for _, _, values in rows]) * signs)
            self._front = [row for row, kept in zip(rows, mask, strict=True) if kept]

    def _front_table(self) -> Table:
        table = Table(title="front so far" if self._front else "no feasible trial yet", title_justify="left", box=None)
        for column in ("trial", *self._goals, *self._names):
            table.add_column(column, justify="right", overflow="fold")
        for label, params, values in sorted(self._front, key=lambda row: row[2])[:_MAX_FRONT_ROWS]:
            table.add_row(label, *(f"{v:.6g}" for v in values), *(_short(params.get(name, "-")) for name in self._names))
        return table


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
