"""The picture of one attribution trial (arXiv:2505.15811, Fig 11).

Axes: S units.
"""

from collections.abc import Mapping

from torch import Tensor

from trainables.charts import PALETTE, Chart, Panel, Series
from trainables.llm.attribution_metrics import KINDS, pearson_of_logs


def draw_agreement(ablation_S: Tensor, scores: Mapping[str, Tensor], is_residual_S: Tensor) -> Chart:
    """Every score against ablation, a point a unit; units at 0 have no place on logarithmic axes.

    Args:
        scores: score_S by name, a panel each.
        is_residual_S: which units are residual dimensions; the others are neurons.
    """
    panels = tuple(_panel(name, score_S, ablation_S, is_residual_S) for name, score_S in scores.items())
    return Chart(name="agreement", title="What a score says of a unit, and how far the loss moves without it", panels=panels)


def _panel(name: str, score_S: Tensor, ablation_S: Tensor, is_residual_S: Tensor) -> Panel:
    title, series = [], []
    for (kind, label), is_kind_S, color in zip(KINDS.items(), (~is_residual_S, is_residual_S), PALETTE, strict=False):
        x, y = score_S[is_kind_S], ablation_S[is_kind_S]
        title.append(f"{pearson_of_logs(x, y):.2f} ({kind})")
        series.append(Series(label=label, x=tuple(x.tolist()), y=tuple(y.tolist()), mode="points", color=color))
    told = name.replace("_", " ")
    return Panel(
        title=f"{told}: r of the logarithms {', '.join(title)}",
        x_label=f"score by {told}",
        y_label="ablation: |change of the loss| (nats a token)",
        series=tuple(series),
        x_log=True,
        y_log=True,
    )
