"""Charts as plain values: what an experiment wants seen of a finished trial, with no word on who draws it.

Only the standard library: `study/reporting/charts.py` draws them, and nothing is lost where nobody can.
"""

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from typing import Any, Literal, Self

from trainables.laws import require

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours that colour-blind people tell apart (Okabe and Ito), without the yellow that white paper swallows."""

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_COLOR = re.compile(r"#[0-9a-fA-F]{6}")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One line, or one cloud of points.

    Attributes:
        label: for the legend; series of several panels with the same label and look are one entry of it.
        x, y: as many of the one as of the other, all finite, in the units that the panel's labels give.
        x_names: what to call each x where the axis does not read as a number; empty if it does.
        mode: whether the points are joined in their order.
        color: "#rrggbb".
        dashed: of a line: the other one of two that belong together.

    Raises:
        ValueError: if one of these laws is broken.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    x_names: tuple[str, ...] = ()
    mode: Literal["line", "points"] = "line"
    color: str
    dashed: bool = False

    def __post_init__(self) -> None:
        where = f"series {self.label!r}"
        sizes = f"{len(self.x)} x and {len(self.y)} y"
        require(len(self.x) == len(self.y), f"{where} must have as many x as y", sizes, "give both for every point")
        law = f"{where} must have a name for each x, or none"
        require(len(self.x_names) in (0, len(self.x)), law, f"{len(self.x_names)} for {len(self.x)}", "name all or none")
        odd = [value for value in (*self.x, *self.y) if not math.isfinite(value)]
        require(not odd, f"{where} must be finite", odd[:3], "leave out the points that are not")
        require(self.mode in ("line", "points"), f"{where}: mode must be line or points", repr(self.mode), "choose one")
        require(_COLOR.fullmatch(self.color) is not None, f"{where}: color must be #rrggbb", repr(self.color), 'try "#3b528b"')


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One pair of axes.

    Attributes:
        x_label, y_label: what is on the axis, with its unit.
        x_log, y_log: a logarithmic axis; points that are not positive have no place on it and are not drawn.
        x_ticks: (place, text) of the only ticks of the x axis; empty for ticks as they come.
        y_range: (bottom, top), or None for a range that holds every point.

    Raises:
        ValueError: if a tick's place or the range is impossible.
    """

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    x_log: bool = False
    y_log: bool = False
    x_ticks: tuple[tuple[float, str], ...] = ()
    y_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        places = [place for place, _ in self.x_ticks]
        possible = all(math.isfinite(place) and (place > 0 or not self.x_log) for place in places)
        law = f"panel {self.title!r}: x_ticks must be finite, and positive on a logarithmic axis"
        require(possible, law, places, "leave out those that are not")
        if self.y_range is not None:
            bottom, top = self.y_range
            possible = (0.0 if self.y_log else -math.inf) < bottom < top < math.inf
            law = f"panel {self.title!r}: y_range must be finite and rise, and be positive on a logarithmic axis"
            require(possible, law, self.y_range, "give (bottom, top), or None for all there is")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """Panels side by side that share a legend. Those that all have the same y axis share that too.

    Attributes:
        name: a file name without its ending: letters, digits, "-" and "_"; no other chart of the trial has it.
        title: one line over all panels.
        panels: at least one, from left to right.

    Raises:
        ValueError: if the name would not do, or there is no panel.
    """

    name: str
    title: str
    panels: tuple[Panel, ...]

    def __post_init__(self) -> None:
        law = "a chart's name must be letters, digits, - and _"
        require(_NAME.fullmatch(self.name) is not None, law, repr(self.name), "it becomes a file name; put the rest in the title")
        require(len(self.panels) > 0, f"chart {self.name!r} must have a panel", "none", "leave the chart out")

    def to_json(self) -> str:
        """Everything, as JSON; numbers of any kind (NumPy's, a tensor's) become plain ones."""
        return json.dumps(dataclasses.asdict(self), default=float)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Make a chart again from `to_json()`.

        Raises:
            ValueError: if a law is broken.
        """
        fields = json.loads(text)
        return cls(**fields | {"panels": tuple(_panel(panel) for panel in fields["panels"])})


def chart_files(charts: Sequence[Chart]) -> dict[str, bytes]:
    """The files that keep charts, `<name>.json` each.

    Raises:
        ValueError: if two charts have the same name.
    """
    files = {f"{chart.name}.json": chart.to_json().encode() for chart in charts}
    names = [chart.name for chart in charts]
    require(len(files) == len(charts), "the names of a trial's charts must differ", names, "rename those that are there twice")
    return files


def _panel(fields: dict[str, Any]) -> Panel:
    """A panel as JSON has it, where tuples are lists."""
    series = (Series(**one | {name: tuple(one.get(name, ())) for name in ("x", "y", "x_names")}) for one in fields["series"])
    ticks = ((place, text) for place, text in fields["x_ticks"])
    y_range = fields["y_range"] and tuple(fields["y_range"])
    return Panel(**fields | {"series": tuple(series), "x_ticks": tuple(ticks), "y_range": y_range})
