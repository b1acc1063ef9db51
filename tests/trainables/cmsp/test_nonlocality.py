import dataclasses
import io
import itertools
import json

import pytest
import torch

from trainables.cmsp.networks import join, split
from trainables.cmsp.nonlocality import Nonlocality, NonlocalityConfig
from trainables.cmsp.population import Population
from trainables.cmsp.task import Batches
from trainables.experiment import DivergedError
from trainables.pruning.penalties import group_norms
from trainables.randomness import generator, stream_key
from trainables.relu_networks import for_modules, initial_network

CPU = torch.device("cpu")
TINY = NonlocalityConfig.tiny()
SHORT = dataclasses.replace(
    TINY, pretraining_updates=40, lasso_updates=30, updates_per_step=20, recovery_updates=6, updates_per_evaluation=4
)


def run(config):
    experiment, reports = Nonlocality(config, device=CPU), []
    while experiment.progress < 1.0:
        reports.append(experiment.step())
    return experiment, reports


def in_recovery(state):
    """Stage of a state in recovery, which population's turn it is, and whether that is in its middle; None in other stages."""
    if state["recovery"] is None:
        return None
    stage = ("pretraining", "before", "lasso", "after")[state["stage"]]
    return stage, state["recovery"]["turn"], state["recovery"]["group"] is not None


def exact_accuracy(network, code, config=TINY):
    """Share of all samples there are that a network gets right."""
    control = torch.tensor([float(atom in code) for atom in range(config.task.num_atoms)])
    bits = torch.tensor(list(itertools.product((0.0, 1.0), repeat=config.num_task_bits)))
    x_BI = torch.cat([control.expand(len(bits), -1), bits], dim=1)
    return (network(x_BI).argmax(-1) == bits[:, list(code)].sum(1).remainder(2)).float().mean().item()


def mean_accuracy(experiment, code):
    networks = Nonlocality.rebuild(experiment.config, experiment.model_tensors(), {})
    return sum(exact_accuracy(network, code) for network in networks) / len(networks)


@pytest.fixture(scope="module")
def finished():
    return run(dataclasses.replace(TINY, score_samples=1000))


def test_default_is_figure_3_with_the_group_lasso():
    config = NonlocalityConfig()
    assert (config.target, config.other) == ((0, 1, 2), (3, 4, 5))
    assert config.mixture == [(0, 1, 2), (3, 4, 5), (0,), (1,), (2,), (3,), (4,), (5,)]
    assert config.grid == [percent / 100 for percent in range(99)]  # 0.9, the trial's own, is one of them
    assert list(config.seeds) == [0, 1, 2, 3, 4]
    assert config.num_neurons == 512
    assert config.shape.num_parameters == 25 * 256 + 257 * 256 + 257 * 2


def test_a_mixture_holds_what_its_breadth_says():
    config = dataclasses.replace(NonlocalityConfig(), related_atoms=2, other_atoms=1, other_composite=False)
    assert config.mixture == [(0, 1, 2), (0,), (1,), (3,)]
    assert dataclasses.replace(config, related_atoms=0, other_atoms=0).mixture == [(0, 1, 2)]


def test_the_trials_sparsity_is_a_point_of_its_curve_and_json_may_bring_a_list():
    config = dataclasses.replace(TINY, sparsity=0.6, sparsities=[0.75, 0.25])
    assert config.grid == [0.0, 0.25, 0.6, 0.75]
    assert config == NonlocalityConfig(**json.loads(json.dumps(dataclasses.asdict(config))))


def test_sparsities_that_differ_by_rounding_are_one():
    config = dataclasses.replace(TINY, sparsity=0.6 + 0.3, sparsities=(0.9, 0, 0.1 + 0.2, 0.3))
    assert 0.6 + 0.3 != 0.9
    assert repr(config.sparsity) == "0.9"
    assert repr(config.sparsities) == "(0.9, 0.0, 0.3, 0.3)"
    assert config.grid == [0.0, 0.3, 0.9]
    assert config == dataclasses.replace(config, sparsity=0.9)
    assert dataclasses.replace(TINY, sparsity=0.123456789).grid[1] == 0.123456789  # 9 digits stay


