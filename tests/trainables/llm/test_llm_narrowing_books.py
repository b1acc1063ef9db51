import dataclasses

import pytest

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from narrowing_trials import (
    A_BATCH,
    NUM_BASE,
    NUM_NARROW,
    begin,
    config_of,
    finished,
    less,
    rebuilt,
    run,
    same,
    sizes_of,
    training,
)

from trainables.experiment import check_declared, metric_named
from trainables.llm.narrowing_config import METHODS
from trainables.llm.narrowing_metrics import METRICS, Ledger
from trainables.llm.narrowing_models import num_parameters

TOKENS = {
    "group_lasso": [256, 512, 768, 1024, 1024, 1024],
    "attribution": [132 + 256, 132 + 512, 132 + 512, 132 + 512],  # scores read 4 windows of 33 tokens
    "weight_norm": [256, 512, 512, 512],
    "random": [256, 512, 512, 512],
    "distillation": [256, 512, 512, 512],
    "from_scratch": [256, 512, 512, 512],
}


@pytest.mark.parametrize("method", METHODS)
def test_tokens_are_those_of_scores_lasso_and_recovery(method):
    assert [report["tokens_spent"] for report in finished(method)[1]] == TOKENS[method]


def flops_by_hand(method, *, teacher):
    """Of a whole run: 6 a parameter and token, and 2 a parameter of the base model where it is asked."""
    before = {"group_lasso": 512 * 6 * NUM_BASE, "attribution": 132 * 6 * NUM_BASE}.get(method, 0)
    return before + 512 * (6 * NUM_NARROW + (2 * NUM_BASE if teacher else 0))


@pytest.mark.parametrize("method", METHODS)
def test_flops_are_those_worked_out_by_hand(method):
    assert (NUM_BASE, NUM_NARROW) == (10_000, 6348)
    assert finished(method)[1][-1]["flops_spent"] == flops_by_hand(method, teacher=method != "from_scratch")


@pytest.mark.parametrize("method", ["group_lasso", "attribution"])
def test_without_a_teacher_its_answers_cost_nothing(method):
    report = run(config_of(method, teacher_share=0.0))[1][-1]
    assert report["flops_spent"] == flops_by_hand(method, teacher=False)


def test_the_books_of_a_run_of_other_sizes():
    """5 windows of 10 tokens are scored, 2 batches of 3 x 7 learned from: 50 x 6 x 10000 + 42 x (6 x 6348 + 2 x 10000)."""
    recovery = training(updates=2, batch_size=3, length=7)
    config = config_of("attribution", teacher_share=0.5, window_length=9, score_windows=5, recovery=recovery, updates_per_step=1)
    _, reports = run(config)
    assert [report["tokens_spent"] for report in reports] == [50 + 21, 50 + 42, 50 + 42, 50 + 42]
    assert reports[-1]["flops_spent"] == 5_439_696
    assert reports[0]["flops_spent"] == (5_439_696 + 3_000_000) / 2


def test_sizes_under_the_lasso_are_those_of_the_base_model():
    report = finished("group_lasso")[1][0]
    assert (report["parameters_kept"], report["neurons_kept"], report["dimensions_kept"]) == (NUM_BASE, 64, 16)
    assert (report["neurons_of_block/000"], report["neurons_of_block/001"], report["least_neurons"]) == (32, 32, 32)
    assert report["pruned_loss_nats/prose"] == report["loss_nats/prose"]  # as it is before anything is pruned


def test_a_last_step_makes_only_the_updates_that_are_left():
    _, reports = run(config_of("group_lasso", updates_per_step=3))
    assert [report["tokens_spent"] for report in reports] == [A_BATCH * updates for updates in (3, 4, 7, 8, 8, 8)]


def test_how_many_updates_a_step_makes_changes_no_model():
    for method in ("group_lasso", "distillation"):
        experiment, reports = run(config_of(method, teacher_share=0.5, updates_per_step=3))
        last, expected = (less(each[-1], "tokens_to_target") for each in (reports, finished(method)[1]))  # it is seen earlier
        assert last == expected
        assert same(experiment.model_tensors(), finished(method)[0].model_tensors())


