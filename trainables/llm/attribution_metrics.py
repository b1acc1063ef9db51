"""How well scores tell ablations: what the attribution experiment reports of the units that are ablated so far.

Axes: S units, K of them of one kind.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from trainables.experiment import Metric

_LEAST_UNITS = 3
KINDS = {"neurons": "neurons", "residual": "residual dimensions"}


def _metrics_of(kind: str) -> tuple[Metric, ...]:
    units = KINDS[kind]
    return (
        Metric(
            name=f"r_{kind}", goal="max", unit="1",
            meaning=f"Pearson's r of the trial's score and ablation, of the {units} ablated so far; 0, as all r, "
            f"where fewer than {_LEAST_UNITS} units count or they do not differ",
        ),
        Metric(name=f"r_log_{kind}", goal="max", unit="1", meaning="the same of their logarithms, without units at 0"),
        Metric(name=f"rank_{kind}", goal="max", unit="1", meaning="the same of their ranks (Spearman)"),
        Metric(name=f"zeros_{kind}", goal=None, unit="units", meaning=f"{units} without a logarithm: score or ablation is 0"),
        Metric(name=f"r_{kind}/*", goal=None, unit="1", meaning=f"r_{kind} of each score on the same batches"),
        Metric(name=f"r_log_{kind}/*", goal=None, unit="1", meaning=f"r_log_{kind} of each score on the same batches"),
    )  # fmt: skip


METRICS = (
    *_metrics_of("neurons"),
    *_metrics_of("residual"),
    Metric(name="units_ablated", goal=None, unit="units", meaning="so far, of both kinds"),
    Metric(name="score_tokens", goal="min", unit="tokens", meaning="read by the trial's score, once for all units"),
    Metric(name="ablation_tokens", goal=None, unit="tokens", meaning="read by the ablations so far, once for each unit"),
)


def correlations(ablation_S: Tensor, scores: Mapping[str, Tensor], own: str, is_residual_S: Tensor) -> dict[str, float]:
    """All metrics that are about agreement.

    Args:
        scores: score_S by name.
        own: the name of the trial's own.
        is_residual_S: which units are residual dimensions; the others are neurons.
    """
    found = {}
    for kind, is_kind_S in (("neurons", ~is_residual_S), ("residual", is_residual_S)):
        ablation_K, own_K = ablation_S[is_kind_S], scores[own][is_kind_S]
        found[f"rank_{kind}"] = pearson(_ranks(own_K), _ranks(ablation_K))
        found[f"zeros_{kind}"] = float((~_have_logs(own_K, ablation_K)).sum())
        for name, score_S in scores.items():
            found[f"r_{kind}/{name}"] = pearson(score_S[is_kind_S], ablation_K)
            found[f"r_log_{kind}/{name}"] = pearson_of_logs(score_S[is_kind_S], ablation_K)
        for r in (f"r_{kind}", f"r_log_{kind}"):
            found[r] = found[f"{r}/{own}"]
    return found


def pearson(one_S: Tensor, other_S: Tensor) -> float:
    """Pearson's r, -1..1; 0 of fewer than 3 units, or if either does not vary."""
    if len(one_S) < _LEAST_UNITS or bool((one_S == one_S[0]).all()) or bool((other_S == other_S[0]).all()):
        return 0.0
    one, other = (value.double() - value.double().mean() for value in (one_S, other_S))
    one, other = one / one.abs().max(), other / other.abs().max()  # so that no square is too small for its type
    return float((one @ other / (one.norm() * other.norm())).clamp(-1, 1))


def pearson_of_logs(one_S: Tensor, other_S: Tensor) -> float:
    """Pearson's r of logarithms, of the units where neither is 0."""
    both_S = _have_logs(one_S, other_S)
    return pearson(one_S[both_S].double().log(), other_S[both_S].double().log())


def _have_logs(one_S: Tensor, other_S: Tensor) -> Tensor:
    return (one_S > 0) & (other_S > 0)


def _ranks(value_S: Tensor) -> Tensor:
    """Ranks from 1; equals share the mean of theirs."""
    _, group_S, count_G = torch.unique(value_S, return_inverse=True, return_counts=True)
    rank_G: Tensor = count_G.cumsum(0) - (count_G - 1) / 2
    return rank_G[group_S]
