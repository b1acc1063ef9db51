"""Show what a study found as tables: for a terminal, as CSV, in one sentence."""

import csv
import io
from collections.abc import Sequence

from rich.table import Table

from study.asking.trials import TrialRow
from study.fronts.front import Front, Objective

_MANY_PARAMETERS = 10


def short(value: object) -> str:
    """A number as people read it: whole ones in full, others to four digits, and with all that are before the point."""
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """A time as people tell it: 42 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def front_table(front: Front) -> Table:
    """The front, a row a model: trial and candidate, objectives, parameters.

    Of many parameters, those that only some rows have share one column.
    """
    names = parameter_names(front.rows)
    are_many = len(names) > _MANY_PARAMETERS
    own = [name for name in names if are_many and any(name not in row.params for row in front.rows)]
    shared = [name for name in names if name not in own]
    return _models_table(f"Pareto front of {front.study}", "trial", front.rows, front.objectives, shared, own)


def candidates_table(rows: Sequence[TrialRow], objectives: Sequence[Objective]) -> Table:
    """The candidates of a trial: label, objectives."""
    return _models_table("candidates", "candidate", rows, objectives)


def _models_table(
    title: str,
    label: str,
    rows: Sequence[TrialRow],
    objectives: Sequence[Objective],
    parameters: Sequence[str] = (),
    own: Sequence[str] = (),
) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(label, justify="right")
    for objective in objectives:
        arrow = "↓" if objective.goal == "min" else "↑"
        table.add_column(f"{objective.metric} {arrow}", justify="right", style="bold", overflow="fold")
    for name in parameters:
        table.add_column(name, justify="right", overflow="fold")
    if own:
        table.add_column("of its own", overflow="fold")
    for row in rows:
        values = [short(row.metrics[objective.metric]) for objective in objectives]
        values += [short(row.params.get(name, "-")) for name in parameters]
        if own:
            values.append(", ".join(f"{name} {short(row.params[name])}" for name in own if name in row.params))
        table.add_row(row.label, *values)
    return table


def summary(front: Front) -> str:
    """One sentence: how many models were compared, and how many were not, by reason."""
    num_compared = len(front.rows) + len(front.dominated)
    left_out = ", ".join(f"{count} {reason}" for reason, count in front.left_out.items()) or "none"
    return f"{len(front.rows)} of {num_compared} compared {what_is_compared(front)} are on the front; left out: {left_out}"


def repeated_work(rows: Sequence[TrialRow]) -> str | None:
    """What interruptions cost these trials, in all; None where they cost nothing."""
    num_steps, seconds = sum(row.repeated_steps for row in rows), sum(row.repeated_seconds for row in rows)
    return f"repeated {num_steps} step{'s'[: num_steps > 1]} ({seconds:.1f} s) after interruptions" if num_steps else None


def what_is_compared(front: Front) -> str:
    """How to call the rows of a front: trials where each stands for itself, models where some have candidates."""
    return "models" if front.has_candidates else "trials"


def front_csv(front: Front) -> str:
    """The front as CSV: trial, candidate where there are any, objectives, parameters, run_id.

    Two columns of whole numbers and no label: what reads a CSV takes 3.1 and 3.10 for the same number.
    """
    names = parameter_names(front.rows)
    label = ["trial", "candidate"] if front.has_candidates else ["trial"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*label, *(objective.metric for objective in front.objectives), *names, "run_id"])
    for row in front.rows:
        values = [row.metrics[objective.metric] for objective in front.objectives]
        place = [row.number, row.candidate][: len(label)]
        writer.writerow([*place, *values, *(row.params.get(name, "") for name in names), row.run_id])
    return text.getvalue()


def parameter_names(rows: Sequence[TrialRow]) -> list[str]:
    """Every parameter that some row has, in the order they are met."""
    return list(dict.fromkeys(name for row in rows for name in row.params))
