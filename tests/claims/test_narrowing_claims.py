"""Fig 4 of arXiv:2505.15811 at the size of scikit-learn's digits: what a narrow network costs, six ways.

Every way has the same sweep: six settings a size. The best setting is chosen on five seeds and measured on eight others,
each with a teacher of its own. `pytest -m claim -s` shows the table; only what is robust is asserted.
"""

import dataclasses
import random
import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from trainables.mnist.narrowing import Narrowing
from trainables.mnist.narrowing_config import NarrowingConfig
from trainables.mnist.teacher import TeacherConfig

pytestmark = pytest.mark.claim

CPU = torch.device("cpu")
SIZES = (20, 40, 80, 160, 320)  # hidden neurons, of the teacher's 400
BASE = NarrowingConfig(
    teacher=TeacherConfig(widths=(200, 200), epochs=40, batch_size=64),
    samples_per_check=128,
    samples_budget=20_000,
    checks_per_step=200,
)
RATES = (1e-3, 4e-3, 1.6e-2)
OWN: dict[str, list[dict[str, Any]]] = {
    "group_lasso": [{"lasso_strength": 5e-3}, {"lasso_strength": 1e-2}],
    "attribution": [{"ranking": "per_layer"}, {"ranking": "global"}],
    "weight_norm": [{"ranking": "per_layer"}, {"ranking": "global"}],
    "random": [{"ranking": "per_layer"}, {"ranking": "global"}],
    "distillation": [{"temperature": 2.0}, {"temperature": 20.0}],
    "from_scratch": [{"batch_size": 16}, {"batch_size": 64}],
}
TUNING, MEASURING = {"seed": 0, "num_seeds": 5}, {"seed": 5, "num_seeds": 8}
CLAIMS = [
    ("attribution", "from_scratch"),
    ("random", "from_scratch"),
    ("weight_norm", "from_scratch"),
    ("group_lasso", "from_scratch"),
    ("distillation", "from_scratch"),
    ("attribution", "distillation"),
    ("group_lasso", "attribution"),
    ("attribution", "random"),
]

Costs = Mapping[tuple[str, int], Sequence[int]]
"""Datapoints of every measured seed, by way and size."""


@pytest.fixture(scope="module")
def costs() -> Costs:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    teachers: dict[str, dict[str, Tensor]] = {}
    found = {(way, size): measured(way, size, teachers) for way in OWN for size in SIZES}
    torch.set_num_threads(num_threads)
    return found


def measured(way: str, size: int, teachers: dict[str, dict[str, Tensor]]) -> list[int]:
    """Datapoints of the setting that was best on other seeds."""
    settings = [{"method": way, "neurons": size, "learning_rate": rate, **own} for rate, own in product(RATES, OWN[way])]
    best = min(settings, key=lambda setting: statistics.fmean(datapoints(setting | TUNING, teachers)))
    return datapoints(best | MEASURING, teachers)


def datapoints(setting: Mapping[str, Any], teachers: dict[str, dict[str, Tensor]]) -> list[int]:
    config = dataclasses.replace(BASE, **setting)
    recipes = Narrowing.needs(config)
    for recipe in recipes.values():
        if recipe.key not in teachers:
            teachers[recipe.key] = recipe.make(CPU)
    experiment = Narrowing(config, device=CPU, given={name: teachers[recipe.key] for name, recipe in recipes.items()})
    while experiment.progress < 1.0:
        experiment.step()
    return [result.datapoints for result in experiment.results()]


def ratio(ours: Sequence[int], theirs: Sequence[int]) -> tuple[float, float, float]:
    """Ratio of medians, with the band that holds 90 % of what other draws of the seeds would give (bootstrap)."""
    draw = random.Random(0)
    ratios = sorted(
        statistics.median(draw.choices(ours, k=len(ours))) / statistics.median(draw.choices(theirs, k=len(theirs)))
        for _ in range(2000)
    )
    return statistics.median(ours) / statistics.median(theirs), ratios[100], ratios[1900]


def verdict(low: float, high: float) -> str:
    return "holds" if high < 1 else "does not" if low > 1 else "unclear"


def test_the_table_of_claims(costs: Costs) -> None:
    print("\ndatapoints to 97 % on the even digits: median (least, most) of eight seeds")
    print(f"{'way':14}" + "".join(f"{size:>22}" for size in SIZES))
    for way in OWN:
        cells = (f"{statistics.median(c):.0f} ({min(c)}, {max(c)})" for c in (costs[way, size] for size in SIZES))
        print(f"{way:14}" + "".join(f"{cell:>22}" for cell in cells))
    print("\na cheaper than b: ratio of medians [band of 90 %], verdict")
    for ours, theirs in CLAIMS:
        for size in SIZES:
            middle, low, high = ratio(costs[ours, size], costs[theirs, size])
            print(f"{ours:>12} < {theirs:12} {size:4} neurons: {middle:5.2f} [{low:.2f}, {high:.2f}]  {verdict(low, high)}")


@pytest.mark.parametrize("size", [160, 320])
@pytest.mark.parametrize("way", ["attribution", "random"])
def test_pruning_and_recovery_is_cheaper_than_training_from_scratch(costs: Costs, way: str, size: int) -> None:
    _, _, high = ratio(costs[way, size], costs["from_scratch", size])
    assert high < 1
