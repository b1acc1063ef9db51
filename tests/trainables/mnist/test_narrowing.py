import dataclasses
import json
import math
import statistics
import subprocess
import sys

import pytest
import torch
from idx_files import NAMES, write_dataset

from trainables.experiment import DivergedError, build_experiment
from trainables.mnist import evaluation
from trainables.mnist.data import load_dataset
from trainables.mnist.narrowing import Narrowing
from trainables.mnist.narrowing_config import METHODS, SCORE_OF, NarrowingConfig
from trainables.mnist.results import Result, accuracy, summarize
from trainables.mnist.teacher import TeacherConfig
from trainables.model_files import save_model
from trainables.pruning.scores import SCORES
from trainables.relu_networks import CrossEntropy, by_seed, hidden_neurons
from trainables.shared import Shared
from trainables.storage import Folder

CPU = torch.device("cpu")
TINY = dataclasses.replace(NarrowingConfig.tiny(), score_samples=100, checks_per_step=1)
CHECK = TINY.samples_per_check


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Where teachers are made once for all tests."""
    return Shared(Folder(tmp_path_factory.mktemp("shared")))


def begin(shared, config):
    return build_experiment(Narrowing, config, device=CPU, shared=shared)


def run(shared, config):
    """A whole run: the experiment, its reports and its candidates."""
    experiment, reports, found = begin(shared, config), [], []
    while experiment.progress < 1.0:
        reports.append(experiment.step())
        found += experiment.candidates()
    return experiment, reports, found


@pytest.fixture(scope="module")
def finished(shared):
    """A whole run of every method."""
    return {method: run(shared, dataclasses.replace(TINY, method=method)) for method in METHODS}


@pytest.fixture(scope="module")
def teachers(shared):
    return [dict(sorted(shared.get(recipe, CPU).items())) for recipe in Narrowing.needs(TINY).values()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), num_train=400, num_test=100, rows=6, cols=6)


def of_files(folder):
    """A lasso run on a data set of files."""
    teacher = TeacherConfig(widths=(16, 16), epochs=20, batch_size=32, dropout=0.0, learning_rate=1e-2)
    return dataclasses.replace(
        TINY,
        data_dir=str(folder),
        teacher=teacher,
        neurons=10,
        target_accuracy=0.6,
        samples_per_check=160,
        lasso_strength=0.1,
        mask_threshold=0.3,
    )


def candidates(shared, config, *, interrupted):
    """Number and metrics of every candidate of a whole run."""
    experiment, found = begin(shared, config), []
    while experiment.progress < 1.0:
        experiment.step()
        found += [(candidate.number, candidate.metrics) for candidate in experiment.candidates()]
        if interrupted:
            state, experiment = experiment.state_dict(), begin(shared, config)
            experiment.load_state_dict(state)
    return found


def same(tensors, others):
    return tensors.keys() == others.keys() and all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


def mean_accuracy(models, images):
    return statistics.fmean(accuracy(model, images) for model in models)


def sizes_of(model):
    return [linear.out_features for linear in model[:-1:2]]


@pytest.mark.parametrize(
    ("method", "widths", "neurons"),
    [
        ("weight_norm", (24, 24), 25),
        ("weight_norm", (24, 24), 3),
        ("weight_norm", (30, 7), 20),
        ("attribution", (24, 24), 47),
        ("random", (24, 24), 24),
    ],
)
@pytest.mark.parametrize("ranking", ["per_layer", "global"])
def test_pruning_leaves_as_many_neurons_as_it_was_told_and_the_network_can_be_done(shared, method, ranking, widths, neurons):
    """A target that any network has at the first check: 5 of 10 classes are kept, and one in fifty is enough."""
    teacher = TeacherConfig(widths=widths, epochs=3, batch_size=64, dropout=0.0, learning_rate=5e-3)
    config = dataclasses.replace(
        TINY, teacher=teacher, method=method, ranking=ranking, neurons=neurons, target_accuracy=0.02, num_seeds=2
    )
    experiment = begin(shared, config)
    report = experiment.step()
    assert [result.neurons for result in experiment.results()] == [neurons, neurons]
    assert (report["neurons_kept"], report["fraction_reached"], experiment.progress) == (neurons, 1.0, 1.0)


def test_an_interrupted_lasso_run_offers_the_candidates_of_one_that_was_not(shared):
    """Sizes are so close that networks pass several at once, one seed before the other."""
    config = dataclasses.replace(TINY, candidate_ratio=0.97, mask_threshold=0.3, lasso_strength=0.1)
    found = candidates(shared, config, interrupted=True)
    assert found == candidates(shared, config, interrupted=False)
    assert len(found) > 2


@pytest.mark.parametrize("method", METHODS)
def test_every_way_ends_with_a_small_network_that_knows_the_kept_classes(finished, method):
    experiment, reports, _ = finished[method]
    assert experiment.progress == 1.0
    assert reports[-1]["fraction_reached"] == 1.0
    assert all(result.validation_accuracy >= 0.85 for result in experiment.results())
    assert reports[-1]["accuracy"] > 0.8
    assert reports[-1]["other_accuracy"] < 0.2
    kept = [result.neurons for result in experiment.results()]
    assert max(kept) <= 24 if method == "group_lasso" else kept == [24, 24]


@pytest.mark.parametrize("method", METHODS)
def test_reports_are_of_the_networks_that_are_kept(finished, method):
    experiment, reports, _ = finished[method]
    models = Narrowing.rebuild(experiment.config, experiment.model_tensors(), {})
    data, last = load_dataset(), reports[-1]
    assert mean_accuracy(models, data.test.of_classes((0, 2, 4, 6, 8))) == last["accuracy"]
    assert mean_accuracy(models, data.test.of_classes((1, 3, 5, 7, 9))) == last["other_accuracy"]
    assert mean_accuracy(models, data.validation.of_classes((0, 2, 4, 6, 8))) == pytest.approx(last["validation_accuracy"])
    assert statistics.fmean(sum(sizes_of(model)) for model in models) == last["neurons_kept"]
    counted = [sum(parameter.numel() for parameter in model.parameters()) for model in models]
    assert statistics.fmean(counted) == last["parameters_kept"]


@pytest.mark.parametrize("method", METHODS)
def test_datapoints_are_whole_check_intervals_and_what_the_scores_read(finished, method):
    experiment, reports, _ = finished[method]
    cost = 100 if method == "attribution" else 0
    assert reports[0]["datapoints"] == cost + CHECK
    spent = [result.datapoints - cost for result in experiment.results()]
    assert all(datapoints > 0 and datapoints % CHECK == 0 for datapoints in spent)
    assert max(spent) == len(reports) * CHECK


def test_a_network_that_is_done_costs_nothing_more(finished):
    experiment, _, _ = finished["from_scratch"]
    (panel,) = experiment.charts()[0].panels
    *seeds, target = panel.series
    for result, series in zip(experiment.results(), seeds, strict=True):
        assert series.x == tuple(range(CHECK, result.datapoints + 1, CHECK))
        assert max(series.y[:-1]) < 0.85 <= series.y[-1] == result.validation_accuracy
    assert set(target.y) == {0.85}


def test_only_the_lasso_has_a_picture_of_sizes(finished):
    for method, (experiment, _, _) in finished.items():
        (chart,) = experiment.charts()
        assert len(chart.panels) == (2 if method == "group_lasso" else 1)
    left = finished["group_lasso"][0].charts()[0].panels[1].series[0].x
    assert list(left) == sorted(left, reverse=True)
    assert left[-1] <= 24 < left[0] <= 48


def test_steps_of_several_checks_end_where_single_ones_do(shared, finished):
    experiment, reports, _ = run(shared, dataclasses.replace(TINY, method="distillation", checks_per_step=4))
    assert len(reports) == -(-len(finished["distillation"][1]) // 4)
    assert reports[-1] == finished["distillation"][1][-1]
    assert same(experiment.model_tensors(), finished["distillation"][0].model_tensors())


def test_from_scratch_needs_no_teacher_and_all_others_one_a_seed():
    for method in METHODS:
        config = dataclasses.replace(TINY, method=method, seed=3)
        needed = [] if method == "from_scratch" else ["teacher3", "teacher4"]
        assert [*Narrowing.needs(config)] == needed
    keys = [recipe.key for method in METHODS for recipe in Narrowing.needs(dataclasses.replace(TINY, method=method)).values()]
    assert len(set(keys)) == 2  # whatever the method


@pytest.mark.parametrize("method", ["from_scratch", "distillation"])
def test_networks_that_are_born_narrow_have_the_teachers_proportions(shared, method):
    teacher = TeacherConfig(widths=(30, 7), epochs=1)
    config = dataclasses.replace(TINY, teacher=teacher, method=method, neurons=20)
    models = Narrowing.rebuild(config, begin(shared, config).model_tensors(), {})
    assert [sizes_of(model) for model in models] == [[16, 4], [16, 4]]
    assert not torch.equal(models[0][0].weight, models[1][0].weight)


@pytest.mark.parametrize("method", sorted(SCORE_OF))
def test_pruning_nothing_begins_with_the_teachers(shared, teachers, method):
    experiment = begin(shared, dataclasses.replace(TINY, method=method, neurons=48))
    assert same(experiment.model_tensors(), by_seed(teachers))


def kept_of(teacher, tensors, place):
    """Which of a teacher's first neurons a pruned network has."""
    rows_of = {tuple(row): neuron for neuron, row in enumerate(teacher["layer0.weight"].T.tolist())}
    return [rows_of[tuple(row)] for row in tensors[f"seed{place}.layer0.weight"].tolist()]


