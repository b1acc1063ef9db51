import dataclasses
import math

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from narrowing_trials import (
    STUDENTS,
    TINY,
    base_model,
    begin,
    config_of,
    finished,
    given,
    go_on,
    held_out,
    less,
    rebuilt,
    run,
    same,
    stream,
    training,
)

from trainables.experiment import DivergedError
from trainables.llm.narrowing_config import NarrowingConfig
from trainables.llm.packed_files import FILES
from trainables.llm.training import Trainer
from trainables.pruning.strength import StrengthRule


@pytest.mark.parametrize("method", STUDENTS)
def test_the_loss_after_pruning_of_a_student_is_that_of_an_untrained_one(method):
    expected = held_out(rebuilt(begin(config_of(method))), "python")
    assert [report["pruned_loss_nats"] for report in finished(method)[1]] == pytest.approx([expected] * 4, abs=1e-6)
    assert expected == pytest.approx(math.log(300), abs=0.1)  # it knows nothing


@pytest.mark.parametrize("teacher_share", [0.0, 0.5, 1.0])
def test_recovery_learns_the_text_and_the_base_models_answers(teacher_share):
    """One update by hand."""
    recovery = training(updates=1, warmup=0, learning_rate=1e-2, clip_norm=math.inf)
    experiment = begin(config_of("distillation", teacher_share=teacher_share, temperature=3.0, recovery=recovery))
    model = rebuilt(experiment)
    token_BT = stream({"python": 1.0}).batch(0)
    logits = model(token_BT[:, :-1], use_cache=False).logits
    with torch.no_grad():
        p_BTV = (base_model()(token_BT[:, :-1], use_cache=False).logits / 3).softmax(-1)
    divergence = (p_BTV * (p_BTV.log() - (logits / 3).log_softmax(-1))).sum(-1).mean()
    text = torch.nn.functional.cross_entropy(logits.flatten(0, 1), token_BT[:, 1:].flatten())
    ((1 - teacher_share) * text + teacher_share * 9 * divergence).backward()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    optimizer.step()
    report = experiment.step()
    assert held_out(model, "python") == pytest.approx(report["kept_loss_nats"], abs=1e-5)
    assert abs(report["kept_loss_nats"] - report["pruned_loss_nats"]) > 1e-4


def test_a_student_from_scratch_needs_no_teacher():
    """Whatever the base model is, and whatever share of its answers is asked for."""

    def broken():
        base = {name: tensor if name.startswith(FILES) else tensor + 1 for name, tensor in given()["base"].items()}
        return {**given(), "base": base}

    for share in (0.0, 0.5, 1.0):
        experiment, reports = run(config_of("from_scratch", teacher_share=share), broken)
        assert reports == finished("from_scratch")[1]
        assert same(experiment.model_tensors(), finished("from_scratch")[0].model_tensors())


@pytest.mark.parametrize("method", ["distillation", "weight_norm"])
def test_a_teachers_answers_tell(method):
    without, asked = run(config_of(method, teacher_share=0.0))[1][-1], finished(method)[1][-1]
    assert without["kept_loss_nats"] != asked["kept_loss_nats"]
    assert without["pruned_loss_nats"] == asked["pruned_loss_nats"]


def test_distillation_by_default_is_not_from_scratch():
    """Its name says that it learns the base model's answers."""
    assert NarrowingConfig(method="distillation").teacher_weight > 0


def test_relearning_is_the_best_of_its_rates_and_leaves_the_model_as_it_was():
    """By hand, on a copy, from the other domain's text."""
    rates = (1e-5, 1e-2, 3e-3)
    experiment, reports = run(config_of("weight_norm", relearning_rates=rates, updates_per_step=4))
    losses = []
    for rate in rates:
        model = rebuilt(experiment)
        Trainer(model, stream({"prose": 1.0}, "relearning"), TINY.relearning_at(rate)).run(2)
        losses.append(held_out(model, "prose"))
    assert losses[1] < losses[2] < losses[0] < reports[0]["other_loss_nats"]
    seen = [report["relearned_loss_nats"] for report in reports]
    assert seen == pytest.approx([reports[0]["other_loss_nats"], losses[0], losses[1], losses[1]], abs=1e-6)
    for report in reports[1:]:
        assert less(report, "relearned_loss_nats") == less(reports[0], "relearned_loss_nats")
    assert held_out(rebuilt(experiment), "prose") == pytest.approx(reports[0]["other_loss_nats"], abs=1e-6)


