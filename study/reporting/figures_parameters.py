"""Parameters beside what they led to: a line a model through an axis for each parameter and objective."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import numpy as np

from study.asking.trials import Trials
from study.fronts.front import Front
from study.reporting.charts import INK
from study.reporting.figures import FAINT, Drawing, Part, new_figure
from study.reporting.front_colors import Colors
from study.reporting.front_marks import escaped, tick_text
from study.reporting.pictures import KNEE
from study.reporting.report import short

_MAX_AXES = 24
_MAX_FRONT, _MAX_OTHERS = 150, 600
_MANY = 40
"""Models on the front from which on their lines are thin and let others through."""
_MAX_TICKS = 12
_TICK_HEIGHT = 0.045
_LOG_FROM = 1000.0
"""Ratio of the largest to the least value from which positive ones go on a logarithmic axis, where no range says."""
_SHORT_DASH = 0.08
_AXIS_WIDTH = 92


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: where each model stands on it, and what is written beside it.

    Attributes:
        places: of each model, from 0 at the bottom to 1; None for a model that has no value.
        ticks: (place, text).
    """

    name: str
    places: list[float | None]
    ticks: list[tuple[float, str]]


def draw_parallel(front: Front, colors: Colors, ranges: Mapping[str, str]) -> Part:
    """Parallel coordinates of the compared models: the front in colour above the grey others.

    Args:
        ranges: text of each parameter's range, as far as known; one with `(log)` makes its axis logarithmic.
    """
    if not len(front.rows):
        return Part(sentences=("There is no model on the front to follow through its parameters.",))
    models = _some(front.dominated, _MAX_OTHERS).followed_by(_some(front.rows, _MAX_FRONT))
    num_grey = min(len(front.dominated), _MAX_OTHERS)
    axes, constant, num_left_out = _axes(models, front, ranges)
    figure = new_figure()
    figure.add_trace(_grey(axes, num_grey))
    for trace in _colored(front, colors, models, axes, num_grey):
        figure.add_trace(trace)
    _write_axes(figure, axes)
    sentences = [
        "A line is a model, from its parameters on the left to its objectives on the right, where the best is at the top. A line "
        "has a gap where a model has no such parameter; those that all have stand beside the objectives.",
        *_left_out(front, constant, num_left_out),
    ]
    drawing = Drawing(name="parallel", figure=figure, height=470, min_width=_AXIS_WIDTH * len(axes) + 80)
    return Part(sentences=tuple(sentences), drawings=(drawing,), has_colors=True)


def _some(models: Trials, num: int) -> Trials:
    """At most so many, evenly along the first objective."""
    return models if len(models) <= num else models.take(np.linspace(0, len(models) - 1, num).round().astype(np.int64))


def _left_out(front: Front, constant: list[str], num_left_out: int) -> list[str]:
    told = []
    if len(front.dominated) > _MAX_OTHERS:
        told.append(f"Of {len(front.dominated)} dominated models {_MAX_OTHERS} are drawn.")
    if len(front.rows) > _MAX_FRONT:
        told.append(f"Of {len(front.rows)} models on the front {_MAX_FRONT} are drawn.")
    if constant:
        told.append(f"The same for all that have it: {', '.join(constant)}.")
    if num_left_out:
        told.append(f"{num_left_out} parameters that fewer models have are not drawn.")
    return told


def _axes(models: Trials, front: Front, ranges: Mapping[str, str]) -> tuple[list[Axis], list[str], int]:
    """The axes, what is constant, and how many parameters there is no room for."""
    params = models.params()
    names = list(ranges) + [name for name in dict.fromkeys(name for own in params for name in own) if name not in ranges]
    columns = {name: [own.get(name) for own in params] for name in names}
    values = {name: {str(value) for value in column if value is not None} for name, column in columns.items()}
    constant = [f"{name} {short(next(v for v in columns[name] if v is not None))}" for name in names if len(values[name]) == 1]
    varied = [name for name in names if len(values[name]) > 1]
    often = sorted(varied, key=lambda name: sum(value is None for value in columns[name]))[:_MAX_AXES]
    axes = [value_axis(name, columns[name], ranges.get(name)) for name in reversed(often)]
    for objective in front.objectives:
        found = [None if math.isnan(value) else value for value in models.metric(objective.metric).tolist()]
        text = "(log)" if objective.metric in front.log_scale else ""
        axis = value_axis(objective.metric, found, text)
        axes.append(_flipped(axis) if objective.goal == "min" else axis)
    return axes, constant, len(varied) - len(often)


def value_axis(name: str, values: Sequence[Any], range_text: str | None = None) -> Axis:
    """Spread values over 0..1: numbers by size or logarithm, anything else evenly in order.

    Args:
        range_text: "1 .. 40 (log)"; None where nobody says, so that the values do.
    """
    present = [value for value in values if value is not None]
    if present and all(isinstance(value, int | float) and not isinstance(value, bool) for value in present):
        return _number_axis(name, values, range_text)
    texts = sorted({short(value) for value in present})
    place_of = {text: place / max(1, len(texts) - 1) if len(texts) > 1 else 0.5 for place, text in enumerate(texts)}
    stride = math.ceil(len(texts) / _MAX_TICKS) if texts else 1
    places = [None if value is None else place_of[short(value)] for value in values]
    return Axis(name, places, [(place_of[text], text) for text in texts[::stride]])


