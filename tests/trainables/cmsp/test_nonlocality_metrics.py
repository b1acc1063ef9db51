import dataclasses
import json
import math

import pytest
import torch

from trainables.charts import Chart
from trainables.cmsp.nonlocality_charts import OTHER, TARGET, draw_curves, draw_losses, draw_scores
from trainables.cmsp.nonlocality_config import NonlocalityConfig
from trainables.cmsp.nonlocality_metrics import METRICS, SparsityCurve, mean_overlap, unpruned_metrics
from trainables.cmsp.population import Population

CONFIG = dataclasses.replace(
    NonlocalityConfig.tiny(),
    width=16,  # two layers: 32 neurons
    sparsity=0.5,
    sparsities=(0.9, 0.25, 0.75),
    kept_accuracy=0.9,
    recovery_updates=50,
    updates_per_evaluation=20,  # measured after 0, 20, 40 and 50
)
LOSSES = {"target_loss_bits", "other_loss_bits", "target_atoms_loss_bits", "other_atoms_loss_bits"}
TARGETS = [
    # by sparsity: 0 (always a point), 0.25, 0.5, 0.75, 0.9
    [[1.0], [0.95, 1.0], [0.6, 0.7, 0.92, 0.9], [0.5, 0.6, 0.95, 0.89], [0.5, 0.95, 0.9, 0.9]],
    [[0.95, 1.0], [0.9, 0.9, 0.9, 1.0], [0.94, 0.8, 0.95, 0.93], [0.8, 0.8, 0.8, 0.96], [0.7, 0.7, 0.7, 0.7]],
]
OTHERS = [
    [[0.9, 1.0], [0.8, 1.0], [0.5, 0.6, 0.66, 0.64], [0.5, 0.5, 0.55, 0.5], [0.5, 0.5, 0.5, 0.5]],
    [[0.85, 0.85, 0.95, 0.9], [0.7, 0.7, 0.9, 0.8], [0.6, 0.7, 0.7, 0.8], [0.4, 0.6, 0.6, 0.6], [0.5, 0.5, 0.5, 0.52]],
]


def make(targets=TARGETS, others=OTHERS, config=CONFIG):
    return SparsityCurve(config, accuracies={"target": targets, "other": others}, overlap=0.3, updates_before=500)


def test_all_metrics_of_a_curve_made_by_hand():
    """The trial's sparsity 0.5 is the third of the grid 0, 0.25, 0.5, 0.75, 0.9. Worked out seed by seed, then halved."""
    assert make().metrics() == pytest.approx(
        {
            "target_accuracy": (0.9 + 0.93) / 2,  # the last, though there was a better one
            "target_accuracy_unrecovered": (0.6 + 0.94) / 2,
            "other_accuracy": (0.66 + 0.8) / 2,  # the best, wherever it stands
            "other_accuracy_unrecovered": (0.5 + 0.6) / 2,
            "neurons_kept": 16,  # 32 - int(32 * 0.5)
            "updates_spent": 500 + (40 + 0) / 2,  # kept at the third measurement, and at once
            "highest_sparsity": (0.5 + 0.75) / 2,  # seed 0 has lost A at 0.75 in the end, though 0.9 has it again
            "highest_sparsity_unrecovered": (0.25 + 0.5) / 2,
            "fewest_neurons": (16 + 8) / 2,  # at 0.5, and 32 - int(32 * 0.75)
            "other_accuracy_at_highest": (0.66 + 0.6) / 2,  # at 0.5, and at 0.75
            "overlap": 0.3,
        },
        abs=1e-12,
    )


def test_a_curve_and_an_unpruned_network_have_all_metrics_but_the_losses():
    names = {metric.name for metric in METRICS} - LOSSES
    assert make().metrics().keys() == names
    assert unpruned_metrics(CONFIG, target=0.9, other=0.8, updates_spent=300).keys() == names


def test_kept_means_at_least_the_accuracy_that_the_config_asks_for():
    strict, lax = (make(config=dataclasses.replace(CONFIG, kept_accuracy=kept)).metrics() for kept in (0.93, 0.89))
    assert strict["highest_sparsity"] == (0.25 + 0.75) / 2  # 0.9 is too little for seed 0 at 0.5; 0.93 is enough for seed 1
    assert lax["highest_sparsity"] == (0.9 + 0.75) / 2  # 0.89 will do for seed 0 at 0.75, and 0.9 follows
    assert strict["updates_spent"] == 500 + (50 + 0) / 2  # seed 0 never keeps it, and pays for all of recovery


