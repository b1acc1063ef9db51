"""How much each parameter matters to each objective (Optuna's PED-ANOVA)."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from study.asking.trials import Trials
from study.fronts.front import Front, Objective, sign_of
from study.reporting.figures import Drawing, Part, new_figure
from study.reporting.front_marks import escaped

MIN_TRIALS = 20
_MAX_BARS = 20
_NUM_BEST = 10
_MAX_TRIALS = 5000
"""Beyond, Optuna takes more than seconds to take them in, and the shares no longer move."""
_SHADES = ("#2f4858", "#7aa6b8", "#c9a227", "#8c5e58")
"""Of objectives: none of the colours that tell models apart."""


def draw_importance(front: Front, ranges: Mapping[str, str]) -> Part:
    """One group of bars a parameter, one bar an objective.

    Args:
        ranges: text of each parameter's range, as far as known; `(log)` in it makes the parameter's logarithm count.
    """
    models = front.compared.followed_by(front.infeasible)
    found, told = {}, []
    for objective in front.objectives:
        shares = importances(models, objective, ranges)
        if isinstance(shares, str):
            told.append(shares)
        else:
            found[objective.metric] = shares
    if not found:
        return Part(sentences=tuple(dict.fromkeys(told)))
    drawing = _bars(found)
    how = (
        f"PED-ANOVA: how differently a parameter is spread in the best trials ({_share_text(models)}) and in all, as a share of "
        "all parameters; so it tells what to choose to be among the best, not how much a change costs. A parameter that only "
        "some trials have is judged among these, weighted by how many of the best have it. A trial with candidates counts "
        "once, with the best of them."
    )
    return Part(sentences=(how, *dict.fromkeys(told)), drawings=(drawing,))


def importances(models: Trials, objective: Objective, ranges: Mapping[str, str]) -> dict[str, float] | str:
    """The share of each parameter, in all 1; or one sentence on why there are none.

    fANOVA would tell shares of variance, but takes over a minute at 1000 trials, where this takes a tenth of a second, and has
    no answer for a parameter that only some trials have.

    Source: Watanabe, Bansal and Hutter, arXiv:2304.10255; with conditional parameters arXiv:2601.20800.
    """
    places, costs = _best_of_trials(models, objective)
    if len(places) < MIN_TRIALS:
        return f"Importances need {MIN_TRIALS} finished trials, but there are {len(places)}."
    if costs.min() == costs.max():
        return f"All trials have the same {objective.metric}, so that no parameter matters to it."
    params = models.take(places).params()
    columns = {name: [own.get(name) for own in params] for name in dict.fromkeys(name for own in params for name in own)}
    distributions = {name: kind for name, column in columns.items() if (kind := _distribution(column, ranges.get(name, "")))}
    if not distributions:
        return f"No parameter differs among the trials, so that none matters to {objective.metric}."
    return _ask_optuna(params, costs.tolist(), distributions)


def _best_of_trials(models: Trials, objective: Objective) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Places of the best model of each trial, and its finite cost; of very many trials some."""
    costs = sign_of(objective) * models.metric(objective.metric)
    best: dict[tuple[str, int], int] = {}
    for place, key in enumerate(zip(models.column("study"), models.column("trial"), strict=True)):
        if np.isfinite(costs[place]) and (key not in best or costs[place] < costs[best[key]]):
            best[key] = place
    places = np.array(sorted(best.values()), dtype=np.int64)
    if len(places) > _MAX_TRIALS:
        places = places[np.linspace(0, len(places) - 1, _MAX_TRIALS).round().astype(np.int64)]
    return places, costs[places]


def _distribution(column: Sequence[Any], range_text: str) -> Any:
    """What Optuna takes a parameter for; None for one that is constant."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    present = [value for value in column if value is not None]
    if len({str(value) for value in present}) < 2:
        return None
    kinds = {type(value) for value in present}
    if not kinds <= {int, float}:
        return CategoricalDistribution(sorted({_choice(value) for value in present}))
    low, high = min(present), max(present)
    is_log = "(log)" in range_text and low > 0
    if kinds == {int}:
        return IntDistribution(low, high, log=is_log)
    return FloatDistribution(float(low), float(high), log=is_log)


def _choice(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _ask_optuna(
    params: Sequence[Mapping[str, Any]], costs: Sequence[float], distributions: Mapping[str, Any]
) -> dict[str, float]:
    import optuna
    from optuna.distributions import CategoricalDistribution
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    for own, cost in zip(params, costs, strict=True):
        kinds = {name: kind for name, kind in distributions.items() if own.get(name) is not None}
        values = {
            name: _choice(own[name]) if isinstance(kind, CategoricalDistribution) else own[name] for name, kind in kinds.items()
        }
        study.add_trial(optuna.trial.create_trial(params=values, distributions=kinds, value=cost))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=best_share(len(costs)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of costs that are equal: the bars are, too
        return {name: float(share) for name, share in get_param_importances(study, evaluator=evaluator).items()}


def best_share(num_trials: int) -> float:
    """Which share of the trials is taken for the best: a tenth, of few trials ten, but no more than a quarter."""
    return min(0.25, max(0.1, _NUM_BEST / num_trials))


def _share_text(models: Trials) -> str:
    num = len(set(zip(models.column("study"), models.column("trial"), strict=True)))
    asked = f"{min(num, _MAX_TRIALS)}" + (f", taken evenly from {num}" if num > _MAX_TRIALS else "")
    return f"{best_share(num):.0%} of {asked}"


def _bars(found: Mapping[str, Mapping[str, float]]) -> Drawing:
    from plotly.graph_objects import Bar

    totals: dict[str, float] = {}
    for shares in found.values():
        for name, share in shares.items():
            totals[name] = totals.get(name, 0.0) + share
    names = sorted(totals, key=lambda name: -totals[name])[:_MAX_BARS][::-1]
    figure = new_figure()
    for place, (metric, shares) in reversed(list(enumerate(found.items()))):
        color = _SHADES[place % len(_SHADES)]
        look = {"orientation": "h", "name": escaped(metric), "marker": {"color": color}, "hovertemplate": "%{y}: %{x:.1%}"}
        figure.add_trace(Bar(x=[shares.get(name, 0.0) for name in names], y=[escaped(name) for name in names], **look))
    figure.update_layout(
        barmode="group", bargap=0.25, showlegend=True, xaxis={"tickformat": ".0%", "rangemode": "tozero"},
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "xanchor": "left", "traceorder": "reversed"},
    )  # fmt: skip
    figure.update_layout(margin={"t": 34 + 20 * len(found)})
    return Drawing(name="importance", figure=figure, height=120 + len(names) * (10 + 12 * len(found)))