def test_an_unpruned_network_is_always_a_point_of_the_curve():
    for changes in ({"sparsities": ()}, {"sparsities": (0.75, 0.0)}, {"sparsities": (), "sparsity": 0}):
        config = dataclasses.replace(TINY, **changes)
        assert [repr(sparsity) for sparsity in config.grid[:1]] == ["0.0"]
        assert config.grid.count(0.0) == 1


def test_a_trial_that_prunes_nothing_recovers_its_unpruned_networks():
    experiment, reports = run(dataclasses.replace(SHORT, sparsity=0, sparsities=(), recovery_updates=0, method="none"))
    assert reports[-1]["neurons_kept"] == 32
    for place, network in enumerate(experiment._training.networks()):
        for name, tensor in for_modules(network).items():
            assert torch.equal(tensor, experiment.model_tensors()[f"seed{place}.{name}"])


def test_seeds_of_a_trial_follow_its_first():
    assert list(dataclasses.replace(TINY, seed=7, num_seeds=3).seeds) == [7, 8, 9]


def test_before_any_pruning_metrics_are_those_of_the_unpruned_networks():
    experiment = Nonlocality(dataclasses.replace(TINY, score_samples=4000), device=CPU)
    for updates in (100, 200, 300):
        report = experiment.step()
        target, other = (mean_accuracy(experiment, code) for code in (TINY.target, TINY.other))
        assert report["target_accuracy"] == report["target_accuracy_unrecovered"] == pytest.approx(target, abs=0.03)
        assert report["other_accuracy"] == report["other_accuracy_at_highest"] == pytest.approx(other, abs=0.03)
        assert report["updates_spent"] == updates
        assert report["neurons_kept"] == report["fewest_neurons"] == 32
        assert report["highest_sparsity"] == 0.0
    shapes = {name: tuple(tensor.shape) for name, tensor in experiment.model_tensors().items()}
    assert shapes["seed1.layer0.weight"] == (16, 8)  # outputs, inputs
    assert shapes["seed0.layer1.weight"] == (16, 16)
    assert shapes["seed1.layer2.bias"] == (2,)


def test_pruning_for_a_keeps_a_and_costs_b(finished):
    _, reports = finished
    last = reports[-1]
    assert last["target_accuracy"] > 0.95
    assert last["other_accuracy_unrecovered"] < last["target_accuracy_unrecovered"] - 0.1
    assert last["target_loss_bits"] < 0.05 < last["other_loss_bits"]


def test_the_pruned_networks_are_as_small_and_as_good_as_was_reported(finished):
    experiment, reports = finished
    networks = Nonlocality.rebuild(experiment.config, experiment.model_tensors(), {})
    for network in networks:
        assert sum(linear.out_features for linear in network[:-1:2]) == reports[-1]["neurons_kept"] == 16
    assert mean_accuracy(experiment, TINY.target) == pytest.approx(reports[-1]["target_accuracy"], abs=0.04)
    assert networks[0](torch.zeros(3, 8)).shape == (3, 2)


def test_updates_are_counted_through_all_stages(finished):
    _, reports = finished
    assert [report["updates_spent"] for report in reports[:3]] == [100, 200, 300]
    assert 300 <= reports[5]["updates_spent"] <= 360
    assert 500 <= reports[-1]["updates_spent"] <= 560


def test_a_trial_goes_through_its_stages_in_order_and_weights_them_by_samples():
    """Samples: pretraining 40 updates of 6 codes of 32; lasso 30 of 64; recovery 30 of 64, a third of that for 6 copies.

    Populations of recovery: those of A, then those of B, measured after 12, 24 and 30 updates. Steps are of 20 updates or
    the next such measurement: 24 of A's; 6 and 12 and 12 more; the last 6.
    """
    pretraining, recovery, lasso = 40 * 6 * 32, 30 * 64 * 6 / 3, 30 * 64
    stages = [(pretraining, (1 / 2, 1)), (recovery, (0.4, 0.9, 1)), (lasso, (2 / 3, 1)), (recovery, (0.4, 0.9, 1))]
    config = dataclasses.replace(
        SHORT, sparsities=(0.75,), learning_rate=1e-4, score_samples=500, recovery_updates=30, updates_per_evaluation=12
    )  # so slow that no copy is done early
    for method, count in (("subgradient", 4), ("none", 2)):
        done, expected = 0.0, []
        for samples, shares in stages[:count]:
            expected += [done + share * samples for share in shares]
            done += samples
        experiment, seen = Nonlocality(dataclasses.replace(config, method=method), device=CPU), [0.0]
        assert experiment.progress == 0.0
        while experiment.progress < 1.0:
            experiment.step()
            seen.append(experiment.progress)
        assert seen[1:] == pytest.approx([each / done for each in expected])
        assert seen[-1] == 1.0