@pytest.mark.parametrize("method", ["group_lasso", "weight_norm", "from_scratch"])
def test_no_updates_at_all_cost_nothing(method):
    nothing = dict.fromkeys(("lasso", "recovery", "relearning"), training(updates=0))
    experiment, reports = run(config_of(method, **nothing))
    assert {report["tokens_spent"] for report in reports} == {report["flops_spent"] for report in reports} == {0}
    last = reports[-1]
    assert last["kept_loss_nats"] == last["pruned_loss_nats"]
    assert last["relearned_loss_nats"] == last["other_loss_nats"]
    assert sizes_of(experiment.model_tensors())[0] == last["dimensions_kept"] == 12


def test_a_target_that_is_reached_at_once_costs_what_came_before_recovery():
    for method, cost in (("attribution", 132), ("from_scratch", 0), ("group_lasso", 512)):
        _, reports = run(config_of(method, target_loss_nats=100.0))
        in_recovery = [report for report in reports if report["tokens_spent"] >= cost + 256 or report["reached_target"]]
        told = {(report["reached_target"], report["tokens_to_target"]) for report in in_recovery}
        assert told == {(1.0, cost)}
        assert len(in_recovery) >= 4


def test_a_target_that_is_reached_under_the_lasso_does_not_count_yet():
    report = begin(config_of("group_lasso", target_loss_nats=100.0)).step()
    assert (report["tokens_spent"], report["tokens_to_target"], report["reached_target"]) == (256, 256, 0.0)


def test_a_target_that_is_never_reached_costs_all():
    for method in ("group_lasso", "attribution"):
        for report in run(config_of(method, target_loss_nats=1e-3))[1]:
            assert (report["reached_target"], report["tokens_to_target"]) == (0.0, report["tokens_spent"])


def noted(**changes):
    """Books of a trial that has been pruned, with a loss of 6 nats."""
    ledger = Ledger(config_of("weight_norm", **changes), num_base_parameters=NUM_BASE)
    ledger.note_sizes(NUM_NARROW, [20, 12], 12)
    ledger.note_losses({"python": 6.0, "prose": 6.0})
    ledger.note_pruned()
    return ledger


def test_the_first_time_at_the_target_counts_though_the_loss_rises_again():
    ledger, tokens = noted(target_loss_nats=4.0), []
    for update, loss in enumerate((5.0, 3.9, 4.5, 3.5), start=1):
        ledger.note_training("recovery", update, NUM_NARROW)
        ledger.note_losses({"python": loss, "prose": 6.0})
        report = ledger.metrics([])
        tokens.append((report["tokens_to_target"], report["reached_target"]))
    assert tokens == [(A_BATCH, 0.0), *[(2 * A_BATCH, 1.0)] * 3]


def test_books_that_were_saved_go_on_as_if_they_had_not_been():
    ledger = noted(target_loss_nats=4.0)
    again = noted(target_loss_nats=4.0)
    again.note_losses({"python": 1.0, "prose": 1.0})
    state = ledger.state_dict()
    again.load_state_dict(state)
    for each in (ledger, again):
        each.note_training("recovery", 2, NUM_NARROW)
        each.note_losses({"python": 3.0, "prose": 5.0})
    assert again.metrics([4.5]) == ledger.metrics([4.5])
    assert again.history == ledger.history
    assert state == noted(target_loss_nats=4.0).state_dict()  # a snapshot


@pytest.mark.parametrize("method", ["group_lasso", "distillation"])
def test_progress_is_the_share_of_updates_relearning_included(method):
    """4 of lasso, 4 of recovery, 2 for each of 2 rates; one more is kept back until all is done."""
    updates = [2, 4, 6, 8, 10] if method == "group_lasso" else [2, 4, 6]
    experiment, seen = begin(config_of(method)), []
    assert experiment.progress == 0.0
    for _ in updates:
        experiment.step()
        seen.append(experiment.progress)
    assert seen == [done / (updates[-1] + 3) for done in updates]
    experiment.step()
    assert experiment.progress == 1.0


