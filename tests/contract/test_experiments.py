"""What every registered experiment promises. A new line in the registry is tested here without a change."""

import dataclasses
import inspect
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from trainables.charts import Chart, chart_files
from trainables.experiment import Candidate, Experiment, build_experiment, check_declared
from trainables.model_files import load_model, save_model
from trainables.passport import Making
from trainables.registry import EXPERIMENTS, load_experiment
from trainables.shared import Shared
from trainables.storage import Folder
from trainables.verification_process import check_model

CPU = torch.device("cpu")


@pytest.fixture(params=sorted(EXPERIMENTS))
def experiment_class(request: pytest.FixtureRequest) -> type[Experiment]:
    return load_experiment(request.param)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[type[Experiment]], Experiment]:
    shared = Shared(Folder(tmp_path_factory.mktemp("shared")))

    def make_tiny(experiment_class: type[Experiment]) -> Experiment:
        return build_experiment(experiment_class, experiment_class.Config.tiny(), device=CPU, shared=shared)

    return make_tiny


def run(experiment: Experiment) -> list[dict[str, float]]:
    return run_with_candidates(experiment)[0]


def run_with_candidates(experiment: Experiment) -> tuple[list[dict[str, float]], list[Candidate]]:
    reports, candidates = [], []
    while experiment.progress < 1.0:
        reports.append(experiment.step())
        candidates += experiment.candidates()
    return reports, candidates


def test_same_config_gives_the_same_numbers(experiment_class, make):
    assert run(make(experiment_class)) == run(make(experiment_class))


def test_numbers_do_not_depend_on_global_generators(experiment_class, make):
    first = run(make(experiment_class))
    torch.manual_seed(12345)
    assert run(make(experiment_class)) == first


def test_saving_and_loading_at_every_step_changes_nothing(experiment_class, make):
    interrupted, reports, candidates = make(experiment_class), [], []
    while interrupted.progress < 1.0:
        reports.append(interrupted.step())
        candidates += interrupted.candidates()
        stored = io.BytesIO()
        torch.save(interrupted.state_dict(), stored)
        stored.seek(0)
        interrupted = make(experiment_class)
        interrupted.load_state_dict(torch.load(stored, weights_only=True))
    straight = make(experiment_class)
    expected_reports, expected_candidates = run_with_candidates(straight)
    assert reports == expected_reports
    for ours, theirs in zip(candidates, expected_candidates, strict=True):
        assert (ours.number, ours.metrics, ours.tensors.keys()) == (theirs.number, theirs.metrics, theirs.tensors.keys())
        assert all(torch.equal(ours.tensors[name], theirs.tensors[name]) for name in ours.tensors)
    for name, tensor in straight.model_tensors().items():
        assert torch.equal(tensor, interrupted.model_tensors()[name]), name


def test_a_state_is_a_snapshot_that_later_steps_leave_alone(experiment_class, make):
    experiment = make(experiment_class)
    experiment.step()
    state = experiment.state_dict()
    rest = run(experiment)
    again = make(experiment_class)
    again.load_state_dict(state)
    assert run(again) == rest


def test_step_returns_exactly_the_declared_metrics_all_finite(experiment_class, make):
    reports = run(make(experiment_class))
    for report in reports:
        check_declared(report, experiment_class.METRICS, where="a report")
        assert report.keys() == reports[0].keys()
        assert all(abs(value) < float("inf") for value in report.values())


def test_progress_never_falls_and_ends_at_exactly_one(experiment_class, make):
    experiment, seen = make(experiment_class), [0.0]
    while experiment.progress < 1.0:
        experiment.step()
        seen.append(experiment.progress)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_operations_never_fall_go_on_from_a_state_and_are_some_in_the_end(experiment_class, make):
    experiment, seen = make(experiment_class), [0.0]
    while experiment.progress < 1.0:
        experiment.step()
        if experiment.flops() is None:
            return
        again = make(experiment_class)
        again.load_state_dict(experiment.state_dict())
        assert again.flops() == experiment.flops()
        seen.append(experiment.flops())
    assert seen == sorted(seen)
    assert 0 < seen[-1] < float("inf")


