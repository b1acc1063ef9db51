"""Draw a front: a picture for a colleague (matplotlib), or a page to explore (plotly, self-contained)."""

import math
from pathlib import Path
from typing import Any

from study.asking.query import Studies
from study.errors import UserError
from study.fronts.front import Front, Objective
from study.reporting.charts import GRID, INK, bare, log_ticks, plot_file
from study.reporting.front_colors import NEUTRAL, colors_of
from study.reporting.front_marks import FrontPicture, Mark, escaped, label_of

KNEE = "#c2185b"
_SIZES = {"infeasible": 42, "dominated": 42, "front": 95}
_OPACITIES = {"infeasible": 0.9, "dominated": 0.5, "front": 1.0}
_CROWD = 300
"""Models of a kind from which on each of them is drawn smaller."""
_KNEE_SIZE = 330


def plot_front(study: Studies, front: Front, path: Path) -> None:
    """Draw the front among the models it beat, one panel for each pair of objectives, its knee with a ring around it.

    Of very many dominated models some are drawn (1500 dots in all panels), evenly along the first objective; the title says so.

    Args:
        path: `.png`, `.svg` or `.pdf` for a picture, `.html` for a page that shows a model's parameters under the mouse.

    Raises:
        UserError: if there is nothing to draw, or the path has another ending or cannot be written.
    """
    picture = front_picture(study, front)
    if not any(map(len, (front.rows, front.dominated, front.infeasible))):
        raise UserError(f"a plot needs a finished trial, but {front.study!r} has none; see `study status {front.study}`")
    with plot_file(path):
        (_draw_page if path.suffix == ".html" else _draw_image)(picture, path)


def front_picture(study: Studies, front: Front) -> FrontPicture:
    """What to draw of a front."""
    return FrontPicture(front, colors_of(study, front))


def _size(picture: FrontPicture, kind: str) -> float:
    """Area of a dot, in square points."""
    return _SIZES[kind] * (0.45 if len(picture.kinds[kind]) > _CROWD else 1.0)


def _legend(picture: FrontPicture) -> tuple[list[str], dict[str, str]]:
    """The kinds that the legend names, and the colours."""
    kinds = [kind for kind in reversed(picture.kinds) if len(picture.kinds[kind])]
    return kinds, picture.colors.groups if picture.colors.name else {}


def _one_color(picture: FrontPicture) -> str | None:
    return None if picture.colors.name else picture.colors.groups[""]


def _draw_image(picture: FrontPicture, path: Path) -> None:
    from matplotlib.figure import Figure

    width = 3 + 5.8 * len(picture.panels)
    figure = Figure(figsize=(width, 5.2), layout="constrained")
    axes = figure.subplots(1, len(picture.panels), squeeze=False)[0]
    for axis, (x, y) in zip(axes, picture.panels, strict=True):
        _draw_panel(axis, picture, x, y)
    kinds, colors = _legend(picture)
    for kind in kinds:
        axes[-1].scatter([], [], label=kind, **_dot(picture, kind) | {"color": _one_color(picture) or NEUTRAL})
    if picture.front.knee is not None:
        axes[-1].scatter([], [], label=_plain(f"knee: {picture.front.knee.label}"), **_ring(180))
    for label, color in colors.items():
        axes[-1].scatter([], [], label=_plain(label), color=color, marker="s", s=60)
    axes[-1].legend(fontsize=8.5, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    title = "\n".join(_lines(picture.title(), int(12 * width)))
    figure.suptitle(_plain(title), fontsize=10, x=0.01, ha="left")
    figure.savefig(path, dpi=160)


def _draw_panel(axis: Any, picture: FrontPicture, x: Objective, y: Objective) -> None:
    stairs = picture.stairs(x, y)
    if stairs:
        axis.step(*stairs, where="post" if x.goal == "min" else "pre", color=INK, linewidth=1.2, zorder=1)
    for mark in picture.marks(x, y):
        dot = _dot(picture, mark.kind) | {"color": mark.color}
        axis.scatter(mark.x, mark.y, zorder=2 + (mark.kind == "front"), **dot)
    knee = picture.knee(x, y)
    if knee is not None:
        axis.scatter(*knee, zorder=5, **_ring(_KNEE_SIZE))
    for place, text in picture.captions(x, y).items():
        offset = (10, 8) if place == knee else (7, 5)
        axis.annotate(_plain(text), place, xytext=offset, textcoords="offset points", fontsize=8.5, color=INK, zorder=6)
    axis.set(xlabel=_plain(label_of(x)), ylabel=_plain(label_of(y)))
    for objective, side, set_scale in ((x, axis.xaxis, axis.set_xscale), (y, axis.yaxis, axis.set_yscale)):
        if picture.is_log(objective):
            set_scale("log")
            log_ticks(side)
    bare(axis)


def _lines(title: str, width: int) -> list[str]:
    """Folded where a clause ends."""
    lines = [""]
    for clause in title.split("; "):
        is_new = lines[-1] and len(lines[-1]) + len(clause) + 2 > width
        lines = [*lines, clause] if is_new else [*lines[:-1], "; ".join(filter(None, (lines[-1], clause)))]
    return lines


def _plain(text: str) -> str:
    """A text that matplotlib takes no part of for a formula."""
    return text.replace("$", r"\$")


def _dot(picture: FrontPicture, kind: str) -> dict[str, Any]:
    """How matplotlib shows a kind of models."""
    style = {"marker": "x"} if kind == "infeasible" else {"marker": "o", "edgecolors": INK}
    edge = 0 if kind == "dominated" else 1.3 if len(picture.kinds[kind]) <= _CROWD else 0.6
    return {"s": _size(picture, kind), "alpha": _OPACITIES[kind], "linewidths": edge} | style


def _ring(size: float) -> dict[str, Any]:
    return {"s": size, "marker": "o", "facecolors": "none", "edgecolors": KNEE, "linewidths": 2}


def _draw_page(picture: FrontPicture, path: Path) -> None:
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=len(picture.panels))
    for column, panel in enumerate(picture.panels, start=1):
        add_panel(figure, picture, *panel, place={"row": 1, "col": column})
    kinds, colors = _legend(picture)
    for kind in kinds:
        figure.add_trace(_entry(kind, kind, _marker(picture, kind, _one_color(picture) or NEUTRAL), "legend2"))
    if picture.front.knee is not None:
        name = escaped(f"knee: {picture.front.knee.label}")
        figure.add_trace(_entry(name, "knee", _knee_marker(), "legend2"))
    for label, color in colors.items():
        figure.add_trace(_entry(escaped(label), label, {"color": color, "size": 12, "symbol": "square"}, "legend"))
    toggle = False if picture.colors.name else "toggle"
    figure.update_layout(
        template="plotly_white", title="<br>".join(map(escaped, _lines(picture.title(), 130))), title_font_size=15,
        font_color=INK, legend={"y": 1, "yanchor": "top"},
        legend2={"x": 1.02, "y": 0, "yanchor": "bottom", "itemclick": toggle, "itemdoubleclick": toggle},
    )  # fmt: skip
    # the drawing's place in the page has a name, not a random one: what is drawn again is the same file
    figure.write_html(
        path, include_plotlyjs=True, div_id="front", default_height="max(94vh, 26rem)", config={"displaylogo": False}
    )