def test_without_a_method_a_trial_ends_after_one_curve():
    experiment, reports = run(dataclasses.replace(SHORT, method="none"))
    assert experiment.progress == 1.0
    assert 40 <= reports[-1]["updates_spent"] <= 46
    curves, losses, scores = experiment.charts()
    assert [len(chart.panels) for chart in (curves, losses, scores)] == [1, 1, 1]
    assert reports[-1]["target_loss_bits"] == reports[1]["target_loss_bits"]  # the unpruned were not trained on


def test_a_step_after_the_end_changes_nothing(finished):
    experiment, reports = finished
    assert experiment.step() == reports[-1]
    assert experiment.progress == 1.0


def test_charts_show_the_curves_and_the_losses_of_the_trial(finished):
    experiment, reports = finished
    curves, losses, scores = experiment.charts()
    assert [chart.name for chart in (curves, losses, scores)] == ["sparsity_curves", "losses", "scores"]
    assert [len(chart.panels) for chart in (curves, losses, scores)] == [2, 2, 2]
    by_label = {series.label: series.y for series in curves.panels[1].series}
    place = experiment.config.grid.index(0.5)
    assert by_label["A (kept), recovered"][place] == reports[-1]["target_accuracy"]
    assert by_label["A (kept), no recovery"][place] == reports[-1]["target_accuracy_unrecovered"]
    assert by_label["B, recovered"][place] == reports[-1]["other_accuracy"]
    assert by_label["B, no recovery"][place] == reports[-1]["other_accuracy_unrecovered"]
    assert losses.panels[0].series[0].x == (100, 200, 300)
    assert losses.panels[1].series[0].x == (300, 400, 500)
    assert losses.panels[1].series[1].y[-1] == reports[-1]["other_loss_bits"]
    assert all(len(panel.series[0].x) == 2 * 32 for panel in scores.panels)  # every neuron of every network


@pytest.mark.parametrize(("method", "strength"), [("proximal", 3.0), ("subgradient", 1e-2)])
def test_only_the_proximal_step_makes_exact_zeros(method, strength):
    config = dataclasses.replace(TINY, method=method, lasso_strength=strength, sparsities=(), recovery_updates=0)
    experiment, _ = run(config)
    tensors = experiment._training.population.tensors  # a width of 16 is not padded
    norm_PH = torch.cat([group_norms(tensors, units) for units in config.shape.neurons], dim=1)
    assert norm_PH.shape == (2, 32)
    assert norm_PH.max() > 0.5
    num_zeros = int((norm_PH == 0).sum())
    assert num_zeros > 10 if method == "proximal" else num_zeros == 0


def test_a_stronger_lasso_leaves_shorter_groups():
    norms = []
    for strength in (0.0, 1e-2):
        config = dataclasses.replace(
            TINY, method="subgradient", lasso_strength=strength, sparsities=(), recovery_updates=0, pretraining_updates=100
        )
        tensors = run(config)[0]._training.population.tensors
        norms.append(sum(group_norms(tensors, units).sum() for units in config.shape.neurons))
    assert norms[1] < 0.9 * norms[0]


def test_a_lasso_of_no_strength_is_plain_training_on_a():
    config = dataclasses.replace(SHORT, lasso_strength=0.0, seed=4, sparsities=(), recovery_updates=0)
    seeds, rates = (4, 5), [config.learning_rate] * 2
    keys = {name: torch.tensor([stream_key(seed, name) for seed in seeds]) for name in ("pretraining", "lasso")}
    start_PF = join(config.shape, [initial_network(config.shape.layers, generator(seed, "weights")) for seed in seeds])
    pretrained = Population(config.shape, start_PF, rates, adam_eps=1e-5)
    batches = Batches(config.task, dict.fromkeys(config.mixture, config.pretraining_samples), keys["pretraining"])
    for index in range(40):
        pretrained.update(*batches.draw(index))
    plain = Population(config.shape, pretrained.parameter_PF, rates, adam_eps=1e-8)
    batches = Batches(config.task, {config.target: config.lasso_samples}, keys["lasso"])
    for index in range(30):
        plain.update(*batches.draw(index))
    for method in ("subgradient", "proximal"):
        experiment, _ = run(dataclasses.replace(config, method=method))
        assert torch.equal(experiment._training.population.parameter_PF, plain.parameter_PF)


