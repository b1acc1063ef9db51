"""Show what a study found: tables for a terminal, pictures for a colleague."""

import csv
import io
import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from rich.table import Table

from study.errors import UserError
from study.query import Front, Objective, Study, TrialRow

PLOT_FORMATS = (".png", ".svg", ".pdf", ".html")
_GREY, _INK = "#b8bcc4", "#1f2430"


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


def plot_front(study: Study, front: Front, path: Path) -> None:
    """Draw the front among the trials it beat, one panel for each pair of objectives.

    Args:
        path: `.png`, `.svg` or `.pdf` for a picture, `.html` for a page that shows a trial's parameters under the mouse.

    Raises:
        UserError: if there is nothing to draw, or the path has another ending.
    """
    if path.suffix not in PLOT_FORMATS:
        raise UserError(f"a plot's file must end in {', '.join(PLOT_FORMATS)}, but got {path.name!r}; try front.png")
    if not front.rows and not front.infeasible:
        raise UserError(f"a plot needs a finished trial, but {front.study!r} has none yet; see `study status {front.study}`")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        (_plot_html if path.suffix == ".html" else _plot_image)(study, front, path)
    except OSError as error:
        raise UserError(f"a plot must go where it can be written, but {path} cannot ({error}); name another place") from error


def _panels(study: Study, front: Front) -> list[tuple[Objective, Objective]]:
    """Pairs of objectives, (x, y); a single objective is drawn against the trial number."""
    if len(front.objectives) == 1:
        return [(Objective(metric="trial", goal="min", unit="number"), front.objectives[0])]
    return [(y, x) for x, y in combinations(front.objectives, 2)]


def _value(row: TrialRow, name: str) -> Any:
    return row.number if name == "trial" else row.metrics.get(name, row.params.get(name))


def _groups(study: Study, rows: Sequence[TrialRow]) -> list[tuple[str | None, list[TrialRow]]]:
    """Rows by the value that colours them; one group if nothing does."""
    if study.color_by is None:
        return [(None, list(rows))]
    values = sorted({_value(row, study.color_by) for row in rows}, key=lambda v: (v is None, str(type(v)), v))
    return [(str(value), [row for row in rows if _value(row, study.color_by) == value]) for value in values]


def _stairs(rows: Sequence[TrialRow], x: Objective, y: Objective) -> tuple[list[float], list[float]]:
    """The line that separates what was reached from what was not."""
    points = sorted({(float(_value(row, x.metric)), float(_value(row, y.metric))) for row in rows})
    return [point[0] for point in points], [point[1] for point in points]


def _label(objective: Objective) -> str:
    better = {"min": "lower is better", "max": "higher is better"}[objective.goal]
    name = objective.metric.replace("_", " ")
    return name if objective.metric == "trial" else f"{name} ({objective.unit}; {better})" if objective.unit not in ("1", name) else f"{name} ({better})"