def test_where_a_is_kept_nowhere_the_highest_sparsity_is_0_and_all_neurons_stay():
    nowhere = [[[0.5, 0.6]] + [[0.95, 1.0]] * 4] * 2  # lost at the first: what comes later does not count
    metrics = make(targets=nowhere).metrics()
    assert metrics["highest_sparsity"] == metrics["highest_sparsity_unrecovered"] == 0.0
    assert metrics["fewest_neurons"] == 32
    assert metrics["other_accuracy_at_highest"] == pytest.approx((1.0 + 0.95) / 2)  # unpruned
    assert metrics["updates_spent"] == 500  # at 0.5 it is kept at once, all the same


def test_where_a_is_kept_everywhere_the_highest_sparsity_is_the_last():
    metrics = make(targets=[[[1.0]] * 5] * 2).metrics()
    assert metrics["highest_sparsity"] == metrics["highest_sparsity_unrecovered"] == 0.9
    assert metrics["fewest_neurons"] == 4  # 32 - int(28.8)
    assert metrics["other_accuracy_at_highest"] == (0.5 + 0.52) / 2


def test_a_seed_that_keeps_a_nowhere_counts_with_0_in_the_mean():
    metrics = make(targets=[TARGETS[0], [[0.5, 0.6, 0.6, 0.6]] * 5]).metrics()
    assert metrics["highest_sparsity"] == 0.25  # 0.5 and 0
    assert metrics["fewest_neurons"] == 24  # 16 and 32
    assert metrics["updates_spent"] == 500 + (40 + 50) / 2


@pytest.mark.parametrize(
    ("accuracies", "updates"),
    [
        ([0.9], 0),
        ([0.5, 0.9, 0.5, 0.5], 20),
        ([0.5, 0.5, 1.0], 40),
        ([0.5, 0.5, 0.5, 0.9], 50),  # the last interval is shorter
        ([0.5, 0.5, 0.5, 0.5], 50),
    ],
)
def test_updates_of_recovery_count_until_a_is_kept(accuracies, updates):
    one = [[[1.0], [1.0], accuracies, [0.5], [0.5]]]
    assert make(targets=one, others=one).metrics()["updates_spent"] == 500 + updates


def test_means_are_over_seeds():
    curve = make()
    assert curve.mean("target", recovered=True) == pytest.approx([1.0, 1.0, 0.915, 0.925, 0.8])
    assert curve.mean("target", recovered=False) == pytest.approx([0.975, 0.925, 0.77, 0.65, 0.6])
    assert curve.mean("other", recovered=True) == pytest.approx([0.975, 0.95, 0.73, 0.575, 0.51])
    assert curve.mean("other", recovered=False) == pytest.approx([0.875, 0.75, 0.55, 0.45, 0.5])


def test_after_recovery_a_counts_as_it_is_in_the_end_and_b_as_it_was_at_best():
    course = [[[0.5, 0.95, 0.8, 0.7]] * 5]
    metrics = make(targets=course, others=course).metrics()
    assert (metrics["target_accuracy"], metrics["other_accuracy"]) == (0.7, 0.95)
    assert metrics["other_accuracy_at_highest"] == 0.95
    assert metrics["highest_sparsity"] == 0.0  # 0.9 is reached and lost again
    assert metrics["updates_spent"] == 500 + 20  # when it was reached


@pytest.mark.parametrize("kept", [percent / 100 for percent in range(51, 101)])
def test_a_network_with_exactly_the_kept_accuracy_keeps_a_and_with_one_mistake_more_does_not(kept):
    """Networks that always say class 0, on 1000 samples of which all but the given share are of class 0."""
    num_wrong = 1000 - round(1000 * kept)
    population = Population(CONFIG.shape, torch.zeros(2, CONFIG.shape.num_padded), [1e-3] * 2)
    y_PB = torch.zeros(2, 1000)
    y_PB[0, :num_wrong] = y_PB[1, : num_wrong + 1] = 1.0
    accuracies = population.accuracies(torch.zeros(2, 1000, CONFIG.shape.num_columns), y_PB).tolist()
    config = dataclasses.replace(CONFIG, kept_accuracy=kept)
    reports = [make([[[accuracy]] * 5], OTHERS[:1], config).metrics() for accuracy in accuracies]
    assert [report["highest_sparsity"] for report in reports] == [0.9, 0.0]
    assert [report["highest_sparsity_unrecovered"] for report in reports] == [0.9, 0.0]
    assert [report["updates_spent"] for report in reports] == [500, 550]


def test_a_curve_comes_back_from_its_state_as_json_holds_it():
    curve = make()
    again = SparsityCurve(CONFIG, **json.loads(json.dumps(curve.state_dict())))
    assert again == curve
    assert again.metrics() == curve.metrics()


