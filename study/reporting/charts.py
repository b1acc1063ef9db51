"""Draw the charts of a trial: pictures (matplotlib) and pages to explore (plotly, self-contained). What every plot shares."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import Any

from study.errors import UserError
from trainables.charts import Chart, Panel, Series

FORMATS = (".png", ".svg", ".pdf", ".html")
INK, GRID = "#1f2430", "#e9ebef"
_MAX_DOTTED = 30
"""Points up to which a line shows each of them."""
_LEGEND_ROWS = 14


@contextmanager
def plot_file(path: Path) -> Iterator[None]:
    """Check a plot's file name, and make its folder; inside, the plot is drawn.

    Raises:
        UserError: if the ending is none of `FORMATS`, or the file cannot be written.
    """
    if path.suffix not in FORMATS:
        raise UserError(f"a plot's file must end in {', '.join(FORMATS)}, but got {path.name!r}; try {path.stem or 'plot'}.png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"a plot must go where it can be written, but {path} cannot ({error}); name another") from error


def draw_chart(chart: Chart, path: Path) -> None:
    """Draw a chart: panels side by side, one legend that says each series once.

    Args:
        path: `.png`, `.svg` or `.pdf` for a picture, `.html` for a page that shows values under the mouse.

    Raises:
        UserError: if the path has another ending or cannot be written.
    """
    with plot_file(path):
        (_draw_page if path.suffix == ".html" else _draw_image)(chart, path)


def draw_into(chart: Chart, folder: Path) -> list[Path]:
    """Draw a chart as `<name>.png` and as `<name>.html`; return both paths."""
    paths = [folder / f"{chart.name}{suffix}" for suffix in (".png", ".html")]
    for path in paths:
        draw_chart(chart, path)
    return paths


def log_ticks(side: Any) -> None:
    """Label a logarithmic matplotlib axis as people write numbers: 0.01, 50, 2k; between the decades where there is room."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

    thousands = EngFormatter(sep="")
    label = FuncFormatter(lambda value, _: thousands(value) if value >= 1000 else f"{value:g}")
    low, high = side.get_view_interval()
    side.set_major_formatter(label)
    side.set_minor_locator(LogLocator(subs=(2, 5)))
    side.set_minor_formatter(label if high / low < 1000 else NullFormatter())


def bare(axis: Any) -> None:
    """Leave of a matplotlib frame what one reads values from: a faint grid, two spines."""
    axis.grid(True, which="both", color=GRID, linewidth=0.7, zorder=0)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(INK)
    axis.tick_params(which="both", colors=INK)


def _entry(series: Series) -> tuple[str, str, str, bool]:
    """Series that are one entry of the legend."""
    return series.label, series.color, series.mode, series.dashed


def _places(values: Sequence[float], is_log: bool) -> list[float]:
    """Where points go; nowhere (NaN), as a gap in the line, if a logarithmic axis has no place for them."""
    return [math.nan if is_log and value <= 0 else value for value in values]


def _share_y(chart: Chart) -> bool:
    """Whether heights compare across all panels."""
    return len({(panel.y_label, panel.y_log, panel.y_range) for panel in chart.panels}) == 1


def _draw_image(chart: Chart, path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    num, shared = len(chart.panels), _share_y(chart)
    width = 2.2 + 4.3 * num
    figure = Figure(figsize=(width, 4.4), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.03))
    axes = figure.subplots(1, num, sharey=shared, squeeze=False)[0]
    handles: dict[Any, Any] = {}
    for place, (axis, panel) in enumerate(zip(axes, chart.panels, strict=True)):
        axis.set(xscale="log" if panel.x_log else "linear", yscale="log" if panel.y_log else "linear")
        for series in panel.series:
            handles.setdefault(_entry(series), _plot(axis, panel, series))
        axis.set_title(fill(panel.title, 44), fontsize=10.5, color=INK, loc="left")
        axis.set_xlabel(panel.x_label, color=INK)
        if place == 0 or not shared:
            axis.set_ylabel(panel.y_label, color=INK)
        _set_ticks(axis, panel)
        bare(axis)
    if handles:
        axes[-1].legend(
            list(handles.values()), [fill(label, 32) for label, *_ in handles], loc="upper left", bbox_to_anchor=(1.02, 1.0),
            ncols=1 + (len(handles) - 1) // _LEGEND_ROWS, frameon=False, fontsize=9, labelcolor=INK, handlelength=2.8,
        )  # fmt: skip
    figure.suptitle(fill(chart.title, int(9 * width)), fontsize=12, fontweight="bold", color=INK, x=0.01, ha="left")
    figure.savefig(path, dpi=160)