def test_random_pruning_takes_other_neurons_of_every_seed(shared, teachers):
    tensors = begin(shared, dataclasses.replace(TINY, method="random")).model_tensors()
    kept = [kept_of(teacher, tensors, place) for place, teacher in enumerate(teachers)]
    assert [len(set(neurons)) for neurons in kept] == [12, 12]
    assert kept[0] != kept[1] != list(range(12)) != kept[0]


def test_the_norm_of_all_that_a_neuron_owns_decides_in_weight_norm(shared, teachers):
    tensors = begin(shared, dataclasses.replace(TINY, method="weight_norm")).model_tensors()
    for place, teacher in enumerate(teachers):
        owned = torch.cat([teacher["layer0.weight"].T, teacher["layer0.bias"][:, None], teacher["layer1.weight"]], dim=1)
        assert kept_of(teacher, tensors, place) == sorted(owned.norm(dim=1).topk(12).indices.tolist())


def test_what_the_kept_classes_loss_feels_decides_in_attribution(shared, teachers):
    """Scores of all training images, so that no draw decides: the mean of |activation times gradient|, image by image."""
    train = load_dataset().train.of_classes((0, 2, 4, 6, 8))
    config = dataclasses.replace(TINY, method="attribution", score_samples=len(train), ranking="global", neurons=20)
    tensors = begin(shared, config).model_tensors()
    loss = CrossEntropy(train.batch(torch.arange(len(train))), train.label_N)
    for place, teacher in enumerate(teachers):
        gates = {units.name: torch.ones(len(train), units.count, requires_grad=True) for units in hidden_neurons(teacher)}
        loss(teacher, gates).backward()
        scores = [gate.grad.abs().mean(0) for gate in gates.values()]
        best = torch.cat(scores).topk(20).indices
        assert kept_of(teacher, tensors, place) == sorted(best[best < 24].tolist())
        assert len(tensors[f"seed{place}.layer1.bias"]) == int((best >= 24).sum())


