"""Which units stay: rankings of scores into masks.

Axes: H units of one layer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainables.laws import require


def choose_kept(scores: Sequence[Tensor], sparsity: float, *, per_layer: bool = False) -> list[Tensor]:
    """Keep all but the int(count * sparsity) units with the lowest scores.

    Args:
        scores: score_H of each layer. Among equals, units of earlier layers go first, then those of lower index.
        sparsity: fraction of the units to remove, in [0, 1).
        per_layer: rank the units of each layer on their own; otherwise all together, and then a layer may lose all its
            units.

    Returns:
        keep_H of each layer, bool.

    Raises:
        ValueError: if sparsity is out of its range or a score is not finite.

    Source: arXiv:2505.15811, section 3: one global ranking for CMSP and language models; MNIST ranks each layer.
    """
    require(0 <= sparsity < 1, "sparsity must be in [0, 1)", sparsity, "use 0.95 to keep one unit in twenty")
    if per_layer:
        return [keep_H for score_H in scores for keep_H in choose_kept([score_H], sparsity)]
    score = torch.cat(list(scores))
    require(bool(score.isfinite().all()), "scores must be finite", score[~score.isfinite()].tolist(), "the network diverged")
    keep = torch.ones_like(score, dtype=torch.bool)
    keep[score.argsort(stable=True)[: num_removed(len(score), sparsity)]] = False
    return list(torch.split(keep, [len(score_H) for score_H in scores]))


def keep_more(score_H: Tensor, keep_H: Tensor, count: int) -> Tensor:
    """Keep also the best of the units that would go, until `count` are kept, such as a count that a library asks for.

    Args:
        score_H: of one layer.
        keep_H: bool, as `choose_kept` chose.

    Returns:
        keep_H, bool.

    Raises:
        ValueError: if the layer has fewer units, or more are kept already.
    """
    law = f"between {int(keep_H.sum())} and {len(keep_H)} units can be kept"
    require(int(keep_H.sum()) <= count <= len(keep_H), law, count, "choose a count in between")
    order_H = torch.where(keep_H, torch.inf, score_H).argsort(descending=True, stable=True)
    more_H = torch.zeros_like(keep_H)
    more_H[order_H[:count]] = True
    return more_H


def num_removed(count: int, sparsity: float) -> int:
    """How many of `count` units this sparsity takes: int(count * sparsity), of the product as written on paper."""
    return int(count * sparsity * (1 + 1e-12))  # 100 * 0.29 = 28.999999999999996 shall be 29


def overlap(scores_a: Sequence[Tensor], scores_b: Sequence[Tensor], fraction: float) -> float:
    """Compare the units that matter most by two scores: the Jaccard index of the top `fraction` of each.

    Args:
        scores_a: score_H of each layer; all layers are ranked together.
        scores_b: likewise, of the same units.
        fraction: in (0, 1].

    Returns:
        from 0 (no unit is in both) to 1 (the same units); two random choices of a fraction f give about f / (2 - f).

    Raises:
        ValueError: if the fraction is out of its range, a score is not finite or the layers differ.

    Source: arXiv:2505.15811, Figs 8 and 9, which show the overlap of two tasks' neurons as a picture. Differs: a number.
    """
    require(0 < fraction <= 1, "fraction must be in (0, 1]", fraction, "use 0.25 for the top quarter")
    sizes_a, sizes_b = ([len(score_H) for score_H in scores] for scores in (scores_a, scores_b))
    require(sizes_a == sizes_b, "both scores must be of the same layers", f"{sizes_a} and {sizes_b} units", "score one network")
    top_a, top_b = (torch.cat(choose_kept(scores, 1 - fraction)) for scores in (scores_a, scores_b))
    return int((top_a & top_b).sum()) / int((top_a | top_b).sum())
