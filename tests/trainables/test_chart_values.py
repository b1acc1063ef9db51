"""Charts as values: what is refused, and that nothing is lost on the way through JSON."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from trainables.charts import Chart, Panel, Series, chart_files

SERIES = Series(label="A", x=(1.0, 2.5), y=(0.1, 3e-7), mode="points", color="#3b528b", dashed=True)
PANEL = Panel(
    title="before", x_label="sparsity", y_label="accuracy", series=(SERIES,), x_log=True, y_log=True,
    x_ticks=((1.0, "0.9"), (2.0, "0.99")), y_range=(0.4, 1.02),
)  # fmt: skip
CHART = Chart(name="a-B_1", title="ä ≤ ö", panels=(PANEL, dataclasses.replace(PANEL, x_ticks=(), y_range=None, series=())))


def test_a_chart_survives_json():
    assert Chart.from_json(CHART.to_json()) == CHART


def test_numbers_of_any_kind_become_plain_ones():
    series = dataclasses.replace(SERIES, x=tuple(np.float32([1, 2])), y=tuple(np.int64([3, 4])))
    chart = dataclasses.replace(CHART, panels=(dataclasses.replace(PANEL, series=(series,)),))
    assert Chart.from_json(chart.to_json()).panels[0].series[0].y == (3.0, 4.0)


@pytest.mark.parametrize(
    ("value", "changes", "sentence"),
    [
        (SERIES, {"x": (1.0,)}, "series 'A' must have as many x as y, but got 1 x and 2 y; give both"),
        (SERIES, {"y": (1.0, float("nan"))}, r"series 'A' must be finite, but got \[nan\]; leave out"),
        (SERIES, {"x": (float("-inf"), 1.0)}, "must be finite"),
        (SERIES, {"mode": "bars"}, "mode must be line or points, but got 'bars'"),
        (SERIES, {"color": "red"}, "color must be #rrggbb, but got 'red'"),
        (SERIES, {"color": "#12345678"}, "color must be #rrggbb"),
        (PANEL, {"x_ticks": ((0.0, "0"),)}, "panel 'before': x_ticks must be finite, and positive on a logarithmic axis"),
        (PANEL, {"x_log": False, "x_ticks": ((float("inf"), "1"),)}, "x_ticks must be finite"),
        (PANEL, {"y_range": (1.0, 1.0)}, "y_range must be finite and rise"),
        (PANEL, {"y_range": (0.0, 1.0)}, "be positive on a logarithmic axis"),
        (PANEL, {"y_log": False, "y_range": (0.0, float("nan"))}, "y_range must be finite and rise"),
        (CHART, {"name": "../a"}, "a chart's name must be letters, digits, - and _, but got '../a'"),
        (CHART, {"name": ""}, "a chart's name must be letters"),
        (CHART, {"name": "a\n"}, "a chart's name must be letters"),
        (CHART, {"panels": ()}, "chart 'a-B_1' must have a panel"),
    ],
)
def test_what_cannot_be_drawn_is_refused(value, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(value, **changes)


def test_laws_hold_for_charts_that_come_as_json():
    fields = json.loads(CHART.to_json())
    fields["panels"][0]["series"][0]["x"].append(3.0)
    with pytest.raises(ValueError, match="as many x as y"):
        Chart.from_json(json.dumps(fields))


def test_charts_of_a_trial_are_files_with_names_of_their_own():
    assert chart_files([]) == {}
    files = chart_files([CHART, dataclasses.replace(CHART, name="b")])
    assert list(files) == ["a-B_1.json", "b.json"]
    assert Chart.from_json(files["a-B_1.json"].decode()) == CHART
    with pytest.raises(ValueError, match=r"names of a trial's charts must differ, but got \['a-B_1', 'a-B_1'\]"):
        chart_files([CHART, CHART])


def test_charts_are_read_without_loading_torch():
    code = "import sys, trainables.charts; print(sorted({'torch', 'numpy', 'matplotlib', 'plotly'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