def test_a_network_that_never_has_the_target_costs_the_whole_budget(shared):
    config = dataclasses.replace(TINY, method="random", neurons=3, target_accuracy=1.0, samples_budget=3 * CHECK)
    experiment, reports, found = run(shared, config)
    assert [report["datapoints"] for report in reports] == [CHECK, 2 * CHECK, 3 * CHECK]
    assert [report["fraction_reached"] for report in reports] == [0.0, 0.0, 0.0]
    assert [result.datapoints for result in experiment.results()] == [3 * CHECK] * 2
    assert found == []


def test_attribution_spends_its_scores_out_of_the_same_budget(shared):
    config = dataclasses.replace(
        TINY, method="attribution", neurons=3, target_accuracy=1.0, score_samples=CHECK, samples_budget=3 * CHECK
    )
    experiment, reports, _ = run(shared, config)
    assert [report["datapoints"] for report in reports] == [2 * CHECK, 3 * CHECK]
    assert experiment.progress == 1.0


def test_the_share_of_seeds_that_had_the_target_is_reported(shared):
    config = dataclasses.replace(TINY, method="random", neurons=8, target_accuracy=1.0, samples_budget=2 * CHECK)
    untargeted = begin(shared, config)
    untargeted.step()
    low, high = sorted(result.validation_accuracy for result in untargeted.results())
    assert low < high
    experiment = begin(shared, dataclasses.replace(config, target_accuracy=high))
    report = experiment.step()
    assert (report["fraction_reached"], experiment.progress) == (0.5, 0.5)
    assert sorted(result.reached for result in experiment.results()) == [False, True]
    experiment.step()
    assert experiment.progress == 1.0
    datapoints = {result.validation_accuracy: result.datapoints for result in experiment.results()}
    assert datapoints.pop(high) == CHECK
    assert list(datapoints.values()) == [2 * CHECK]


