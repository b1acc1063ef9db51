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
from study.report import short, summary, what_is_compared
from trainables.charts import PALETTE

_VIRIDIS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (223, 210, 40))
_COLORS = (*PALETTE, "#000000")
_SIZES = {"infeasible": 42, "dominated": 42, "front": 95}
_MARGIN = 0.06
_OPACITIES = {"infeasible": 0.9, "dominated": 0.5, "front": 1.0}
_NEUTRAL = "#8a90a0"
_MAX_LEGEND_COLORS = 9


def plot_front(study: Study, front: Front, path: Path) -> None:
    """Draw the front among the models it beat, one panel for each pair of objectives.

    Args:
        path: `.png`, `.svg` or `.pdf` for a picture, `.html` for a page that shows a model's parameters under the mouse.

    Raises:
        UserError: if there is nothing to draw, or the path has another ending or cannot be written.
    """
    colors = _colors(study, front)
    if not colors:
        raise UserError(f"a plot needs a finished trial, but {front.study!r} has none; see `study status {front.study}`")
    with plot_file(path):
        (_draw_page if path.suffix == ".html" else _draw_image)(study, front, colors, path)


@dataclass(frozen=True, slots=True)
class _Mark:
    """Models of one panel that look alike: of one kind (front, dominated, infeasible) and one colour.

    Attributes:
        entry: of the legend, which hides and shows them on a page.
    """

    kind: str
    color: str
    entry: str
    rows: list[TrialRow]
    x: list[float]
    y: list[float]


def _kinds(front: Front) -> dict[str, tuple[TrialRow, ...]]:
    """The models of the picture, what is drawn first in front."""
    return {"infeasible": front.infeasible, "dominated": front.dominated, "front": front.rows}


def _colors(study: Study, front: Front) -> dict[Any, str]:
    """The colour of each value of what tells models apart: colours of their own for a few names, a scale for numbers."""
    rows = [row for members in _kinds(front).values() for row in members]
    found = {_group(study, row) for row in rows}
    groups = sorted(found, key=lambda value: (value is None, isinstance(value, str), value))
    if any(isinstance(group, str) for group in groups) and len(groups) <= len(_COLORS):
        return dict(zip(groups, _COLORS, strict=False))
    return {group: _mix(place / max(1, len(groups) - 1)) for place, group in enumerate(groups)}


def _group(study: Study, row: TrialRow) -> Any:
    return _value(row, study.color_by) if study.color_by else None


def _told(study: Study, group: Any) -> str:
    return f"{study.color_by} = {short(group)}"


def _mix(share: float) -> str:
    """A colour between dark violet (0) and yellow (1)."""
    place = share * (len(_VIRIDIS) - 1)
    low = min(math.floor(place), len(_VIRIDIS) - 2)
    mixed = (round(a + (b - a) * (place - low)) for a, b in zip(_VIRIDIS[low], _VIRIDIS[low + 1], strict=True))
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def _marks(study: Study, front: Front, colors: dict[Any, str], x: Objective, y: Objective) -> list[_Mark]:
    """Every model that has a place in a panel."""
    marks = []
    edges = {objective: _edges(study, front, objective) for objective in (x, y)}
    for kind, rows in _kinds(front).items():
        for group, color in colors.items():
            members = [row for row in _placed(study, rows, x, y) if _group(study, row) == group]
            if members:
                places = (
                    [min(max(float(_value(row, objective.metric)), low), high) for row in members]
                    for objective, (low, high) in edges.items()  # only an infeasible one may lie beyond them
                )
                marks.append(_Mark(kind, color, _told(study, group) if study.color_by else kind, members, *places))
    return marks


def _edges(study: Study, front: Front, objective: Objective) -> tuple[float, float]:
    """How far an axis reaches: a little beyond all models that are compared. An infeasible one further off stands at the edge."""
    rows = _placed(study, [*front.rows, *front.dominated], objective)
    values = [float(_value(row, objective.metric)) for row in rows]
    if len(set(values)) < 2:
        return -math.inf, math.inf
    is_log = objective.metric in study.log_scale
    low, high = (math.log(end) if is_log else end for end in (min(values), max(values)))
    edges = low - _MARGIN * (high - low), high + _MARGIN * (high - low)
    return (math.exp(edges[0]), math.exp(edges[1])) if is_log else edges


