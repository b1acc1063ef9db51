"""The figure of a study's page whose axes a reader chooses: its data, and the two lists to choose from."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from study.asking.trials import Trials
from study.reporting.front_colors import Colors, values_of
from study.reporting.front_marks import FrontPicture, escaped
from study.reporting.report_html import text

_MAX_MODELS = 800


def explored(picture: FrontPicture, colors: Colors, ranges: Mapping[str, str]) -> dict[str, Any] | None:
    """Columns of parameters and metrics, for the figure whose axes a reader chooses; None where there is nothing to see."""
    kinds = {kind: _some(models, _MAX_MODELS) for kind, models in picture.kinds.items()}
    models = kinds["dominated"].followed_by(kinds["infeasible"]).followed_by(kinds["front"])
    if len(models) < 2:
        return None
    params = dict.fromkeys([*ranges, *(name for own in models.params() for name in own)])
    columns = {name: values_of(models, name) for name in dict.fromkeys(["trial", *params, *models.metric_names])}
    columns = {name: [_plain(value) for value in column] for name, column in columns.items()}
    columns = {name: column for name, column in columns.items() if len(set(column) - {None}) > 1}
    x = next((name for name in params if name in columns), "trial")
    y = next((o.metric for o in picture.front.objectives if o.metric in columns), None)
    if y is None or x not in columns:
        return None
    return {
        "columns": columns,
        "names": {name: escaped(name.replace("_", " ")) for name in columns},
        "log": [name for name, column in columns.items() if _is_log(name, column, picture, ranges)],
        "texts": [name for name, column in columns.items() if any(isinstance(value, str) for value in column)],
        "labels": [escaped(row) for row in _labels(models)],
        "kinds": [kind for kind in ("dominated", "infeasible", "front") for _ in range(len(kinds[kind]))],
        "colors": [colors.groups[entry] for entry in colors.of(models)],
        "chosen": [x, y],
    }


def _some(models: Trials, num: int) -> Trials:
    return models if len(models) <= num else models.take(np.linspace(0, len(models) - 1, num).round().astype(np.int64))


def _labels(models: Trials) -> list[str]:
    return [row.label for row in models]


def _is_log(name: str, column: list[Any], picture: FrontPicture, ranges: Mapping[str, str]) -> bool:
    is_asked = name in picture.front.log_scale or "(log)" in ranges.get(name, "")
    return is_asked and all(value is None or (isinstance(value, int | float) and value > 0) for value in column)


def _plain(value: Any) -> Any:
    """As JSON has it: short, without infinities."""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def explore_form(found: Mapping[str, Any] | None) -> str:
    """The two lists and the figure's place."""
    if found is None:
        return ""
    selects = []
    for axis, chosen in zip(("y", "x"), reversed(found["chosen"]), strict=True):
        options = "".join(
            f'<option value="{text(name)}"{" selected" * (name == chosen)}>{text(name)}</option>' for name in found["columns"]
        )
        selects.append(f'<label>{axis} <select id="explore-{axis}">{options}</select></label>')
    return f'<p>{"".join(selects)}</p><div class="plot" id="plot-explore" style="height:440px"></div>'