def test_outputs_that_are_not_finite_end_a_trial(shared):
    for method in ("from_scratch", "group_lasso"):
        experiment = begin(shared, dataclasses.replace(TINY, method=method, learning_rate=1e30, clip_norm=math.inf))
        with pytest.raises(DivergedError, match=r"outputs must be finite, but are not; lower learning_rate = 1e\+30"):
            experiment.step()


def test_candidates_of_a_lasso_run_are_ever_smaller_and_all_have_the_target(finished):
    experiment, reports, found = finished["group_lasso"]
    assert [candidate.number for candidate in found] == list(range(len(found)))
    assert len(found) > 1
    neurons, datapoints = ([candidate.metrics[name] for candidate in found] for name in ("neurons_kept", "datapoints"))
    assert neurons == sorted(set(neurons), reverse=True)
    assert datapoints == sorted(datapoints)
    for candidate in found:
        assert candidate.metrics["fraction_reached"] == 1.0
        assert candidate.metrics["validation_accuracy"] >= 0.85
    assert found[-1].metrics == reports[-1]
    assert same(found[-1].tensors, experiment.model_tensors())


def test_only_lasso_runs_offer_candidates(finished):
    assert [method for method, (_, _, found) in finished.items() if found] == ["group_lasso"]


def test_a_candidate_that_misses_the_target_is_not_offered(shared):
    config = dataclasses.replace(TINY, target_accuracy=1.0, mask_threshold=0.6, samples_budget=10 * CHECK)
    _, reports, found = run(shared, config)
    assert reports[-1]["neurons_kept"] < 33  # the sizes were passed
    assert found == []


EVALUATE = """
import json, statistics, sys
from trainables.mnist.data import load_dataset
from trainables.mnist.results import accuracy
from trainables.model_files import load_model
test = load_dataset(sys.argv[1]).test
kept, other = test.of_classes((0, 2, 4, 6, 8)), test.of_classes((1, 3, 5, 7, 9))
of_folder = [[[accuracy(model, images) for model in load_model(path)] for images in (kept, other)] for path in sys.argv[2:]]
print(json.dumps([[statistics.fmean(each) for each in pair] for pair in of_folder]))
"""


