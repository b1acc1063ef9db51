"""Draw a front: a picture for a colleague (matplotlib), or a page to explore (plotly, self-contained)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from study.charts import INK, bare, log_ticks, plot_file
from study.errors import UserError
from study.query import Front, Objective, Study, TrialRow
from study.report import short, summary

_VIRIDIS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (223, 210, 40))
_SIZES = {"infeasible": 42, "dominated": 42, "front": 95}
_OPACITIES = {"infeasible": 0.9, "dominated": 0.5, "front": 1.0}


def plot_front(study: Study, front: Front, path: Path) -> None:
    """Draw the front among the trials it beat, one panel for each pair of objectives.

    Args:
        path: `.png`, `.svg` or `.pdf` for a picture, `.html` for a page that shows a trial's parameters under the mouse.

    Raises:
        UserError: if there is nothing to draw, or the path has another ending or cannot be written.
    """
    marks = _marks(study, front)
    if not marks:
        raise UserError(f"a plot needs a finished trial, but {front.study!r} has none; see `study status {front.study}`")
    with plot_file(path):
        (_draw_page if path.suffix == ".html" else _draw_image)(study, front, marks, path)


@dataclass(frozen=True, slots=True)
class _Mark:
    """Trials that look alike: of one kind (front, dominated, infeasible) and one colour."""

    kind: str
    group: str | None
    color: tuple[int, int, int]
    rows: list[TrialRow]

    def values(self, name: str) -> list[Any]:
        return [_value(row, name) for row in self.rows]


def _marks(study: Study, front: Front) -> list[_Mark]:
    """Every trial of the picture, what is drawn first in front of the list."""
    kinds = {"infeasible": front.infeasible, "dominated": front.dominated, "front": front.rows}
    key = study.color_by
    found = {_value(row, key) for rows in kinds.values() for row in rows} if key else set()
    groups: list[Any] = sorted(found, key=lambda value: (value is None, isinstance(value, str), value)) or [None]
    marks = []
    for kind, rows in kinds.items():
        for place, group in enumerate(groups):
            members = [row for row in rows if key is None or _value(row, key) == group]
            if members:
                label = None if key is None else f"{key} = {short(group)}"
                marks.append(_Mark(kind, label, _mix(place / max(1, len(groups) - 1)), members))
    return marks


def _panels(front: Front) -> list[tuple[Objective, Objective]]:
    """Pairs of objectives, (x, y); a single objective is drawn against the trial number."""
    if len(front.objectives) == 1:
        return [(Objective(metric="trial", goal="min", unit="number"), front.objectives[0])]
    return [(second, first) for first, second in combinations(front.objectives, 2)]


def _stairs(front: Front, x: Objective, y: Objective) -> tuple[list[float], list[float]] | None:
    """The line between what was reached and what was not, where the picture shows the whole front."""
    if len(front.objectives) != 2 or len(front.rows) < 2:
        return None
    points = sorted({(float(_value(row, x.metric)), float(_value(row, y.metric))) for row in front.rows})
    return [point[0] for point in points], [point[1] for point in points]


def _captions(front: Front, x: Objective, y: Objective) -> dict[tuple[float, float], str]:
    """Trial numbers beside the points of a front that is small enough for them."""
    places: dict[tuple[float, float], list[str]] = {}
    for row in front.rows if len(front.rows) <= 12 else ():
        places.setdefault((float(_value(row, x.metric)), float(_value(row, y.metric))), []).append(str(row.number))
    return {place: ", ".join(numbers) for place, numbers in places.items()}


def _value(row: TrialRow, name: str) -> Any:
    return row.number if name == "trial" else row.metrics.get(name, row.params.get(name))


def _label(objective: Objective) -> str:
    name = objective.metric.replace("_", " ")
    if objective.metric == "trial":
        return name
    unit = "" if objective.unit in ("1", name) else f"{objective.unit}; "
    return f"{name} ({unit}{'lower' if objective.goal == 'min' else 'higher'} is better)"


def _mix(share: float) -> tuple[int, int, int]:
    """A colour between dark violet (0) and yellow (1)."""
    place = share * (len(_VIRIDIS) - 1)
    low = min(math.floor(place), len(_VIRIDIS) - 2)
    red, green, blue = (round(a + (b - a) * (place - low)) for a, b in zip(_VIRIDIS[low], _VIRIDIS[low + 1], strict=True))
    return red, green, blue


def _draw_image(study: Study, front: Front, marks: Sequence[_Mark], path: Path) -> None:
    from matplotlib.figure import Figure

    panels = _panels(front)
    figure = Figure(figsize=(3 + 5.8 * len(panels), 5.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (x, y) in zip(axes, panels, strict=True):
        stairs = _stairs(front, x, y)
        if stairs:
            axis.step(*stairs, where="post", color=INK, linewidth=1.2, zorder=1)
        for mark in marks:
            label = f"{mark.kind}, {mark.group}" if mark.group else mark.kind
            style = {"marker": "x"} if mark.kind == "infeasible" else {"marker": "o", "edgecolors": INK}
            axis.scatter(
                mark.values(x.metric), mark.values(y.metric), s=_SIZES[mark.kind], alpha=_OPACITIES[mark.kind],
                color=[tuple(c / 255 for c in mark.color)], label=label, zorder=2 + (mark.kind == "front"),
                linewidths=0 if mark.kind == "dominated" else 1.3, **style,
            )  # fmt: skip
        for place, text in _captions(front, x, y).items():
            axis.annotate(text, place, xytext=(7, 5), textcoords="offset points", fontsize=8.5, color=INK)
        axis.set(xlabel=_label(x), ylabel=_label(y))
        for objective, side, set_scale in ((x, axis.xaxis, axis.set_xscale), (y, axis.yaxis, axis.set_yscale)):
            if objective.metric in study.log_scale:
                set_scale("log")
                log_ticks(side)
        bare(axis)
    handles, labels = axes[-1].get_legend_handles_labels()
    axes[-1].legend(handles[::-1], labels[::-1], fontsize=8.5, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.suptitle(f"{front.study}: {summary(front)}", fontsize=10, x=0.01, ha="left")
    figure.savefig(path, dpi=160)


def _draw_page(study: Study, front: Front, marks: Sequence[_Mark], path: Path) -> None:
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    panels = _panels(front)
    figure = make_subplots(rows=1, cols=len(panels))
    for column, (x, y) in enumerate(panels, start=1):
        stairs = _stairs(front, x, y)
        if stairs:
            line = {"shape": "hv", "color": INK, "width": 1.5}
            figure.add_trace(Scatter(x=stairs[0], y=stairs[1], mode="lines", line=line, hoverinfo="skip", showlegend=False))
        for mark in marks:
            color = "rgb({}, {}, {})".format(*mark.color)
            marker = {
                "color": color,
                "size": math.sqrt(_SIZES[mark.kind]) * 1.4,
                "opacity": _OPACITIES[mark.kind],
                "symbol": "x-thin" if mark.kind == "infeasible" else "circle",
                "line": {"width": 1.5, "color": INK if mark.kind == "front" else color},
            }
            label = f"{mark.kind}, {mark.group}" if mark.group else mark.kind
            hover = [_hover(front, row) for row in mark.rows]
            trace = Scatter(
                x=mark.values(x.metric), y=mark.values(y.metric), mode="markers", marker=marker, text=hover,
                hoverinfo="text", name=label, legendgroup=label, showlegend=column == 1,
            )  # fmt: skip
            figure.add_trace(trace, 1, column)
        for objective, update in ((x, figure.update_xaxes), (y, figure.update_yaxes)):
            kind = "log" if objective.metric in study.log_scale else "linear"
            update(title_text=_label(objective), type=kind, row=1, col=column)
    title = f"{front.study}: {summary(front)}"
    figure.update_layout(template="plotly_white", title=title, title_font_size=15, font_color=INK, legend_traceorder="reversed")
    figure.write_html(path, include_plotlyjs=True)


def _hover(front: Front, row: TrialRow) -> str:
    values = [f"{objective.metric}: {short(row.metrics[objective.metric])}" for objective in front.objectives]
    params = [f"{name}: {short(value)}" for name, value in row.params.items()]
    return "<br>".join([f"<b>trial {row.number}</b>", *values, "", *params])
