"""Show what a study found as tables: for a terminal, as CSV, in one sentence."""

import csv
import io
from collections.abc import Sequence

from rich.table import Table

from study.query import Front, TrialRow


def short(value: object) -> str:
    """A number as people read it: whole ones in full, others to four digits."""
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.4g}"
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def front_table(front: Front) -> Table:
    """The front, a row a trial: number, objectives, parameters."""
    table = Table(title=f"Pareto front of {front.study}", title_justify="left")
    names = parameter_names(front.rows)
    table.add_column("trial", justify="right")
    for objective in front.objectives:
        arrow = "↓" if objective.goal == "min" else "↑"
        table.add_column(f"{objective.metric} {arrow}", justify="right", style="bold", overflow="fold")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for row in front.rows:
        values = (short(row.metrics[objective.metric]) for objective in front.objectives)
        table.add_row(str(row.number), *values, *(short(row.params.get(name, "-")) for name in names))
    return table


def summary(front: Front) -> str:
    """One sentence: how many trials were compared, and how many were not, by reason."""
    num_compared = len(front.rows) + len(front.dominated)
    left_out = ", ".join(f"{count} {reason}" for reason, count in front.left_out.items()) or "none"
    return f"{len(front.rows)} of {num_compared} compared trials are on the front; left out: {left_out}"


def front_csv(front: Front) -> str:
    """The front as CSV: trial, objectives, parameters, run_id."""
    names = parameter_names(front.rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", *(objective.metric for objective in front.objectives), *names, "run_id"])
    for row in front.rows:
        values = (row.metrics[objective.metric] for objective in front.objectives)
        writer.writerow([row.number, *values, *(row.params.get(name, "") for name in names), row.run_id])
    return text.getvalue()


def parameter_names(rows: Sequence[TrialRow]) -> list[str]:
    """Every parameter that some row has, in the order they are met."""
    return list(dict.fromkeys(name for row in rows for name in row.params))