def _placed(study: Study, rows: Sequence[TrialRow], *objectives: Objective) -> list[TrialRow]:
    """Those that all these axes have a place for: a logarithmic one has none for 0."""
    names = [objective.metric for objective in objectives if objective.metric in study.log_scale]
    return [row for row in rows if all(_value(row, name) > 0 for name in names)]


def _title(study: Study, front: Front) -> str:
    rows = [row for members in _kinds(front).values() for row in members]
    num_missing = len(rows) - len(_placed(study, rows, *front.objectives))
    models = what_is_compared(front)
    missing = f"1 {models[:-1]} at 0 is not drawn" if num_missing == 1 else f"{num_missing} {models} at 0 are not drawn"
    return f"{front.study}: {summary(front)}" + (f"; {missing}" if num_missing else "")


def _legend_colors(study: Study, colors: dict[Any, str]) -> dict[str, str]:
    """The colour of each value as the legend tells it; of many values some, from the first to the last."""
    if study.color_by is None:
        return {}
    entries = [(_told(study, group), color) for group, color in colors.items()]
    num = min(len(entries), _MAX_LEGEND_COLORS)
    return dict(entries[round(place * (len(entries) - 1) / max(1, num - 1))] for place in range(num))


def _panels(front: Front) -> list[tuple[Objective, Objective]]:
    """Pairs of objectives, (x, y); a single objective is drawn against the trial number."""
    if len(front.objectives) == 1:
        return [(Objective(metric="trial", goal="min", unit="number"), front.objectives[0])]
    return [(second, first) for first, second in combinations(front.objectives, 2)]


def _stairs(study: Study, front: Front, x: Objective, y: Objective) -> tuple[list[float], list[float]] | None:
    """The line between what was reached and what was not, where the picture shows the whole front."""
    rows = _placed(study, front.rows, x, y)
    if len(front.objectives) != 2 or len(rows) < 2:
        return None
    points = sorted({(float(_value(row, x.metric)), float(_value(row, y.metric))) for row in rows})
    return [point[0] for point in points], [point[1] for point in points]


def _captions(study: Study, front: Front, x: Objective, y: Objective) -> dict[tuple[float, float], str]:
    """Labels beside the points of a front that is small enough for them."""
    places: dict[tuple[float, float], list[str]] = {}
    for row in _placed(study, front.rows, x, y) if len(front.rows) <= 12 else ():
        places.setdefault((float(_value(row, x.metric)), float(_value(row, y.metric))), []).append(row.label)
    return {place: ", ".join(labels) for place, labels in places.items()}


def _value(row: TrialRow, name: str) -> Any:
    return row.number if name == "trial" else row.metrics.get(name, row.params.get(name))


def _label(objective: Objective) -> str:
    name = objective.metric.replace("_", " ")
    if objective.metric == "trial":
        return name
    unit = "" if objective.unit in ("1", name) else f"{objective.unit}; "
    return f"{name} ({unit}{'lower' if objective.goal == 'min' else 'higher'} is better)"