def _plot(axis: Any, panel: Panel, series: Series) -> Any:
    """Draw one series; return what stands for it in the legend. A dashed line's dots are hollow: it may lie on another."""
    dots = {
        "marker": "o" if series.mode == "points" or len(series.x) <= _MAX_DOTTED else "",
        "markersize": 5.5,
        "markerfacecolor": "white" if series.dashed else series.color,
        "markeredgewidth": 1.4 if series.dashed else 0,
    }
    if series.mode == "points":
        line: dict[str, Any] = {"linestyle": "none", "alpha": 0.8}
    else:
        line = {"linestyle": (0, (3.5, 2)) if series.dashed else "solid", "linewidth": 1.9}
    x, y = _places(series.x, panel.x_log), _places(series.y, panel.y_log)
    return axis.plot(x, y, color=series.color, zorder=3 if series.dashed else 2, **dots, **line)[0]


def _set_ticks(axis: Any, panel: Panel) -> None:
    """Set ticks and range, once the points are there."""
    if panel.y_range is not None:
        axis.set_ylim(panel.y_range)
    for side, is_log in ((axis.xaxis, panel.x_log), (axis.yaxis, panel.y_log)):
        if is_log:
            log_ticks(side)
    if panel.x_ticks:
        axis.set_xticks([place for place, _ in panel.x_ticks], [text for _, text in panel.x_ticks])
        axis.xaxis.minorticks_off()


def _draw_page(chart: Chart, path: Path) -> None:
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    num, shared = len(chart.panels), _share_y(chart)
    titles = [_fold(panel.title, 44) for panel in chart.panels]
    spacing = (0.1 if shared else 0.22) / num
    figure = make_subplots(1, num, subplot_titles=titles, shared_yaxes=shared, horizontal_spacing=spacing)
    entries = set()
    for column, panel in enumerate(chart.panels, start=1):
        for series in panel.series:
            key = _entry(series)
            trace = Scatter(
                x=_places(series.x, panel.x_log), y=_places(series.y, panel.y_log), text=_hover(panel, series), hoverinfo="text",
                name=_fold(series.label, 32), legendgroup=str(key), showlegend=key not in entries, **_look(series),
            )  # fmt: skip
            figure.add_trace(trace, 1, column)
            entries.add(key)
        figure.update_xaxes(**_x_axis(panel), row=1, col=column)
        figure.update_yaxes(**_y_axis(panel, titled=column == 1 or not shared), row=1, col=column)
    frame = {"gridcolor": GRID, "linecolor": INK, "showline": True, "ticks": "outside", "zeroline": False}
    figure.update_xaxes(**frame)
    figure.update_yaxes(**frame)
    title = {"text": f"<b>{_fold(chart.title, 100)}</b>", "font_size": 16, "x": 0.01}
    figure.update_layout(template="plotly_white", title=title, font_color=INK, showlegend=bool(entries))
    # the drawing's place in the page has the chart's name, not a random one: what is drawn again is the same file
    figure.write_html(
        path, include_plotlyjs=True, div_id=chart.name, default_height="max(94vh, 26rem)", config={"displaylogo": False}
    )


def _fold(text: str, width: int) -> str:
    return fill(text, width).replace("\n", "<br>")


def _x_axis(panel: Panel) -> dict[str, Any]:
    axis: dict[str, Any] = {"title_text": panel.x_label, "type": "log" if panel.x_log else "linear"}
    if panel.x_ticks:
        axis |= {"tickvals": [place for place, _ in panel.x_ticks], "ticktext": [text for _, text in panel.x_ticks]}
    return axis


def _y_axis(panel: Panel, *, titled: bool) -> dict[str, Any]:
    axis: dict[str, Any] = {"title_text": panel.y_label if titled else None, "type": "log" if panel.y_log else "linear"}
    if panel.y_range is not None:
        axis["range"] = [math.log10(end) if panel.y_log else end for end in panel.y_range]
    return axis


def _look(series: Series) -> dict[str, Any]:
    edge = {"color": series.color, "width": 1.6 if series.dashed else 0}
    marker = {"color": "white" if series.dashed else series.color, "size": 7, "line": edge}
    if series.mode == "points":
        return {"mode": "markers", "marker": marker, "opacity": 0.8}
    mode = "lines+markers" if len(series.x) <= _MAX_DOTTED else "lines"
    return {
        "mode": mode,
        "marker": marker,
        "line": {"color": series.color, "width": 2.2, "dash": "dash" if series.dashed else "solid"},
    }


def _hover(panel: Panel, series: Series) -> list[str]:
    """What the mouse shows at each point. Where ticks have names, a place is no number to read: its name, or nothing."""
    names = dict(panel.x_ticks)
    places = series.x_names or [names.get(x) if names else f"{x:.5g}" for x in series.x]
    return [
        f"<b>{series.label}</b>" + (f"<br>{panel.x_label}: {place}" if place else "") + f"<br>{panel.y_label}: {y:.5g}"
        for place, y in zip(places, series.y, strict=True)
    ]