def test_config_is_frozen_keyword_only_and_survives_json(experiment_class):
    config = experiment_class.Config.tiny()
    again = experiment_class.Config(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(config)[0].name, None)


def test_every_config_field_is_documented(experiment_class):
    source = inspect.getsource(experiment_class.Config)
    for field in dataclasses.fields(experiment_class.Config):
        following = source.split(f"    {field.name}:", 1)[1].split("\n", 2)[1]
        assert following.strip().startswith('"""'), f"{field.name} needs a line: meaning, unit, range, the paper's value"


def test_models_survive_their_files(experiment_class, make, tmp_path):
    experiment = make(experiment_class)
    run(experiment)
    name = next(name for name in EXPERIMENTS if load_experiment(name) is experiment_class)
    config, tensors, files = experiment_class.Config.tiny(), experiment.model_tensors(), experiment.model_files()
    save_model(Folder(tmp_path), name, config, tensors, files)
    direct = experiment_class.rebuild(config, tensors, files)
    for loaded, expected in zip(networks(load_model(tmp_path)), networks(direct), strict=True):
        for ours, theirs in zip(loaded.parameters(), expected.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_candidates_are_numbered_over_all_steps_have_exactly_the_declared_metrics_and_survive_their_files(
    experiment_class, make, tmp_path
):
    config = experiment_class.Config.tiny()
    name = next(name for name in EXPERIMENTS if load_experiment(name) is experiment_class)
    for number, candidate in enumerate(run_with_candidates(make(experiment_class))[1]):
        assert candidate.number == number
        check_declared(candidate.metrics, experiment_class.METRICS, where="a candidate")
        assert all(abs(value) < float("inf") for value in candidate.metrics.values())
        save_model(Folder(tmp_path), name, config, candidate.tensors)
        direct = experiment_class.rebuild(config, candidate.tensors, {})
        for loaded, expected in zip(networks(load_model(tmp_path)), networks(direct), strict=True):
            for ours, theirs in zip(loaded.parameters(), expected.parameters(), strict=True):
                assert torch.equal(ours, theirs)


def test_what_is_measured_of_saved_models_is_what_was_reported_of_them(experiment_class, make, tmp_path):
    experiment = make(experiment_class)
    reports, candidates = run_with_candidates(experiment)
    name, config = next(name for name in EXPERIMENTS if load_experiment(name) is experiment_class), experiment_class.Config.tiny()
    own = Making(metrics=reports[-1], account=experiment.account())
    save_model(Folder(tmp_path / "own"), name, config, experiment.model_tensors(), experiment.model_files(), own)
    for c in candidates:
        making = Making(metrics=c.metrics, account=c.account, candidate=c.number)
        save_model(Folder(tmp_path / str(c.number)), name, config, c.tensors, making=making)
    for folder in tmp_path.iterdir():
        checks = {check.name: check for check in check_model(folder, [], CPU)}
        assert {check.outcome for check in checks.values()} <= {"passed", "not checked"}, checks
        assert checks["rebuild"].outcome == checks["parameters"].outcome == "passed"
        measured = {each.removeprefix("metric "): check for each, check in checks.items() if each.startswith("metric ")}
        assert measured
        assert all(check.told.endswith(", measured again") for check in measured.values()), measured  # to the last bit


def test_charts_of_a_finished_trial_have_names_of_their_own_and_survive_json(experiment_class, make):
    experiment = make(experiment_class)
    run(experiment)
    charts = experiment.charts()
    assert [Chart.from_json(data.decode()) for data in chart_files(charts).values()] == charts


def networks(rebuilt: Any) -> list[torch.nn.Module]:
    return list(rebuilt) if isinstance(rebuilt, list | tuple) else [rebuilt]


def test_tiny_ends_within_ten_seconds(experiment_class, make):
    start = time.monotonic()
    run(make(experiment_class))
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_importing_an_experiment_loads_no_service(name):
    code = (
        f"import sys; from trainables.registry import load_experiment; load_experiment({name!r});"
        "print([m for m in ('ray', 'optuna', 'mlflow', 'pyarrow', 'pandas', 'study') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