def _number_axis(name: str, values: Sequence[Any], range_text: str | None) -> Axis:
    numbers = np.array([math.nan if value is None else float(value) for value in values])
    finite = numbers[np.isfinite(numbers)]
    if not len(finite):
        return Axis(name, [None if math.isnan(value) else 0.5 for value in numbers], [])
    low, high = float(finite.min()), float(finite.max())
    is_log = low > 0 and ("(log)" in range_text if range_text is not None else high / low >= _LOG_FROM)
    scale, back = (np.log, np.exp) if is_log else (np.asarray, np.asarray)
    clipped = np.clip(numbers, low, high)
    bottom, spread = float(scale(low)), float(scale(high)) - float(scale(low))
    places = (scale(clipped) - bottom) / spread if spread > 0 else np.where(np.isnan(clipped), np.nan, 0.5)
    distinct = np.unique(finite)
    if len(distinct) <= 5:
        ticks = [
            ((float(scale(value)) - bottom) / spread if spread > 0 else 0.5, tick_text(value)) for value in distinct.tolist()
        ]
    else:
        ticks = [(share, tick_text(float(back(bottom + share * spread)))) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    return Axis(name, [None if math.isnan(place) else round(place, 4) for place in places.tolist()], _apart(ticks))


def _apart(ticks: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Without those that would lie on the one before."""
    kept: list[tuple[float, str]] = []
    for tick in ticks:
        if not kept or tick[0] - kept[-1][0] >= _TICK_HEIGHT:
            kept.append(tick)
    return kept


def _flipped(axis: Axis) -> Axis:
    """With the least at the top."""
    places = [None if place is None else round(1 - place, 4) for place in axis.places]
    return Axis(axis.name, places, [(1 - place, text) for place, text in axis.ticks])


def _line(axes: Sequence[Axis], model: int) -> tuple[list[float | None], list[float | None]]:
    """(x, y) of a model, with gaps; a value between two gaps is a short dash."""
    places = [axis.places[model] for axis in axes]
    x: list[float | None] = []
    y: list[float | None] = []
    for column, place in enumerate(places):
        is_alone = all(not 0 <= other < len(places) or places[other] is None for other in (column - 1, column + 1))
        dash = (-_SHORT_DASH, _SHORT_DASH) if is_alone and place is not None else (0.0,)
        x += [column + shift for shift in dash]
        y += [place] * len(dash)
    return [*x, None], [*y, None]


def _grey(axes: Sequence[Axis], num: int) -> Any:
    from plotly.graph_objects import Scatter

    x, y = _lines(axes, range(num))
    return Scatter(
        x=x, y=y, mode="lines", line={"color": FAINT, "width": 0.7}, opacity=0.55, hoverinfo="skip", legendgroup="dominated"
    )


def _lines(axes: Sequence[Axis], models: Sequence[int]) -> tuple[list[float | None], list[float | None]]:
    lines = [_line(axes, model) for model in models]
    return [place for x, _ in lines for place in x], [place for _, y in lines for place in y]


def _colored(front: Front, colors: Colors, models: Trials, axes: Sequence[Axis], num_grey: int) -> list[Any]:
    """The front, a trace a colour; the knee last, above all."""
    from plotly.graph_objects import Scatter

    members: dict[str, list[int]] = {}
    for place, entry in enumerate(colors.of(models.take(range(num_grey, len(models)))), start=num_grey):
        members.setdefault(entry, []).append(place)
    width, opacity = (1.6, 1.0) if len(models) - num_grey <= _MANY else (1.0, 0.55)
    lines = [(entry or "front", colors.groups[entry], width, opacity, own) for entry, own in members.items()]
    rows = dict(enumerate(models.take(range(num_grey, len(models))), start=num_grey))
    knee = [place for place, row in rows.items() if row == front.knee]
    traces = []
    for entry, color, thickness, share, own in [*lines, ("knee", KNEE, 3.2, 1.0, knee)]:
        x, y = _lines(axes, own)
        texts = [f"trial {escaped(rows[place].label)}" for place in own for _ in _line(axes, place)[0]]
        look = {"line": {"color": color, "width": thickness}, "opacity": share, "legendgroup": entry}
        traces.append(Scatter(x=x, y=y, mode="lines", text=texts, hoverinfo="text", **look))
    return traces


def _write_axes(figure: Any, axes: Sequence[Axis]) -> None:
    for column, axis in enumerate(axes):
        figure.add_shape(type="line", x0=column, x1=column, y0=0, y1=1, line={"color": INK, "width": 1}, layer="above")
        for place, text in axis.ticks:
            figure.add_annotation(
                x=column, y=place, text=escaped(_cut(text)), showarrow=False, xanchor="left", xshift=2, font={"size": 10},
                bgcolor="rgba(255,255,255,0.75)", borderpad=0,
            )  # fmt: skip
    names = [escaped(fill(_cut(axis.name.replace("_", " "), 60), 13)).replace("\n", "<br>") for axis in axes]
    frame = {"showgrid": False, "showline": False, "ticks": "", "fixedrange": True}
    figure.update_xaxes(
        tickvals=list(range(len(axes))), ticktext=names, side="top", range=[-0.25, len(axes) - 0.3], tickangle=0, **frame
    )
    figure.update_yaxes(range=[-0.04, 1.04], showticklabels=False, **frame)
    figure.update_layout(margin={"l": 48, "r": 10, "t": 60, "b": 12})


def _cut(text: str, num: int = 14) -> str:
    return text if len(text) <= num else f"{text[: num - 1]}…"