def _plot_image(study: Study, front: Front, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = _panels(study, front)
    figure, axes = plt.subplots(1, len(panels), figsize=(7.2 * len(panels), 5.2), squeeze=False, layout="constrained")
    everybody = [*front.rows, *front.dominated, *front.infeasible]
    palette = plt.get_cmap("viridis")
    groups = _groups(study, everybody)
    colors = {name: palette(0.05 + 0.85 * i / max(1, len(groups) - 1)) for i, (name, _) in enumerate(groups)}
    kinds = ((front.infeasible, "infeasible", "x", 0.9), (front.dominated, "dominated", "o", 0.55), (front.rows, "front", "o", 1.0))
    for axis, (x, y) in zip(axes[0], panels, strict=True):
        if len(panels) == 1 and len(front.rows) > 1 and x.metric != "trial":
            axis.step(*_stairs(front.rows, x, y), where="post", color=_INK, linewidth=1.2, zorder=1)
        for rows, kind, marker, alpha in kinds:
            for name, members in _groups(study, rows):
                axis.scatter(
                    [_value(row, x.metric) for row in members], [_value(row, y.metric) for row in members],
                    color=colors[name], marker=marker, s=95 if kind == "front" else 42, alpha=alpha,
                    linewidths=1.4 if kind != "dominated" else 0, zorder=3 if kind == "front" else 2,
                    **({"edgecolors": _INK} if kind == "front" else {}),
                )  # fmt: skip
        for row in front.rows if len(front.rows) <= 12 else ():
            where = (float(_value(row, x.metric)), float(_value(row, y.metric)))
            axis.annotate(str(row.number), where, xytext=(7, 5), textcoords="offset points", fontsize=8.5, color=_INK)
        for objective, set_scale, set_label in ((x, axis.set_xscale, axis.set_xlabel), (y, axis.set_yscale, axis.set_ylabel)):
            set_label(_label(objective))
            if objective.metric in study.log_scale:
                set_scale("log")
        axis.grid(True, which="both", color="#e9ebef", linewidth=0.7, zorder=0)
        axis.spines[["top", "right"]].set_visible(False)
    handles = [plt.Line2D([], [], marker=m, linestyle="", color=_INK, alpha=a, markersize=9 if k == "front" else 6, label=k) for _, k, m, a in reversed(kinds) if _]
    if study.color_by:
        handles += [plt.Line2D([], [], marker="s", linestyle="", color=colors[name], markersize=8, label=f"{study.color_by} = {name}") for name, _ in groups]
    axes[0][-1].legend(handles=handles, fontsize=8.5, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.suptitle(f"{front.study}: {summary(front)}", fontsize=10, x=0.01, ha="left")
    figure.savefig(path, dpi=160)
    plt.close(figure)


def _plot_html(study: Study, front: Front, path: Path) -> None:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    panels = _panels(study, front)
    figure = make_subplots(rows=1, cols=len(panels))
    kinds = ((front.infeasible, "infeasible", "x-thin-open"), (front.dominated, "dominated", "circle"), (front.rows, "front", "circle"))
    everybody = [*front.rows, *front.dominated, *front.infeasible]
    names = [name for name, _ in _groups(study, everybody)]
    colors = {name: _viridis(i / max(1, len(names) - 1)) for i, name in enumerate(names)}
    for column, (x, y) in enumerate(panels, start=1):
        if len(panels) == 1 and len(front.rows) > 1 and x.metric != "trial":
            xs, ys = _stairs(front.rows, x, y)
            line = {"shape": "hv", "color": _INK, "width": 1.5}
            figure.add_trace(go.Scatter(x=xs, y=ys, mode="lines", line=line, hoverinfo="skip", name="front line", showlegend=False), 1, column)
        for rows, kind, symbol in kinds:
            for name, members in _groups(study, rows) if rows else ():
                marker = {
                    "size": 14 if kind == "front" else 9, "symbol": symbol, "color": colors[name],
                    "opacity": 0.55 if kind == "dominated" else 1, "line": {"width": 1.5, "color": _INK if kind == "front" else colors[name]},
                }  # fmt: skip
                figure.add_trace(
                    go.Scatter(
                        x=[_value(row, x.metric) for row in members], y=[_value(row, y.metric) for row in members],
                        mode="markers", marker=marker, text=[_hover(front, row) for row in members], hoverinfo="text",
                        name=kind if study.color_by is None else f"{kind}, {study.color_by} = {name}", showlegend=column == 1,
                    ), 1, column,
                )  # fmt: skip
        for objective, update in ((x, figure.update_xaxes), (y, figure.update_yaxes)):
            scale = "log" if objective.metric in study.log_scale else "linear"
            update(title_text=_label(objective), type=scale, row=1, col=column)
    figure.update_layout(template="plotly_white", title=f"{front.study}: {summary(front)}", title_font_size=15, font_color=_INK)
    figure.write_html(path, include_plotlyjs=True)


def _hover(front: Front, row: TrialRow) -> str:
    values = [f"{objective.metric}: {short(row.metrics[objective.metric])}" for objective in front.objectives]
    params = [f"{name}: {short(value)}" for name, value in row.params.items()]
    return "<br>".join([f"<b>trial {row.number}</b>", *values, "", *params])


def _viridis(share: float) -> str:
    stops = [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (223, 210, 40)]
    place = share * (len(stops) - 1)
    low = min(int(math.floor(place)), len(stops) - 2)
    mixed = [round(a + (b - a) * (place - low)) for a, b in zip(stops[low], stops[low + 1], strict=True)]
    return f"rgb({mixed[0]}, {mixed[1]}, {mixed[2]})"