@pytest.mark.parametrize("method", ["subgradient", "none"])
def test_a_trial_saved_and_loaded_after_every_step_goes_on_as_if_nothing_had_happened(method):
    """The contract tests do so with the proximal step. Recovery is long enough for copies to leave in its middle."""
    config = dataclasses.replace(SHORT, method=method, recovery_updates=27, width=40, updates_per_step=8)
    straight, expected = run(config)
    experiment, reports, progress, saved = Nonlocality(config, device=CPU), [], [], set()
    while experiment.progress < 1.0:
        reports.append(experiment.step())
        progress.append(experiment.progress)
        stored = io.BytesIO()
        torch.save(experiment.state_dict(), stored)
        saved.add(in_recovery(experiment.state_dict()))
        stored.seek(0)
        experiment = Nonlocality(config, device=CPU)
        experiment.load_state_dict(torch.load(stored, weights_only=True))
        assert experiment.progress == progress[-1]
    assert reports == expected
    for stage in ("before", "after") if method == "subgradient" else ("before",):
        assert {(stage, turn, True) for turn in (0, 1, 2)} <= saved  # in the middle of the first populations
        lengths = {len(found) for seed in straight.state_dict()["curves"][stage]["accuracies"]["target"] for found in seed}
        assert len(lengths) > 1
    assert experiment.charts() == straight.charts()
    for name, tensor in straight.model_tensors().items():
        assert torch.equal(tensor, experiment.model_tensors()[name])


def test_a_state_may_be_loaded_over_any_later_or_earlier_one():
    config = dataclasses.replace(SHORT, method="subgradient", recovery_updates=27, width=40, updates_per_step=8)
    experiment = Nonlocality(config, device=CPU)
    states, reports = [], []
    while experiment.progress < 1.0:
        states.append(experiment.state_dict())
        reports.append(experiment.step())
    saved = [in_recovery(state) for state in states]
    for place in (saved.index(("before", 1, True)), 1, saved.index(("after", 2, True)), saved.index(("before", 2, True)), 0):
        experiment.load_state_dict(states[place])
        assert [experiment.step() for _ in reports[place:]] == reports[place:]


def test_a_network_is_trained_and_scored_alike_whether_other_seeds_exist_or_not():
    alone, _ = run(dataclasses.replace(SHORT, seed=1, num_seeds=1))
    together, _ = run(dataclasses.replace(SHORT, seed=0, num_seeds=3))
    for panel_alone, panel in zip(alone.charts()[2].panels, together.charts()[2].panels, strict=True):
        (one,), (all_three,) = panel_alone.series, panel.series
        assert one.x == all_three.x[32:64]
        assert one.y == all_three.y[32:64]
    for name, tensor in split(SHORT.shape, alone._training.population.parameter_PF).items():
        assert torch.equal(tensor[0], split(SHORT.shape, together._training.population.parameter_PF)[name][1])


def test_a_network_recovers_alike_whether_other_seeds_exist_or_not():
    alone, _ = run(dataclasses.replace(SHORT, seed=1, num_seeds=1))
    together, _ = run(dataclasses.replace(SHORT, seed=0, num_seeds=3))
    for name, tensor in alone.model_tensors().items():
        assert torch.equal(tensor, together.model_tensors()[name.replace("seed0", "seed1")])
    for stage in ("before", "after"):
        of_one, of_all = (each.state_dict()["curves"][stage]["accuracies"] for each in (alone, together))
        assert {len(found) for found in of_one["other"][0]} == {3}  # measured after 0, 4 and 6 updates
        for task in ("target", "other"):
            assert of_one[task][0] == of_all[task][1]


