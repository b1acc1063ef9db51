"""Pieces of a study's page as HTML: text, tables, facts, places for figures. Whatever a study is called, it is text."""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from study.reporting.figures import Part
from study.reporting.front_colors import Colors
from study.reporting.report import short
from study.reporting.report_style import CSS, SCRIPT

_MAX_TEXT = 28
_ID_LENGTH = 8
_GLYPHS = {
    "front": '<circle cx="8" cy="8" r="5" fill="#8a90a0" stroke="currentColor" stroke-width="1.5"/>',
    "dominated": '<circle cx="8" cy="8" r="4" fill="#8a90a0" opacity="0.5"/>',
    "infeasible": '<path d="M4 4 12 12 M12 4 4 12" stroke="#8a90a0" stroke-width="1.8"/>',
    "knee": '<circle cx="8" cy="8" r="6" fill="none" stroke="#c2185b" stroke-width="2"/>',
}


@dataclass(frozen=True, slots=True)
class Wide:
    """A text of several words, that may be folded."""

    text: str


@dataclass(frozen=True, slots=True)
class Id:
    """A long name of which the beginning tells it apart."""

    text: str


def text(value: object) -> str:
    """Any value as HTML."""
    return html.escape(str(value), quote=True)


def paragraphs(sentences: Iterable[str], css_class: str = "") -> str:
    """A paragraph each."""
    opened = f'<p class="{css_class}">' if css_class else "<p>"
    return "".join(f"{opened}{text(sentence)}</p>" for sentence in sentences)


def section(name: str, title: str, *pieces: str) -> str:
    """A part of the page, unless there is nothing in it."""
    inner = "".join(pieces)
    return f'<section id="part-{name}"><h2>{text(title)}</h2>{inner}</section>' if inner else ""


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], marked: Iterable[int] = ()) -> str:
    """A table that is sorted by a click on a head.

    Args:
        marked: rows that stand out.
    """
    marked = set(marked)
    head = "".join(f'<th scope="col"><button type="button">{text(name)}</button></th>' for name in heads)
    body = "".join(_row(row, is_marked=place in marked) for place, row in enumerate(rows))
    return f'<div class="scroll rows"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _row(values: Sequence[object], *, is_marked: bool) -> str:
    opened = '<tr class="knee">' if is_marked else "<tr>"
    return f"{opened}{''.join(map(_cell, values))}</tr>"


def _cell(value: object) -> str:
    """A value, short, and in full under the mouse."""
    if isinstance(value, Wide):
        return f'<td class="wide">{text(value.text)}</td>'
    if isinstance(value, Id):
        return f'<td title="{text(value.text)}">{text(value.text[:_ID_LENGTH])}</td>'
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f'<td class="number" data-value="{value!r}" title="{value!r}">{text(short(value))}</td>'
    shown = "-" if value is None else str(value)
    return f'<td title="{text(shown)}">{text(_cut(shown))}</td>' if len(shown) > _MAX_TEXT else f"<td>{text(shown)}</td>"


def _cut(shown: str) -> str:
    return f"{shown[: _MAX_TEXT - 1]}…"


def facts(pairs: Mapping[str, object]) -> str:
    """Names and values."""
    return "<dl>" + "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in pairs.items()) + "</dl>"


def cards(pairs: Mapping[str, str]) -> str:
    """What one wants to know first."""
    inner = "".join(f'<div class="card"><b>{text(name)}</b>{text(value)}</div>' for name, value in pairs.items() if value)
    return f'<div class="cards">{inner}</div>'


def legend(colors: Colors, kinds: Iterable[str] = ()) -> str:
    """What the signs mean, and the colours: a click on one hides its models everywhere."""
    signs = "".join(
        f'<span><svg width="16" height="16" aria-hidden="true">{_GLYPHS[kind]}</svg>{text(kind)}</span>' for kind in kinds
    )
    chips = "".join(_chip(entry, color) for entry, color in colors.groups.items()) if colors.name else ""
    return f'<div class="legend">{signs}{chips}</div>' if signs or chips else ""


def _chip(entry: str, color: str) -> str:
    shown = text(entry)
    return f'<button type="button" class="chip" data-group="{shown}" aria-pressed="true" style="--c:{color}">{shown}</button>'


def part(found: Part, colors: Colors, kinds: Iterable[str] = ()) -> str:
    """Sentences, legend and places of the figures."""
    places = "".join(
        f'<div class="scroll"><div class="plot" id="plot-{drawing.name}" '
        f'style="height:{drawing.height}px;min-width:{drawing.min_width}px"></div></div>'
        for drawing in found.drawings
    )
    signs = legend(colors, kinds) if found.has_colors and found.drawings else ""
    return paragraphs(found.sentences, "note") + signs + (f'<div class="plots">{places}</div>' if places else "")


def page(title: str, body: str, parts: Iterable[Part], explored: Mapping[str, Any] | None) -> str:
    """The whole page; plotly.js is in it once."""
    from plotly.offline import get_plotlyjs

    figures = ",".join(f'"plot-{drawing.name}":{drawing.figure.to_json()}' for found in parts for drawing in found.drawings)
    data = f"const FIGURES = {{{figures}}};\nconst EXPLORE = {as_script(explored)};"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title>\n<style>{CSS}</style></head>\n<body><main>{body}</main>\n"
        f"<script>{get_plotlyjs()}</script>\n<script>{data}</script>\n<script>{SCRIPT}</script>\n</body></html>\n"
    )


def as_script(value: Any) -> str:
    """JSON that ends no script, whatever text is in it."""
    dumped = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return dumped.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").replace("\u2028", "\\u2028")