def test_a_finished_trial_only_repeats_itself():
    experiment, reports = finished("random")
    before = {name: tensor.clone() for name, tensor in experiment.model_tensors().items()}
    assert experiment.step() == reports[-1]
    assert same(experiment.model_tensors(), before)


def test_reports_have_exactly_the_metrics_and_of_families_one_for_each_domain_and_block():
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    families = {f"{family}/{domain}" for family in ("loss_nats", "pruned_loss_nats") for domain in ("prose", "python")}
    families |= {"neurons_of_block/000", "neurons_of_block/001"}
    expected = {name for name in names if not name.endswith("/*")} | families
    for method in METHODS:
        for report in finished(method)[1]:
            check_declared(report, METRICS, where="a report")
            assert report.keys() == expected
            assert report["loss_nats/python"] == report["kept_loss_nats"]
            assert report["loss_nats/prose"] == report["other_loss_nats"]
            assert report["pruned_loss_nats/python"] == report["pruned_loss_nats"]
            assert report["neurons_of_block/000"] + report["neurons_of_block/001"] == report["neurons_kept"]
    assert metric_named(METRICS, "loss_nats/prose").goal is None


def test_a_tied_parameter_is_counted_once():
    assert num_parameters(rebuilt(finished("random")[0])) == NUM_NARROW


@pytest.mark.parametrize("method", METHODS)
def test_a_chart_shows_the_loss_of_every_domain_over_the_tokens(method):
    experiment, reports = finished(method)
    chart, _ = experiment.charts()
    (panel,) = chart.panels
    prose, python = panel.series
    assert (chart.name, prose.label, python.label) == ("losses", "prose", "python (kept)")
    assert (prose.dashed, python.dashed) == (True, False)
    assert prose.color != python.color
    before = {"group_lasso": 512, "attribution": 132}.get(method, 0)
    under_lasso = [256, 512] if method == "group_lasso" else []
    assert list(python.x) == list(prose.x) == [*under_lasso, before, before + 256, before + 512]
    assert python.y[-2:] == tuple(report["kept_loss_nats"] for report in reports)[-4:-2]
    assert prose.y[-2:] == tuple(report["other_loss_nats"] for report in reports)[-4:-2]
    assert python.y[-3] == reports[-1]["pruned_loss_nats"]


def test_a_chart_shows_the_neurons_that_each_block_keeps():
    experiment, _ = finished("weight_norm")
    _, chart = experiment.charts()
    ((series,),) = (panel.series for panel in chart.panels)
    assert (chart.name, series.x) == ("neurons", (0.0, 1.0))
    assert list(series.y) == sizes_of(experiment.model_tensors())[1:]


def test_a_charts_title_says_the_method_and_what_it_removed():
    titles = {method: {chart.title for chart in finished(method)[0].charts()} for method in ("weight_norm", "from_scratch")}
    assert titles["weight_norm"] == {"weight norm: 50% of the neurons, 25% of the dimensions removed"}
    assert titles["from_scratch"] == {"from scratch: 50% of the neurons, 25% of the dimensions fewer from the start"}


def test_a_teacher_costs_by_the_base_models_own_size_and_not_the_narrow_ones():
    config = dataclasses.replace(config_of("distillation", teacher_share=0.5), updates_per_step=1)
    assert begin(config).step()["flops_spent"] == A_BATCH * (6 * NUM_NARROW + 2 * NUM_BASE)


def test_domains_of_any_name_have_metrics_that_mlflow_takes():
    ledger = Ledger(config_of("weight_norm"), num_base_parameters=NUM_BASE)
    ledger.note_sizes(1, [1], 1)
    ledger.note_losses({"python": 1.0, "C++": 2.0, "F#": 3.0, "a b/c": 4.0})
    names = {name for name in ledger.metrics([]) if name.startswith("loss_nats/")}
    assert names == {"loss_nats/python", "loss_nats/Cpp", "loss_nats/Fsharp", "loss_nats/a_b_c"}