def test_networks_of_which_a_whole_layer_was_pruned_are_rebuilt():
    config = dataclasses.replace(SHORT, sparsity=0.97)  # of 32 neurons 1 is left
    experiment, reports = run(config)
    assert reports[-1]["neurons_kept"] == 1
    networks = Nonlocality.rebuild(config, experiment.model_tensors(), {})
    assert len(networks) == 2
    for network in networks:
        assert network(torch.zeros(3, 8)).shape == (3, 2)
        assert sum(linear.out_features for linear in network[:-1:2]) == 1


def test_a_score_that_needs_no_task_ranks_otherwise():
    by_score = {score: run(dataclasses.replace(SHORT, score=score))[1][-1] for score in ("ablation", "weight_norm", "random")}
    assert len({report["target_accuracy_unrecovered"] for report in by_score.values()}) == 3


def test_a_learning_rate_that_blows_up_is_reported_as_divergence():
    with pytest.raises(DivergedError, match=r"losses must be finite.*lower learning_rate"):
        run(dataclasses.replace(TINY, learning_rate=1e37))


@pytest.mark.parametrize(
    ("changes", "law"),
    [
        ({"pretraining_updates": 0}, "pretraining_updates must be at least 1"),
        ({"lasso_updates": 0}, "lasso_updates must be at least 1"),
        ({"recovery_updates": -1}, "recovery_updates must be at least 0"),
        ({"num_seeds": 0}, "num_seeds must be at least 1"),
        ({"pretraining_samples": 0}, "pretraining_samples must be at least 1"),
        ({"lasso_samples": 0}, "lasso_samples must be at least 1"),
        ({"score_samples": 0}, "score_samples must be at least 1"),
        ({"recovery_samples": 0}, "recovery_samples must be at least 1"),
        ({"updates_per_evaluation": 0}, "updates_per_evaluation must be at least 1"),
        ({"updates_per_step": 0}, "updates_per_step must be at least 1"),
        ({"related_atoms": 3}, r"related_atoms must be in \[0, 2\]"),
        ({"related_atoms": -1}, r"related_atoms must be in \[0, 2\]"),
        ({"other_atoms": 3}, r"other_atoms must be in \[0, 2\]"),
        ({"composite_size": 1, "related_atoms": 1, "other_atoms": 1}, "composite_size must be at least 2"),
        ({"learning_rate": 0.0}, "learning_rate must be positive and finite"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive and finite"),
        ({"lasso_strength": -1.0}, "lasso_strength must be at least 0 and finite"),
        ({"lasso_strength": float("inf")}, "lasso_strength must be at least 0 and finite"),
        ({"method": "lasso"}, "method must be one of none, subgradient, proximal, but got 'lasso'"),
        ({"score": "magnitude"}, "score must be one of ablation, .*weight_norm, random, but got 'magnitude'"),
        ({"kept_accuracy": 0.5}, r"kept_accuracy must be in \(0.5, 1\]"),
        ({"kept_accuracy": 1.01}, r"kept_accuracy must be in \(0.5, 1\]"),
        ({"sparsity": 1.0}, r"sparsity must be in \[0, 1\)"),
        ({"sparsity": -0.1}, r"sparsity must be in \[0, 1\)"),
        ({"sparsities": (0.5, 1.0)}, r"sparsity must be in \[0, 1\), but got 1.0"),
        ({"sparsity": 1 - 1e-10}, r"sparsity must be in \[0, 1\)"),
        ({"depth": 1}, "depth must be at least 2"),
        ({"width": 0}, "width must be at least 1"),
        ({"num_task_bits": 3}, "num_task_bits must be at least"),
        ({"bits_per_atom": 0}, "bits_per_atom must be at least 1"),
    ],
)
def test_a_config_states_the_law_that_it_breaks(changes, law):
    with pytest.raises(ValueError, match=law):
        dataclasses.replace(TINY, **changes)


@pytest.mark.parametrize("edge", [{"recovery_updates": 0}, {"lasso_strength": 0.0}, {"sparsity": 0.0}, {"kept_accuracy": 1.0}])
def test_edges_of_the_laws_are_within(edge):
    assert dataclasses.replace(TINY, **edge) != TINY


def test_a_sparsity_of_minus_0_is_0():
    run(dataclasses.replace(SHORT, sparsity=-0.0, method="none", pretraining_updates=1, recovery_updates=0))