def add_panel(figure: Any, picture: FrontPicture, x: Objective, y: Objective, place: dict[str, int] | None = None) -> None:
    """Draw one pair of objectives into a plotly figure.

    Args:
        place: its row and column, of a figure with several panels.
    """
    from plotly.graph_objects import Scatter

    place = place or {}
    stairs = picture.stairs(x, y)
    if stairs:
        line = {"shape": "hv" if x.goal == "min" else "vh", "color": INK, "width": 1.5}
        trace = Scatter(x=stairs[0], y=stairs[1], mode="lines", line=line, hoverinfo="skip", showlegend=False)
        figure.add_trace(trace, **place)
    for mark in picture.marks(x, y):
        figure.add_trace(_points(picture, mark), **place)
    if knee := picture.knee(x, y):
        ring = Scatter(
            x=[knee[0]],
            y=[knee[1]],
            mode="markers",
            marker=_knee_marker(),
            hoverinfo="skip",
            showlegend=False,
            legendgroup="knee",
        )
        figure.add_trace(ring, **place)
    figure.update_xaxes(gridcolor=GRID, **picture.axis(x), **place)
    figure.update_yaxes(gridcolor=GRID, **picture.axis(y), **place)


def _points(picture: FrontPicture, mark: Mark) -> Any:
    from plotly.graph_objects import Scatter

    return Scatter(
        x=mark.x, y=mark.y, mode="markers", marker=_marker(picture, mark.kind, mark.color), hoverinfo="text", showlegend=False,
        text=picture.hovers(mark.models), legendgroup=mark.entry,
    )  # fmt: skip


def _entry(label: str, group: str, marker: dict[str, Any], legend: str) -> Any:
    """A trace that is in the legend only."""
    from plotly.graph_objects import Scatter

    return Scatter(x=[None], y=[None], mode="markers", marker=marker, name=label, legendgroup=group, legend=legend)


def _marker(picture: FrontPicture, kind: str, color: str) -> dict[str, Any]:
    """How plotly shows a kind of models."""
    return {
        "color": color,
        "size": math.sqrt(_size(picture, kind)) * 1.4,
        "opacity": _OPACITIES[kind],
        "symbol": "x-thin" if kind == "infeasible" else "circle",
        "line": {"width": 1.5 if len(picture.kinds[kind]) <= _CROWD else 0.6, "color": INK if kind == "front" else color},
    }


def _knee_marker() -> dict[str, Any]:
    return {"color": KNEE, "size": 22, "symbol": "circle-open", "line": {"width": 2.5}}