def test_files_of_models_give_the_reported_accuracies_in_a_fresh_process(shared, folder, tmp_path):
    """A lasso run on files of images, from end to end."""
    experiment, reports, found = run(shared, of_files(folder))
    assert reports[-1]["fraction_reached"] == 1.0
    assert len(found) > 1
    reported = [candidate.metrics for candidate in found] + [reports[-1]]
    models = [candidate.tensors for candidate in found] + [experiment.model_tensors()]
    paths = [tmp_path / str(number) for number in range(len(models))]
    for path, tensors in zip(paths, models, strict=True):
        save_model(Folder(path), "mnist_narrowing", experiment.config, tensors)
    command = [sys.executable, "-c", EVALUATE, str(folder), *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == [[metrics["accuracy"], metrics["other_accuracy"]] for metrics in reported]


def test_a_damaged_file_is_refused_before_anything_is_trained(tmp_path):
    folder = write_dataset(tmp_path / "data", num_train=400, num_test=100, rows=6, cols=6)
    path = folder / NAMES["train_images"]
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1])
    for method in METHODS:
        with pytest.raises(ValueError, match=r"train-images-idx3-ubyte must hold 14416 bytes, .*, but got 14415 bytes"):
            Narrowing.needs(dataclasses.replace(of_files(folder), method=method))


def changed(monkeypatch, **splits):
    """Let narrowing find other images in some splits of the digits; the fingerprint stays, and with it the teachers."""
    data = dataclasses.replace(load_dataset(), **splits)
    monkeypatch.setattr(evaluation, "load_dataset", lambda *args, **kwargs: data)


def test_a_files_order_of_names_changes_no_number(teachers):
    """safetensors gives back the tensors of a file in another order every time."""
    config, runs = dataclasses.replace(TINY, method="random"), []
    for order in (sorted, reversed):
        given = {f"teacher{seed}": dict(order(teacher.items())) for seed, teacher in enumerate(teachers)}
        runs.append(Narrowing(config, device=CPU, given=given))
        runs[-1].step()
    assert same(runs[0].model_tensors(), runs[1].model_tensors())


@pytest.mark.parametrize("method", ["group_lasso", "attribution"])
def test_test_images_decide_nothing(shared, finished, monkeypatch, method):
    test = load_dataset().test
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    changed(monkeypatch, test=dataclasses.replace(test, label_N=test.label_N[order]))
    experiment, reports, found = run(shared, dataclasses.replace(TINY, method=method))
    straight, expected, expected_found = finished[method]
    assert reports[-1]["accuracy"] < 0.3 < expected[-1]["accuracy"]
    for ours, theirs in zip(reports, expected, strict=True):
        read_from_test = {"accuracy", "other_accuracy"}
        assert all(ours[name] == theirs[name] for name in theirs.keys() - read_from_test)
    assert same(experiment.model_tensors(), straight.model_tensors())
    for ours, theirs in zip(found, expected_found, strict=True):
        assert ours.metrics["datapoints"] == theirs.metrics["datapoints"]
        assert same(ours.tensors, theirs.tensors)


@pytest.mark.parametrize("method", ["attribution", "distillation"])
def test_images_of_other_classes_are_never_trained_on(shared, finished, monkeypatch, method):
    data = load_dataset()
    kept = {name: getattr(data, name).of_classes((0, 2, 4, 6, 8)) for name in ("train", "validation")}
    changed(monkeypatch, **kept)
    _, reports, _ = run(shared, dataclasses.replace(TINY, method=method))
    assert reports == finished[method][1]


def test_classes_of_ones_own_choice_are_kept(shared):
    config = dataclasses.replace(TINY, method="attribution", kept_classes=(7, 3), neurons=12)
    experiment, reports, _ = run(shared, config)
    models = Narrowing.rebuild(config, experiment.model_tensors(), {})
    test = load_dataset().test
    assert reports[-1]["fraction_reached"] == 1.0
    assert mean_accuracy(models, test.of_classes((3, 7))) == reports[-1]["accuracy"] > 0.8
    assert mean_accuracy(models, test.of_classes((0, 1, 2, 4, 5, 6, 8, 9))) == reports[-1]["other_accuracy"]


def test_where_all_classes_are_kept_there_is_nothing_to_unlearn(shared):
    config = dataclasses.replace(TINY, method="random", kept_classes=tuple(range(10)), target_accuracy=0.1)
    report = begin(shared, config).step()
    assert report["other_accuracy"] == 0.0
    assert report["accuracy"] > 0.1