def _draw_image(study: Study, front: Front, colors: dict[Any, str], path: Path) -> None:
    from matplotlib.figure import Figure

    panels = _panels(front)
    figure = Figure(figsize=(3 + 5.8 * len(panels), 5.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (x, y) in zip(axes, panels, strict=True):
        stairs = _stairs(study, front, x, y)
        if stairs:
            axis.step(*stairs, where="post", color=INK, linewidth=1.2, zorder=1)
        for mark in _marks(study, front, colors, x, y):
            axis.scatter(mark.x, mark.y, color=mark.color, zorder=2 + (mark.kind == "front"), **_dot(mark.kind))
        for place, text in _captions(study, front, x, y).items():
            axis.annotate(text, place, xytext=(7, 5), textcoords="offset points", fontsize=8.5, color=INK)
        axis.set(xlabel=_label(x), ylabel=_label(y))
        for objective, side, set_scale in ((x, axis.xaxis, axis.set_xscale), (y, axis.yaxis, axis.set_yscale)):
            if objective.metric in study.log_scale:
                set_scale("log")
                log_ticks(side)
        bare(axis)
    one_color = {} if study.color_by else {"color": next(iter(colors.values()))}
    for kind in reversed([kind for kind, rows in _kinds(front).items() if rows]):
        axes[-1].scatter([], [], label=kind, **_dot(kind) | {"color": _NEUTRAL} | one_color)
    for label, color in _legend_colors(study, colors).items():
        axes[-1].scatter([], [], label=label, color=color, marker="s", s=60)
    axes[-1].legend(fontsize=8.5, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.suptitle(_title(study, front), fontsize=10, x=0.01, ha="left")
    figure.savefig(path, dpi=160)


def _dot(kind: str) -> dict[str, Any]:
    """How matplotlib shows a kind of models."""
    style = {"marker": "x"} if kind == "infeasible" else {"marker": "o", "edgecolors": INK}
    return {"s": _SIZES[kind], "alpha": _OPACITIES[kind], "linewidths": 0 if kind == "dominated" else 1.3} | style


def _draw_page(study: Study, front: Front, colors: dict[Any, str], path: Path) -> None:
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    panels = _panels(front)
    figure = make_subplots(rows=1, cols=len(panels))
    for column, (x, y) in enumerate(panels, start=1):
        stairs = _stairs(study, front, x, y)
        if stairs:
            line = {"shape": "hv", "color": INK, "width": 1.5}
            figure.add_trace(Scatter(x=stairs[0], y=stairs[1], mode="lines", line=line, hoverinfo="skip", showlegend=False))
        for mark in _marks(study, front, colors, x, y):
            trace = Scatter(
                x=mark.x, y=mark.y, mode="markers", marker=_marker(mark.kind, mark.color), hoverinfo="text", showlegend=False,
                text=[_hover(front, row) for row in mark.rows], legendgroup=mark.entry,
            )  # fmt: skip
            figure.add_trace(trace, 1, column)
        for objective, update in ((x, figure.update_xaxes), (y, figure.update_yaxes)):
            scale = {"type": "log", "dtick": "D2"} if objective.metric in study.log_scale else {"type": "linear"}
            update(title_text=_label(objective), row=1, col=column, **scale)
    neutral = _NEUTRAL if study.color_by else next(iter(colors.values()))
    for kind in reversed([kind for kind, rows in _kinds(front).items() if rows]):
        figure.add_trace(_entry(kind, _marker(kind, neutral), "legend2"))
    for label, color in _legend_colors(study, colors).items():
        figure.add_trace(_entry(label, {"color": color, "size": 12, "symbol": "square"}, "legend"))
    toggle = False if study.color_by else "toggle"
    figure.update_layout(
        template="plotly_white", title=_title(study, front), title_font_size=15, font_color=INK,
        legend={"y": 1, "yanchor": "top"},
        legend2={"x": 1.02, "y": 0, "yanchor": "bottom", "itemclick": toggle, "itemdoubleclick": toggle},
    )  # fmt: skip
    figure.write_html(path, include_plotlyjs=True, default_height="max(94vh, 26rem)", config={"displaylogo": False})


def _entry(label: str, marker: dict[str, Any], legend: str) -> Any:
    """A trace that is in the legend only."""
    from plotly.graph_objects import Scatter

    return Scatter(x=[None], y=[None], mode="markers", marker=marker, name=label, legendgroup=label, legend=legend)


def _marker(kind: str, color: str) -> dict[str, Any]:
    """How plotly shows a kind of models."""
    return {
        "color": color,
        "size": math.sqrt(_SIZES[kind]) * 1.4,
        "opacity": _OPACITIES[kind],
        "symbol": "x-thin" if kind == "infeasible" else "circle",
        "line": {"width": 1.5, "color": INK if kind == "front" else color},
    }


def _hover(front: Front, row: TrialRow) -> str:
    values = [f"{objective.metric}: {short(row.metrics[objective.metric])}" for objective in front.objectives]
    params = [f"{name}: {short(value)}" for name, value in row.params.items()]
    return "<br>".join([f"<b>trial {row.label}</b>", *values, "", *params])
