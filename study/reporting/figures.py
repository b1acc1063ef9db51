"""The figures of a study's page (plotly), each with a sentence on what is seen, or on why there is nothing to see."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from study.asking.trials import Trials
from study.fronts.front import Front, Objective
from study.reporting.charts import GRID, INK
from study.reporting.front_colors import NEUTRAL, Colors
from study.reporting.front_marks import FrontPicture, escaped, hover, label_of, log_axis
from study.reporting.pictures import add_panel
from study.reporting.report import duration, short

FAINT = "#b9bfca"
_MAX_CURVES = 300
_SIZE_UNITS = ("neurons", "parameters", "dimensions", "units", "bytes")
_MAX_STEPS = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """One figure.

    Attributes:
        name: of its place in the page.
        figure: a plotly figure.
        height, min_width: in pixels; a window that is narrower scrolls it.
    """

    name: str
    figure: Any
    height: int = 380
    min_width: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Figures that belong together.

    Attributes:
        sentences: what they show, or why there are none.
        has_colors: whether they share the colours of the front.
    """

    sentences: tuple[str, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    has_colors: bool = False


def new_figure() -> Any:
    """An empty plotly figure that looks as all do."""
    from plotly.graph_objects import Figure

    frame = {"gridcolor": GRID, "linecolor": INK, "showline": True, "ticks": "outside", "zeroline": False, "automargin": True}
    font = {"family": "system-ui, sans-serif", "size": 12, "color": INK}
    figure = Figure(layout={"template": "none", "font": font, "margin": {"l": 62, "r": 14, "t": 30, "b": 52}})
    figure.update_layout(xaxis=frame, yaxis=frame, showlegend=False, hoverlabel={"align": "left"}, paper_bgcolor="#fff")
    return figure


def draw_front(picture: FrontPicture) -> Part:
    """The front among the models that it beat, a figure for each pair of objectives."""
    if picture.is_empty:
        return Part(sentences=("There is nothing to draw: no model has a value of every objective.",))
    drawings = []
    for number, (x, y) in enumerate(picture.panels):
        figure = new_figure()
        add_panel(figure, picture, x, y)
        for place, text in picture.captions(x, y).items():
            places = (math.log10(v) if picture.is_log(o) else v for v, o in zip(place, (x, y), strict=True))
            figure.add_annotation(**dict(zip("xy", places, strict=True)), text=escaped(text), **_CAPTION)
        drawings.append(Drawing(name=f"front-{number}", figure=figure, height=420))
    return Part(drawings=tuple(drawings), has_colors=True)


_CAPTION = {"showarrow": False, "xanchor": "left", "yanchor": "bottom", "xshift": 7, "yshift": 4, "font": {"size": 11}}


def draw_hypervolume(front: Front) -> Part:
    """How the hypervolume grew with each trial that ended."""
    from plotly.graph_objects import Scatter

    if len(front.compared) < 2:
        return Part(sentences=("A hypervolume that grows needs two models that are compared.",))
    if not front.reference:
        return Part(sentences=("There is no hypervolume, as an objective has no finite value.",))
    ends, values = front.hypervolume_over_time()
    if not math.isfinite(values[-1]):
        return Part(sentences=("The hypervolume is infinite, as an objective of the front is.",))
    steps = _steps(ends, values)
    times = [duration((end - ends[0]) / 1000) for _, end, _ in steps]
    trace = Scatter(
        x=[number for number, _, _ in steps], y=[value for _, _, value in steps], mode="lines",
        line={"shape": "hv", "color": INK, "width": 2}, hoverinfo="text",
        text=[f"{short(value)}<br>{number} models, {told}" for (number, _, value), told in zip(steps, times, strict=True)],
    )  # fmt: skip
    figure = new_figure()
    figure.add_trace(trace)
    figure.update_layout(xaxis_title_text="models compared, as their trials ended", yaxis_title_text="hypervolume")
    figure.update_layout(yaxis={"rangemode": "tozero", "exponentformat": "power"})
    late = next(number for number, _, value in steps if value >= 0.99 * values[-1])
    sentence = f"99 % of it was there after {late} of {len(values)} models ({duration((ends[late - 1] - ends[0]) / 1000)})."
    return Part(sentences=(sentence,), drawings=(Drawing(name="hypervolume", figure=figure, height=320),))


def _steps(ends: Sequence[int], values: Sequence[float]) -> list[tuple[int, int, float]]:
    """(models, end, value) where the value changes, the first and the last; of very many some."""
    changes = np.flatnonzero(np.diff(values, prepend=-1.0) > 0)
    if len(changes) > _MAX_STEPS:
        changes = changes[np.linspace(0, len(changes) - 1, _MAX_STEPS).round().astype(np.int64)]
    places = sorted({*changes.tolist(), len(values) - 1})
    return [(place + 1, ends[place], values[place]) for place in places]


def draw_curves(front: Front, colors: Colors) -> Part:
    """Objectives of the candidates over their size, a line a trial; those on the front in colour."""
    if not front.has_candidates:
        return Part()
    size = _size_metric(front)
    if size is None:
        return Part(sentences=("The trials are curves, but none of their metrics is a size or a sparsity to draw them over.",))
    others = [objective for objective in front.objectives if objective.metric != size.metric]
    compared = front.compared
    lines = _lines(compared, len(front.rows), size)
    drawings = [_curves(front, colors, compared, lines, size, objective) for objective in others]
    sentences = [
        "A line is a trial, a point on it one of its candidates; trials with a candidate on the front are in colour, the front "
        "itself has dots."
    ]
    if (num := len(lines)) >= _MAX_CURVES:
        sentences.append(f"{num} of the trials are drawn.")
    return Part(
        sentences=tuple(sentences), has_colors=True,
        drawings=tuple(Drawing(name=f"curve-{number}", figure=figure) for number, figure in enumerate(drawings)),
    )  # fmt: skip


def _size_metric(front: Front) -> Objective | None:
    """What the candidates of a trial differ in: an objective in a unit of size, or a metric that is called a sparsity."""
    sized = [objective for objective in front.objectives if objective.unit in _SIZE_UNITS or "sparsity" in objective.metric]
    names = [name for name in front.compared.metric_names if "sparsity" in name]
    return next(iter([*sized, *(Objective(metric=name, goal="max", unit="1") for name in names)]), None)


@dataclass(frozen=True, slots=True)
class _Line:
    """The candidates of a trial, by size: their places among the models that are compared."""

    places: list[int]
    is_on_front: bool


def _lines(compared: Trials, num_front: int, size: Objective) -> list[_Line]:
    """Trials with two candidates and more, those of the front first."""
    places: dict[tuple[str, int], list[int]] = {}
    for place, key in enumerate(zip(compared.column("study"), compared.column("trial"), strict=True)):
        places.setdefault(key, []).append(place)
    sizes = compared.metric(size.metric)
    found = [_Line(sorted(own, key=lambda p: sizes[p]), min(own) < num_front) for own in places.values()]
    found = [line for line in found if len(line.places) > 1 or line.is_on_front]
    return sorted(found, key=lambda line: not line.is_on_front)[:_MAX_CURVES]


def _curves(front: Front, colors: Colors, compared: Trials, lines: list[_Line], size: Objective, objective: Objective) -> Any:
    from plotly.graph_objects import Scatter

    figure = new_figure()
    entries = colors.of(compared)
    x, y = compared.metric(size.metric).tolist(), compared.metric(objective.metric).tolist()
    is_log = [axis.metric in front.log_scale for axis in (size, objective)]
    groups: dict[str, list[_Line]] = {"": [line for line in lines if not line.is_on_front]}
    for found in lines:
        if found.is_on_front:
            groups.setdefault(entries[found.places[0]] or "front", []).append(found)
    for entry, members in groups.items():
        color = colors.groups.get(entry, colors.groups.get("", NEUTRAL)) if entry else FAINT
        places = [place for line in members for place in (*line.places, None)]
        dots = [place for place in places if place is not None and place < len(front.rows)]
        told = [hover(front, row, with_params=False) for row in compared.take(dots)]
        line = {"color": color, "width": 1.8 if entry else 1}
        for own, look in (
            (places, {"mode": "lines", "line": line, "hoverinfo": "skip"}),
            (dots, {"mode": "markers", "marker": {"color": color, "size": 9}, "hoverinfo": "text", "text": told}),
        ):
            spots = {"x": _at(x, own, is_log=is_log[0]), "y": _at(y, own, is_log=is_log[1])}
            if own:
                figure.add_trace(Scatter(**spots, **look, legendgroup=entry or "dominated"))
    for axis, update, values, log in zip(
        (size, objective), (figure.update_xaxes, figure.update_yaxes), (x, y), is_log, strict=True
    ):
        shown = [value for value in values if 0 < value < math.inf]
        update(title_text=escaped(label_of(axis)), **(log_axis(min(shown), max(shown)) if log and shown else {}))
    return figure


def _at(values: list[float], places: Sequence[int | None], *, is_log: bool) -> list[float | None]:
    """Values with gaps; a logarithmic axis has no place for 0."""
    found = [math.nan if place is None else values[place] for place in places]
    return [value if math.isfinite(value) and (value > 0 or not is_log) else None for value in found]