def test_metrics_worked_out_by_hand():
    """Networks of 4 inputs, 3 and 2 or 1 and 2 hidden neurons, and 2 outputs."""

    def result(first, **fields):
        shapes = [(4, first), (first,), (first, 2), (2,), (2, 2), (2,)]
        names = [f"layer{layer}.{part}" for layer in range(3) for part in ("weight", "bias")]
        tensors = {name: torch.ones(shape) for name, shape in zip(names, shapes, strict=True)}
        return Result(tensors=tensors, **fields)

    one = result(3, datapoints=100, validation_accuracy=0.75, accuracy=1.0, other_accuracy=0.5, reached=True)
    other = result(1, datapoints=300, validation_accuracy=0.25, accuracy=0.5, other_accuracy=0.0, reached=False)
    assert [one.neurons, other.neurons] == [5, 3]
    assert summarize([one, other]) == {
        "datapoints": 200.0,
        "neurons_kept": 4.0,
        "parameters_kept": (12 + 3 + 6 + 2 + 4 + 2 + 4 + 1 + 2 + 2 + 4 + 2) / 2,
        "forward_flops": (2 * (12 + 6 + 4) + 2 * (4 + 2 + 4)) / 2,
        "accuracy": 0.75,
        "other_accuracy": 0.25,
        "validation_accuracy": 0.5,
        "fraction_reached": 0.5,
    }


def test_default_is_the_papers_narrow_task():
    config = NarrowingConfig()
    assert (config.kept_classes, config.teacher.widths, config.target_accuracy) == ((0, 2, 4, 6, 8), (1200, 1200), 0.97)
    assert (config.mask_threshold, config.clip_norm, config.batch_size, config.samples_budget) == (0.05, 1.0, 16, 50_000)
    assert (config.temperature, config.alpha, config.score_samples) == (20.0, 0.1, 480)
    assert config.num_checks == 27
    assert dataclasses.replace(config, method="attribution", samples_budget=480 + 5 * 1792).num_checks == 5


@pytest.mark.parametrize(
    ("widths", "neurons", "narrow"),
    [
        ((1200, 1200), 240, (120, 120)),
        ((24, 24), 48, (24, 24)),
        ((30, 7), 20, (16, 4)),
        ((100, 1), 2, (1, 1)),
        ((1, 100), 100, (1, 99)),
        ((5, 5, 5), 4, (1, 2, 1)),
        ((9,), 4, (4,)),
    ],
)
def test_narrow_widths_have_the_teachers_proportions(widths, neurons, narrow):
    assert dataclasses.replace(TINY, teacher=TeacherConfig(widths=widths), neurons=neurons).narrow_widths == narrow


@pytest.mark.parametrize("widths", [(24, 24), (30, 7), (1, 40), (3, 1, 19), (2, 2, 2, 2)])
def test_narrow_widths_are_as_many_as_was_said_none_empty_and_none_wider_than_the_teachers(widths):
    for neurons in range(len(widths), sum(widths) + 1):
        narrow = dataclasses.replace(TINY, teacher=TeacherConfig(widths=widths), neurons=neurons).narrow_widths
        assert sum(narrow) == neurons
        assert all(1 <= width <= most for width, most in zip(narrow, widths, strict=True))


@pytest.mark.parametrize(
    ("changes", "levels"),
    [
        ({}, [48, 33, 24]),
        ({"method": "random"}, [24]),
        ({"neurons": 48}, [48]),
        ({"neurons": 12, "candidate_ratio": 0.5}, [48, 24, 12]),
        ({"neurons": 44, "candidate_ratio": 0.99}, [48, 47, 46, 45, 44]),
    ],
)
def test_a_lasso_run_has_levels_from_all_neurons_to_those_it_ends_with(changes, levels):
    assert dataclasses.replace(TINY, **changes).levels == levels


