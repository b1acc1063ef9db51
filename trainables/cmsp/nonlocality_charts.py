"""Pictures of a nonlocality trial: sparsity curves (Figs 3 and 10), losses, scores of neurons (Fig 8)."""

import math
import statistics
from collections.abc import Mapping, Sequence

from trainables.charts import Chart, Panel, Series
from trainables.cmsp.nonlocality_config import NonlocalityConfig
from trainables.cmsp.nonlocality_metrics import SparsityCurve

TARGET, OTHER = "#2f5fa8", "#d1495b"
_TARGET_ATOMS, _OTHER_ATOMS = "#9db8df", "#eeb0b8"
_TICKS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98)
_WHEN = {"before": "before the lasso", "after": "after the lasso"}
_LEAST_SCORE_NATS = 1e-4  # of the picture: float32 sees no less


def draw_curves(curves: Mapping[str, SparsityCurve]) -> Chart:
    """Accuracy on A and B over sparsity, with and without recovery; one panel before the lasso and one after."""
    panels = []
    for stage, curve in curves.items():
        place = [_distance(sparsity) for sparsity in curve.config.grid]
        series = [
            Series(
                label=f"{name}, {'recovered' if recovered else 'no recovery'}",
                x=tuple(place),
                y=tuple(curve.mean(task, recovered=recovered)),
                x_names=tuple(f"{sparsity:g}" for sparsity in curve.config.grid),
                color=color,
                dashed=not recovered,
            )
            for task, name, color in (("target", "A (kept)", TARGET), ("other", "B", OTHER))
            for recovered in (True, False)
        ]
        panels.append(
            Panel(
                title=_WHEN[stage] if len(curves) > 1 else "plain pruning",
                x_label="sparsity (share of hidden neurons removed)",
                y_label="accuracy (share of samples; chance 0.5)",
                series=tuple(series),
                x_ticks=tuple((_distance(s), f"{s:g}") for s in _TICKS if s <= max(curve.config.grid)),
                y_range=(0.4, 1.03),
            )
        )
    return Chart(name="sparsity_curves", title="Pruned for A: what is left of A, and what comes back of B", panels=tuple(panels))


def _distance(sparsity: float) -> float:
    """The paper's axis: equal factors of what is kept are equal distances."""
    return -math.log10(1 - sparsity)


def draw_losses(config: NonlocalityConfig, losses: Sequence[Sequence[float]]) -> Chart:
    """Losses of both tasks and their atoms through pretraining and lasso, mean over seeds."""
    size, boundary = config.composite_size, config.pretraining_updates
    stages = {"pretraining": [row for row in losses if row[0] <= boundary]}
    if len(losses) > len(stages["pretraining"]):
        stages["group lasso on A"] = [row for row in losses if row[0] >= boundary]
    columns = {
        "A": (TARGET, slice(1, 2)),
        "B": (OTHER, slice(2, 3)),
        "A's atoms": (_TARGET_ATOMS, slice(3, 3 + size)),
        "B's atoms": (_OTHER_ATOMS, slice(3 + size, 3 + 2 * size)),
    }
    panels = [
        Panel(
            title=title,
            x_label="updates",
            y_label="loss (bits; chance 1)",
            series=tuple(
                Series(
                    label=label,
                    x=tuple(row[0] for row in rows),
                    y=tuple(statistics.fmean(row[column]) for row in rows),
                    color=color,
                )
                for label, (color, column) in columns.items()
            ),
            y_log=True,
        )
        for title, rows in stages.items()
    ]
    return Chart(name="losses", title="Losses, unpruned", panels=tuple(panels))


def draw_scores(scores: Mapping[str, Sequence[Sequence[Sequence[float]]]]) -> Chart:
    """What each neuron matters to A and to B, by ablation; neurons of all networks."""
    panels = []
    for stage, networks in scores.items():
        pairs = [pair for of_a, of_b in networks for pair in zip(of_a, of_b, strict=True)]
        panels.append(
            Panel(
                title=_WHEN[stage] if len(scores) > 1 else "plain pruning",
                x_label="score for A (nats)",
                y_label="score for B (nats)",
                series=(
                    Series(
                        label="a neuron",
                        x=tuple(max(a, _LEAST_SCORE_NATS) for a, _ in pairs),
                        y=tuple(max(b, _LEAST_SCORE_NATS) for _, b in pairs),
                        mode="points",
                        color=TARGET,
                    ),
                ),
                x_log=True,
                y_log=True,
            )
        )
    return Chart(name="scores", title="How far the loss moves without a neuron", panels=tuple(panels))