def test_a_model_is_the_same_before_and_after_relearning():
    experiment = begin(config_of("attribution", updates_per_step=4))
    experiment.step()
    before = {name: tensor.clone() for name, tensor in experiment.model_tensors().items()}
    go_on(experiment)
    assert same(experiment.model_tensors(), before)


def test_one_rate_of_relearning_that_diverges_does_not_spoil_the_best_of_them():
    """The trial's own model is finite."""
    config = config_of("weight_norm", teacher_share=0.5, relearning_rates=(1e-3, 3e-3, 1e30))
    reports = run(config)[1]
    assert reports[-1]["relearned_loss_nats"] == finished("weight_norm")[1][-1]["relearned_loss_nats"]


ABSURD = training(learning_rate=1e30, clip_norm=math.inf, warmup=0)
RULE = StrengthRule(warmup=10, interval=1)


@pytest.mark.parametrize("updates_per_step", [1, 4])
@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("group_lasso", {"lasso": ABSURD}),
        ("group_lasso", {"lasso": ABSURD, "lasso_way": "proximal"}),
        ("group_lasso", {"lasso": ABSURD, "lasso_rule": RULE}),
        ("group_lasso", {"recovery": ABSURD}),
        ("random", {"recovery": ABSURD}),
        ("distillation", {"recovery": ABSURD}),
        ("from_scratch", {"recovery": ABSURD}),
    ],
)
def test_a_rate_at_which_numbers_overflow_ends_a_trial(method, changes, updates_per_step):
    experiment = begin(config_of(method, updates_per_step=updates_per_step, **changes))
    with pytest.raises(DivergedError, match=r"loss(es)? must be finite, but (is|got) (nan|inf).*; ?lower"):
        go_on(experiment)


def test_a_strength_without_end_ends_a_trial():
    """The penalty alone overflows; the data's loss follows an update later."""
    experiment = begin(config_of("group_lasso", lasso_strength=1e38, lasso=training(clip_norm=math.inf, updates=20)))
    with pytest.raises(DivergedError, match="must be finite"):
        go_on(experiment)


def lasso_strengths(**changes):
    """The strength before each step of one update."""
    experiment = begin(config_of("group_lasso", updates_per_step=1, lasso_strength=1e-3, **changes))
    strengths = []
    experiment.state_dict()  # begins
    while experiment._lasso is not None:
        strengths.append(experiment._lasso.strength)
        experiment.step()
    return strengths


def test_a_strength_without_a_rule_stays():
    assert lasso_strengths() == [1e-3] * 4


def test_a_strength_with_a_rule_rises_while_the_loss_on_the_text_falls():
    """The average of the first ten losses begins; from the eleventh update on each is compared with the one before."""
    lasso = dataclasses.replace(TINY.lasso, updates=14, learning_rate=3e-3)
    strengths = lasso_strengths(lasso=lasso, lasso_rule=StrengthRule(smoothing=0.5, warmup=10, interval=1, increase=2.0))
    assert strengths[:11] == [1e-3] * 11
    assert strengths[11:] == [2e-3, 4e-3, 8e-3]


def test_an_adjusted_strength_makes_another_model_than_a_constant_one():
    lasso = dataclasses.replace(TINY.lasso, updates=14)
    rule = StrengthRule(warmup=10, interval=1, increase=1e3)
    tensors = [run(config_of("group_lasso", lasso=lasso, lasso_rule=each))[0].model_tensors() for each in (None, rule)]
    assert not same(*tensors)
