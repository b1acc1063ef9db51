"""The picture of one narrowing trial (arXiv:2505.15811, Fig 4, right)."""

from collections.abc import Sequence

from trainables.charts import PALETTE, Chart, Panel, Series
from trainables.mnist.narrowing_config import NarrowingConfig


def draw_course(config: NarrowingConfig, history: Sequence[Sequence[float]]) -> Chart:
    """How accuracy and size went, check by check.

    Args:
        history: rows of place, datapoints, neurons and validation accuracy.
    """
    over_datapoints = [_series(config, history, place, column=1) for place in range(config.num_seeds)]
    over_neurons = [_series(config, history, place, column=2) for place in range(config.num_seeds)]
    y_label = "validation accuracy on the kept classes"
    panels = [
        Panel(
            title=title,
            x_label=x_label,
            y_label=y_label,
            series=(*series, _target(config, series)),
            x_log=True,
        )
        for title, x_label, series in (
            ("what it costs", "datapoints (log)", over_datapoints),
            ("what is left", "hidden neurons (log)", over_neurons),
        )
    ]
    sizes = "" if config.method == "group_lasso" else f" of {config.neurons} neurons"
    title = f"{config.method.replace('_', ' ')}{sizes}: accuracy at every check, {config.num_seeds} seeds"
    # Only the lasso changes sizes: the others stay where they began
    return Chart(name="course", title=title, panels=tuple(panels if config.method == "group_lasso" else panels[:1]))


def _series(config: NarrowingConfig, history: Sequence[Sequence[float]], place: int, *, column: int) -> Series:
    rows = [row for row in history if row[0] == place]
    return Series(
        label=f"seed {config.seeds[place]}",
        x=tuple(row[column] for row in rows),
        y=tuple(row[3] for row in rows),
        color=PALETTE[place % len(PALETTE)],
    )


def _target(config: NarrowingConfig, series: Sequence[Series]) -> Series:
    x = [value for one in series for value in one.x]
    ends = (min(x), max(x)) if x else ()
    return Series(label="target", x=ends, y=(config.target_accuracy,) * len(ends), color="#1f2430", dashed=True)