def test_before_pruning_all_is_as_unpruned_networks_have_it():
    metrics = unpruned_metrics(CONFIG, target=0.9, other=0.8, updates_spent=300)
    assert metrics["target_accuracy"] == metrics["target_accuracy_unrecovered"] == 0.9
    assert metrics["other_accuracy"] == metrics["other_accuracy_unrecovered"] == metrics["other_accuracy_at_highest"] == 0.8
    assert metrics["neurons_kept"] == metrics["fewest_neurons"] == 32
    assert metrics["highest_sparsity"] == metrics["highest_sparsity_unrecovered"] == 0.0
    assert metrics["updates_spent"] == 300


def test_overlap_compares_the_top_quarters_of_both_scores():
    """Of 8 neurons 2 are the quarter: the same two; one of the same, of three in all; none. Mean (1 + 1/3 + 0) / 3."""
    a = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.9, 0.8]
    same, one, none = list(a), [0.0, 0.9, 0.2, 0.3, 0.4, 0.5, 0.8, 0.1], a[::-1]
    assert mean_overlap([[a, same], [a, one], [a, none]]) == pytest.approx((1 + 1 / 3 + 0) / 3)


def test_curves_are_drawn_as_their_means_over_equal_factors_of_what_is_kept():
    (panel,) = draw_curves({"before": make()}).panels
    assert panel.title == "plain pruning"
    looks = [(series.label, series.color, series.dashed) for series in panel.series]
    assert looks == [
        ("A (kept), recovered", TARGET, False),
        ("A (kept), no recovery", TARGET, True),
        ("B, recovered", OTHER, False),
        ("B, no recovery", OTHER, True),
    ]
    shown = [("target", True), ("target", False), ("other", True), ("other", False)]
    for series, (task, recovered) in zip(panel.series, shown, strict=True):
        assert series.x == pytest.approx([-math.log10(kept) for kept in (1.0, 0.75, 0.5, 0.25, 0.1)])
        assert list(series.y) == make().mean(task, recovered=recovered)
    assert [text for _, text in panel.x_ticks] == ["0", "0.5", "0.8", "0.9"]  # none beyond the curve
    assert [place for place, _ in panel.x_ticks] == pytest.approx([-math.log10(kept) for kept in (1.0, 0.5, 0.2, 0.1)])


def test_with_a_lasso_there_is_a_panel_before_and_one_after():
    after = make(targets=OTHERS, others=TARGETS)
    chart = draw_curves({"before": make(), "after": after})
    assert [panel.title for panel in chart.panels] == ["before the lasso", "after the lasso"]
    assert list(chart.panels[1].series[0].y) == after.mean("target", recovered=True)
    assert chart.panels[1].series[1].y == chart.panels[0].series[3].y
    assert Chart.from_json(chart.to_json()) == chart


def test_losses_are_drawn_by_stage_and_those_of_atoms_as_means():
    """Rows: updates, A, B, A's two atoms, B's two atoms; pretraining of tiny ends at 300."""
    rows = [[100, 0.9, 0.8, 0.1, 0.3, 0.5, 0.6], [300, 0.7, 0.6, 0.1, 0.2, 0.2, 0.4], [400, 0.1, 1.5, 0.8, 1.0, 2.0, 3.0]]
    plain = draw_losses(CONFIG, rows[:2])
    assert [panel.title for panel in plain.panels] == ["pretraining"]
    pretraining, lasso = draw_losses(CONFIG, rows).panels
    assert pretraining == plain.panels[0]
    assert [series.label for series in lasso.series] == ["A", "B", "A's atoms", "B's atoms"]
    assert [series.x for series in lasso.series] == [(300, 400)] * 4  # from where pretraining left them
    for panel, expected in ((pretraining, [0.9, 0.8, 0.2, 0.55]), (lasso, [0.7, 0.6, 0.15, 0.3])):
        assert [series.y[0] for series in panel.series] == pytest.approx(expected)
    assert [series.y[1] for series in lasso.series] == pytest.approx([0.1, 1.5, 0.9, 2.5])


def test_scores_are_drawn_neuron_by_neuron_and_none_falls_off_the_logarithmic_axis():
    networks = [[[0.5, 0.0, 2.0], [0.1, 0.2, 0.3]], [[1.0, 1e-9, 3.0], [0.0, 0.5, 0.6]]]
    (panel,) = draw_scores({"before": networks}).panels
    assert panel.x_log and panel.y_log
    (points,) = panel.series
    assert points.mode == "points"
    assert points.x == (0.5, 1e-4, 2.0, 1.0, 1e-4, 3.0)
    assert points.y == (0.1, 0.2, 0.3, 1e-4, 0.5, 0.6)
    assert len(draw_scores({"before": networks, "after": networks}).panels) == 2