def test_a_config_survives_json_with_its_teacher():
    teacher = TeacherConfig(widths=(9, 7, 5), dropout=0.3)
    config = dataclasses.replace(TINY, teacher=teacher, neurons=8, kept_classes=(7, 3), clip_norm=math.inf)
    again = NarrowingConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    assert (type(again.teacher), again.teacher.widths, again.kept_classes) == (TeacherConfig, (9, 7, 5), (7, 3))
    assert NarrowingConfig(teacher={"widths": [200, 200]}).teacher == TeacherConfig(widths=(200, 200))


@pytest.mark.parametrize(
    ("changes", "law"),
    [
        ({"method": "magic"}, r"method must be one of group_lasso, attribution, .*, but got 'magic'; use group_lasso"),
        ({"lasso_way": "none"}, "lasso_way must be one of mask, proximal, but got 'none'"),
        ({"ranking": "local"}, "ranking must be one of per_layer, global, but got 'local'"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, but got 0.0"),
        ({"learning_rate": math.nan}, "learning_rate must be positive, but got nan"),
        ({"learning_rate": math.inf}, r"learning_rate, .* must be finite, but got \(inf, "),
        ({"lasso_strength": 0.0}, "lasso_strength must be positive, but got 0.0"),
        ({"lasso_strength": math.inf}, "lasso_strength and temperature must be finite"),
        ({"temperature": -1.0}, "temperature must be positive, but got -1.0"),
        ({"temperature": math.inf}, "lasso_strength and temperature must be finite"),
        ({"mask_threshold": 0.0}, "mask_threshold must be positive, but got 0.0"),
        ({"clip_norm": 0.0}, "clip_norm must be positive, but got 0.0"),
        ({"alpha": 1.1}, r"alpha must be in \[0, 1\], but got 1.1"),
        ({"alpha": math.nan}, r"alpha must be in \[0, 1\], but got nan"),
        ({"target_accuracy": 0.0}, "target_accuracy must be positive, but got 0.0"),
        ({"target_accuracy": 97}, r"target_accuracy must be in \[0, 1\], but got 97"),
        ({"validation_fraction": 0.0}, r"validation_fraction must be in \(0, 0.5\], but got 0.0"),
        ({"validation_fraction": 0.6}, r"validation_fraction must be in \(0, 0.5\], but got 0.6"),
        ({"candidate_ratio": 1.0}, r"candidate_ratio must be in \(0, 0.99\], but got 1.0"),
        ({"candidate_ratio": 0.0}, r"candidate_ratio must be in \(0, 0.99\], but got 0.0"),
        ({"kept_classes": ()}, r"kept_classes must be labels, each once, but got \(\); use \(0, 2, 4, 6, 8\)"),
        ({"kept_classes": (3, 3)}, r"kept_classes must be labels, each once, but got \(3, 3\)"),
        ({"kept_classes": (-1, 3)}, r"kept_classes must be labels, each once, but got \(-1, 3\)"),
        ({"kept_classes": "37"}, r"kept_classes must be labels, each once, but got \('3', '7'\)"),
        ({"neurons": 1}, r"neurons must be in \[2, 48\], but got 1; the teacher has no more"),
        ({"neurons": 49}, r"neurons must be in \[2, 48\], but got 49"),
        ({"batch_size": 0}, "batch_size must be at least 1, but got 0"),
        ({"batch_size": 48}, "samples_per_check must be a multiple of batch_size, but got 320; batch_size is 48"),
        ({"samples_per_check": 0}, "samples_per_check must be at least 1, but got 0"),
        ({"num_seeds": 0}, "num_seeds must be at least 1, but got 0"),
        ({"checks_per_step": 0}, "checks_per_step must be at least 1, but got 0"),
        ({"score_samples": 0}, "score_samples must be at least 1, but got 0"),
        ({"samples_budget": 319}, "samples_budget must have room for .* one check, but got 319; use 320 or more"),
        ({"method": "attribution", "samples_budget": 419}, "samples_budget must have room .*, but got 419; use 420 or more"),
        ({"teacher": {"widths": []}}, r"a teacher's widths must be at least one positive number, but got \(\)"),
    ],
)
def test_impossible_configs_are_refused_in_a_sentence(changes, law):
    with pytest.raises(ValueError, match=law):
        dataclasses.replace(TINY, **changes)


def test_the_edges_of_what_is_possible_are_allowed():
    dataclasses.replace(TINY, clip_norm=math.inf, alpha=0.0, target_accuracy=1.0, neurons=2, samples_budget=320, num_seeds=1)
    dataclasses.replace(TINY, alpha=1.0, neurons=48, validation_fraction=0.5, candidate_ratio=0.99, batch_size=320)


def test_more_images_than_there_are_cannot_be_asked_for():
    num_kept = len(load_dataset().train.of_classes(TINY.kept_classes))
    batch = {"batch_size": num_kept, "samples_per_check": num_kept}
    scores = {"method": "attribution", "score_samples": num_kept}
    for fits in (batch, scores):
        Narrowing.needs(dataclasses.replace(TINY, **fits))
    too_many, got = (
        {"batch_size": num_kept + 1, "samples_per_check": num_kept + 1},
        f"but got {num_kept + 1}; use {num_kept} or less",
    )
    with pytest.raises(ValueError, match=f"a batch must not be larger than the kept classes' training images, {got}"):
        Narrowing.needs(dataclasses.replace(TINY, **too_many))
    with pytest.raises(ValueError, match=f"score_samples must not be more than the kept classes' training images, {got}"):
        Narrowing.needs(dataclasses.replace(TINY, method="attribution", score_samples=num_kept + 1))
    Narrowing.needs(dataclasses.replace(TINY, method="random", score_samples=num_kept + 1))  # it has no scores to make


def test_a_class_that_the_data_do_not_have_is_refused():
    with pytest.raises(ValueError, match=r"each class must have images, but got none of \[10\]; name classes of the data set"):
        Narrowing.needs(dataclasses.replace(TINY, kept_classes=(0, 10)))


def test_the_neurons_kept_at_once_are_those_that_matter_most_in_each_layer(shared, teachers):
    experiment = begin(shared, dataclasses.replace(TINY, method="weight_norm", neurons=12))
    experiment.step()
    removal = experiment.account().removal
    assert removal.score == "weight_norm"
    for place, teacher in enumerate(teachers):
        for layer, score_H in enumerate(SCORES["weight_norm"](teacher, hidden_neurons(teacher), [], torch.Generator())):
            assert set(removal.kept[f"seed{place}.layer{layer}"].nonzero()[:, 0].tolist()) == set(
                score_H.topk(6).indices.tolist()
            )


def test_each_candidate_of_a_lasso_run_keeps_some_of_the_neurons_of_the_one_before(finished):
    experiment, _, found = finished["group_lasso"]
    assert len(found) > 1
    for earlier, later in zip(found, [*found[1:], experiment], strict=True):
        before, after = earlier.account.removal.kept, (later.account() if later is experiment else later.account).removal.kept
        assert all(bool((after[name] <= before[name]).all()) for name in before)
    for c in found:
        sizes = [tensor.numel() for name, tensor in sorted(c.tensors.items()) if "layer2" not in name and name.endswith("bias")]
        assert [int(keep_H.sum()) for _, keep_H in sorted(c.account.removal.kept.items())] == sizes


@pytest.mark.parametrize("method", ["distillation", "from_scratch"])
def test_of_networks_that_began_small_nothing_was_removed(finished, method):
    assert finished[method][0].account().removal is None


def test_a_network_counts_as_reached_up_to_its_candidates_size_alone(finished):
    c = finished["group_lasso"][2][0]
    model, config = Narrowing.rebuild(TINY, c.tensors, {}), dataclasses.replace(TINY, method="group_lasso")
    fewer = {**c.account.evidence, "most_neurons": torch.tensor([1])}
    assert Narrowing.evaluate(config, model, c.account.evidence, device=CPU)["fraction_reached"] == 1.0
    assert Narrowing.evaluate(config, model, fewer, device=CPU)["fraction_reached"] == 0.0
