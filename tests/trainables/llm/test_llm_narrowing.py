import dataclasses
import io
import json
import math
import re

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from transformers import AutoModelForCausalLM, AutoTokenizer

from trainables.experiment import DivergedError, build_experiment
from trainables.llm.anatomy import neurons, residual
from trainables.llm.base import BaseConfig, build_llama, load_parameters
from trainables.llm.corpus import Corpus
from trainables.llm.corpus_documents import CorpusConfig
from trainables.llm.corpus_stream import Stream
from trainables.llm.dissection import dissect
from trainables.llm.gates import NextTokenLoss, gated
from trainables.llm.narrowing import Narrowing
from trainables.llm.narrowing_config import METHODS, PRUNING, NarrowingConfig
from trainables.llm.narrowing_metrics import METRICS, Ledger
from trainables.llm.text_sources import Source
from trainables.llm.training import Trainer, Training, mean_loss_nats
from trainables.model_files import load_model, save_model
from trainables.pruning.penalties import add_group_lasso_gradient, group_norms, proximal_step
from trainables.pruning.surgery import mask
from trainables.randomness import stream_key
from trainables.shared import Shared
from trainables.storage import Folder

CPU = torch.device("cpu")
TINY = NarrowingConfig.tiny()
STUDENTS = ("distillation", "from_scratch")
LENGTH, BATCH, UPDATES = 32, 4, 4
A_BATCH = BATCH * LENGTH
NUM_BASE = 300 * 16 + 2 * (4 * 16 * 16 + 3 * 16 * 32 + 2 * 16) + 16
"""Parameters: embedding, two blocks of attention, MLP and two norms, the last norm."""
NUM_NARROW = 300 * 12 + 2 * (4 * 12 * 16 + 2 * 12) + 3 * 12 * 32 + 12
"""With 12 dimensions for 16 and 32 neurons in both blocks together, for 64; the heads keep their widths."""


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Corpus and base model, made once for all tests; changing a test's copy of them changes no other's."""
    shared = Shared(Folder(tmp_path_factory.mktemp("shared")))
    return {name: shared.get(recipe, CPU) for name, recipe in Narrowing.needs(TINY).items()}


@pytest.fixture(scope="module")
def corpus(given):
    return Corpus.of(given["corpus"])


def config_of(method="weight_norm", **changes):
    return dataclasses.replace(TINY, method=method, **changes)


def training(**changes):
    return dataclasses.replace(TINY.recovery, **changes)


def begin(given, config):
    return Narrowing(config, device=CPU, given=given)


def run(given, config):
    experiment, reports = begin(given, config), []
    while experiment.progress < 1.0:
        reports.append(experiment.step())
    return experiment, reports


@pytest.fixture(scope="module")
def finished(given):
    """A whole run of every method."""
    return {method: run(given, config_of(method, teacher_share=0.5)) for method in METHODS}


def same(tensors, others):
    return tensors.keys() == others.keys() and all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


def backwards(given, pattern):
    """Turn the tokens of some splits round."""
    names = [name for name in given["corpus"] if re.fullmatch(f"tokens/{pattern}", name)]
    assert names
    return {**given, "corpus": given["corpus"] | {name: given["corpus"][name].to(torch.int32).flip(0) for name in names}}


def base_model(given):
    model = build_llama(TINY.base, 300)
    load_parameters(model, given["base"])
    return model


def layers_of(model):
    anatomy, tensors = dissect(model), dict(model.named_parameters())
    return [*neurons(anatomy, tensors), residual(anatomy, tensors)]


def less(metrics, *names):
    return {name: value for name, value in metrics.items() if name not in names}


def held_out(model, corpus, domain):
    return mean_loss_nats(model, corpus.windows(domain, LENGTH, TINY.evaluation_windows), batch_size=BATCH)


def stream(corpus, weights, stage="recovery"):
    return Stream(corpus, weights=weights, length=LENGTH, batch_size=BATCH, seed=stream_key(0, stage))


def sizes_of(tensors):
    """Dimensions, then neurons of each block."""
    downs = [tensor for name, tensor in sorted(tensors.items()) if name.endswith("down_proj.weight")]
    return [tensors["model.embed_tokens.weight"].shape[1], *(down.shape[1] for down in downs)]


@pytest.mark.parametrize("method", METHODS)
def test_every_way_ends_with_a_model_of_the_sizes_that_its_sparsities_say(finished, method):
    """32 of 64 neurons go, and 4 of 16 dimensions."""
    experiment, reports = finished[method]
    last, (dimensions, *widths) = reports[-1], sizes_of(experiment.model_tensors())
    assert experiment.progress == 1.0
    assert (dimensions, sum(widths)) == (12, 32)
    assert (last["dimensions_kept"], last["neurons_kept"], last["least_neurons"]) == (12, 32, min(widths))
    assert last["parameters_kept"] == NUM_NARROW
    assert sum(tensor.numel() for tensor in experiment.model_tensors().values()) == NUM_NARROW
    assert method in PRUNING or widths == [16, 16]


@pytest.mark.parametrize("method", ["group_lasso", "random", "from_scratch"])
@pytest.mark.parametrize(
    ("neuron_sparsity", "residual_sparsity", "num_neurons", "dimensions"),
    [(0.0, 0.0, 64, 16), (0.29, 0.5, 46, 8), (0.95, 0.9, 4, 2), (0.8, 0.2, 13, 14)],
)
def test_other_sparsities_have_other_sizes(given, corpus, method, neuron_sparsity, residual_sparsity, num_neurons, dimensions):
    """int(64 x 0.29) = 18 neurons go, or 2 x int(32 x 0.29) of a student; int(16 x 0.2) = 3 dimensions, less 1 for 2 heads."""
    config = config_of(method, neuron_sparsity=neuron_sparsity, residual_sparsity=residual_sparsity)
    experiment, reports = run(given, dataclasses.replace(config, lasso=training(updates=1), recovery=training(updates=1)))
    if method in STUDENTS:
        num_neurons = 2 * (32 - int(32 * neuron_sparsity))
    width, *widths = sizes_of(experiment.model_tensors())
    assert (width, sum(widths)) == (dimensions, num_neurons)
    assert (reports[-1]["dimensions_kept"], reports[-1]["neurons_kept"]) == (dimensions, num_neurons)
    again = Narrowing.rebuild(config, experiment.model_tensors())
    assert held_out(again, corpus, "python") == pytest.approx(reports[-1]["kept_loss_nats"], abs=1e-6)


@pytest.mark.parametrize("method", PRUNING)
def test_layers_ranked_on_their_own_keep_as_many_neurons_each(given, method):
    tensors = {}
    for per_layer in (True, False):
        config = config_of(method, neuron_sparsity=0.7, per_layer=per_layer, lasso=training(updates=1))
        experiment = begin(given, config)
        while experiment.step()["neurons_kept"] == 64:
            pass
        tensors[per_layer] = experiment.model_tensors()
    assert sizes_of(tensors[True]) == [12, 10, 10]  # int(32 x 0.7) = 22 go of each
    dimensions, *widths = sizes_of(tensors[False])
    assert (dimensions, sum(widths)) == (12, 20)  # int(64 x 0.7) = 44 go of both


def test_a_layer_may_lose_all_its_neurons(given, corpus):
    """All groups of a strong proximal lasso are zero; of equals, those of the first layer go first."""
    lasso = training(updates=1, learning_rate=1e-2, warmup=0)
    config = config_of("group_lasso", lasso_way="proximal", lasso_strength=1e6, lasso=lasso, updates_per_step=4)
    experiment = begin(given, config)
    reports = [experiment.step()]
    state, experiment = experiment.state_dict(), begin(given, config)
    experiment.load_state_dict(state)
    while experiment.progress < 1.0:
        reports.append(experiment.step())
    assert sizes_of(experiment.model_tensors()) == [12, 0, 32]
    assert [report["least_neurons"] for report in reports] == [0] * len(reports)
    again = Narrowing.rebuild(config, experiment.model_tensors())
    assert held_out(again, corpus, "python") == pytest.approx(reports[-1]["kept_loss_nats"], abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_reports_are_of_the_model_that_its_files_hold(finished, corpus, tmp_path, method):
    """Losses, and every logit of the model as it is in memory."""
    experiment, reports = finished[method]
    save_model(Folder(tmp_path), "llm_narrowing", experiment.config, experiment.model_tensors())
    loaded = load_model(tmp_path)
    last = reports[-1]
    assert held_out(loaded, corpus, "python") == pytest.approx(last["kept_loss_nats"], abs=1e-6)
    assert held_out(loaded, corpus, "prose") == pytest.approx(last["other_loss_nats"], abs=1e-6)
    token_BT = corpus.windows("python", LENGTH, 2)
    with torch.no_grad():
        ours, theirs = (model(token_BT, use_cache=False).logits for model in (loaded, experiment._model))
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def kept_by(given, config):
    """Which units of the base model are left, right after pruning: a bool for each, layer by layer, dimensions last."""
    experiment = begin(given, config)
    while experiment.state_dict()["keep"] is None:
        experiment.step()
    return experiment.state_dict()["keep"], experiment


@pytest.mark.parametrize("way", ["mask", "gates"])
@pytest.mark.parametrize("method", ["attribution", "weight_norm", "random"])
def test_the_loss_after_pruning_is_that_of_the_masked_base_model(finished, given, corpus, method, way):
    keep, _ = kept_by(given, config_of(method))
    model = base_model(given)
    layers = layers_of(model)
    if way == "mask":
        for units, keep_H in zip(layers, keep, strict=True):
            mask(dict(model.named_parameters()), units, keep_H)
        expected = held_out(model, corpus, "python")
    else:
        gates = {units.name: keep_H.float() for units, keep_H in zip(layers, keep, strict=True)}
        with gated(model, dissect(model), gates):
            expected = held_out(model, corpus, "python")
    assert abs(expected - held_out(base_model(given), corpus, "python")) > 1e-4
    for report in finished[method][1]:
        assert report["pruned_loss_nats"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("method", STUDENTS)
def test_the_loss_after_pruning_of_a_student_is_that_of_an_untrained_one(finished, given, corpus, method):
    untrained = Narrowing.rebuild(config_of(method), begin(given, config_of(method)).model_tensors())
    expected = held_out(untrained, corpus, "python")
    assert [report["pruned_loss_nats"] for report in finished[method][1]] == pytest.approx([expected] * 4, abs=1e-6)
    assert expected == pytest.approx(math.log(300), abs=0.1)  # it knows nothing


def best(score_H, count):
    keep_H = torch.zeros(len(score_H), dtype=torch.bool)
    keep_H[score_H.topk(count).indices] = True
    return keep_H


def owned_norms(model):
    """Of every neuron of all blocks: the norm of its rows of gate and up and its column of down."""
    tensors = dict(model.named_parameters())
    norms = []
    for block in range(2):
        gate, up, down = (tensors[f"model.layers.{block}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        norms.append((gate.square().sum(1) + up.square().sum(1) + down.square().sum(0)).sqrt())
    return torch.cat(norms).detach()


@pytest.mark.parametrize(("residual_sparsity", "dimensions"), [(0.25, 12), (0.2, 14)])
def test_the_norm_of_all_that_a_unit_owns_decides_in_weight_norm(given, residual_sparsity, dimensions):
    keep, _ = kept_by(given, config_of("weight_norm", residual_sparsity=residual_sparsity))
    assert torch.equal(torch.cat(keep[:-1]), best(owned_norms(base_model(given)), 32))
    tensors, square_D = given["base"], 0.0
    for name, tensor in tensors.items():
        is_column = name.endswith(("embed_tokens.weight", "q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight"))
        if is_column or name.endswith("up_proj.weight"):
            square_D = square_D + tensor.square().sum(0)
        else:
            square_D = square_D + (tensor.square() if tensor.dim() == 1 else tensor.square().sum(1))
    assert torch.equal(keep[-1], best(square_D, dimensions))


def test_what_the_kept_domains_loss_would_feel_first_decides_in_attribution(given, corpus):
    """|sum over what a unit owns of gradient times parameter|, over the attribution split of the kept domain."""
    keep, _ = kept_by(given, config_of("attribution"))
    model = base_model(given)
    token_WT = corpus.windows("python", LENGTH, 4, "attribution")
    logits = model(token_WT[:, :-1], use_cache=False).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), token_WT[:, 1:].flatten()).backward()
    products = {name: (parameter * parameter.grad).detach() for name, parameter in model.named_parameters()}
    scores = [units.sum_by_unit(products).abs() for units in layers_of(model)]
    assert torch.equal(torch.cat(keep[:-1]), best(torch.cat(scores[:-1]), 32))
    assert torch.equal(keep[-1], best(scores[-1], 12))


def test_random_pruning_takes_other_units_for_every_seed(given):
    keeps = [kept_by(given, config_of("random", seed=seed))[0] for seed in (0, 0, 1)]
    first, again, other = (torch.cat(keep) for keep in keeps)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[:64], best(torch.arange(64.0), 32))


def test_every_method_keeps_other_units(given):
    keeps = [torch.cat(kept_by(given, config_of(method))[0]) for method in ("attribution", "weight_norm", "random")]
    assert not any(torch.equal(keeps[one], keeps[other]) for one, other in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize(("way", "strength"), [("subgradient", 0.3), ("proximal", 19.0)])
def test_the_lasso_acts_on_the_whole_base_model_before_it_is_cut(given, corpus, way, strength):
    """Two updates by hand; the third leads to the norms that decide what is left."""
    lasso = training(updates=3, learning_rate=3e-3, warmup=0)
    config = config_of("group_lasso", lasso_way=way, lasso_strength=strength, lasso=lasso, updates_per_step=2)
    experiment, model = begin(given, config), base_model(given)
    layers, tensors = layers_of(model)[:-1], dict(model.named_parameters())
    ways = {
        "subgradient": {"add_penalty": lambda ours, grads: add_group_lasso_gradient(ours, grads, layers, strength)},
        "proximal": {"after_update": lambda ours, rate: proximal_step(ours, layers, rate * strength)},
    }
    trainer = Trainer(model, stream(corpus, {"python": 1.0}, "lasso"), lasso, **ways[way])
    trainer.run(2)
    experiment.step()
    assert same(experiment.model_tensors(), {name: tensor.detach() for name, tensor in tensors.items()})
    trainer.run(1)
    zeros = sum(int((group_norms(tensors, units) == 0).sum()) for units in layers)
    assert 0 < zeros < 32 if way == "proximal" else zeros == 0
    experiment.step()
    keep = experiment.state_dict()["keep"]
    kept_norms = owned_norms(model)[torch.cat(keep[:-1])]
    assert sorted(kept_norms.tolist()) == sorted(owned_norms(model).tolist())[32:]
    for units, keep_H in zip([*layers, layers_of(model)[-1]], keep, strict=True):
        mask(tensors, units, keep_H)
    assert experiment.step()["pruned_loss_nats"] == pytest.approx(held_out(model, corpus, "python"), abs=1e-5)


def test_a_stronger_lasso_leaves_shorter_groups(given):
    totals = []
    for strength in (1e-6, 0.1, 10.0):
        lasso = training(updates=8, learning_rate=3e-3)
        experiment = begin(given, config_of("group_lasso", lasso_strength=strength, lasso=lasso, updates_per_step=7))
        experiment.step()
        model = Narrowing.rebuild(TINY, experiment.model_tensors())
        totals.append(float(owned_norms(model).sum()))
    assert totals == sorted(totals, reverse=True)
    assert totals[2] < 0.9 * totals[0]


TOKENS = {
    "group_lasso": [256, 512, 768, 1024, 1024, 1024],
    "attribution": [132 + 256, 132 + 512, 132 + 512, 132 + 512],  # scores read 4 windows of 33 tokens
    "weight_norm": [256, 512, 512, 512],
    "random": [256, 512, 512, 512],
    "distillation": [256, 512, 512, 512],
    "from_scratch": [256, 512, 512, 512],
}


@pytest.mark.parametrize("method", METHODS)
def test_tokens_are_those_of_scores_lasso_and_recovery(finished, method):
    assert [report["tokens_spent"] for report in finished[method][1]] == TOKENS[method]


def flops_by_hand(method, *, teacher):
    """Of a whole run: 6 a parameter and token, and 2 a parameter of the base model where it is asked."""
    before = {"group_lasso": 512 * 6 * NUM_BASE, "attribution": 132 * 6 * NUM_BASE}.get(method, 0)
    return before + 512 * (6 * NUM_NARROW + (2 * NUM_BASE if teacher else 0))


@pytest.mark.parametrize("method", METHODS)
def test_flops_are_those_worked_out_by_hand(finished, method):
    assert (NUM_BASE, NUM_NARROW) == (10_000, 6348)
    assert finished[method][1][-1]["flops_spent"] == flops_by_hand(method, teacher=method != "from_scratch")


def test_without_a_teacher_its_answers_cost_nothing(given):
    for method in ("group_lasso", "attribution"):
        report = run(given, config_of(method, teacher_share=0.0))[1][-1]
        assert report["flops_spent"] == flops_by_hand(method, teacher=False)


def test_the_books_of_a_run_of_other_sizes(given):
    """5 windows of 10 tokens are scored, 2 batches of 3 x 9 learned from: 50 x 6 x 10000 + 54 x (6 x 6348 + 2 x 10000)."""
    config = config_of(
        "attribution",
        teacher_share=0.5,
        score_windows=5,
        recovery=training(updates=2, batch_size=3, length=9),
        updates_per_step=1,
    )
    _, reports = run(given, config)
    assert [report["tokens_spent"] for report in reports] == [50 + 27, 50 + 54, 50 + 54, 50 + 54]
    assert reports[-1]["flops_spent"] == 6_136_752
    assert reports[0]["flops_spent"] == (6_136_752 + 3_000_000) / 2


def test_a_last_step_makes_only_the_updates_that_are_left(given):
    _, reports = run(given, config_of("group_lasso", updates_per_step=3))
    assert [report["tokens_spent"] for report in reports] == [A_BATCH * updates for updates in (3, 4, 7, 8, 8, 8)]


def test_how_many_updates_a_step_makes_changes_no_model(given, finished):
    for method in ("group_lasso", "distillation"):
        experiment, reports = run(given, config_of(method, teacher_share=0.5, updates_per_step=3))
        assert reports[-1] == finished[method][1][-1]
        assert same(experiment.model_tensors(), finished[method][0].model_tensors())


@pytest.mark.parametrize("method", ["group_lasso", "weight_norm", "from_scratch"])
def test_no_updates_at_all_cost_nothing(given, method):
    config = config_of(method, lasso=training(updates=0), recovery=training(updates=0), relearning=training(updates=0))
    experiment, reports = run(given, config)
    assert {report["tokens_spent"] for report in reports} == {report["flops_spent"] for report in reports} == {0}
    last = reports[-1]
    assert last["kept_loss_nats"] == last["pruned_loss_nats"]
    assert last["relearned_loss_nats"] == last["other_loss_nats"]
    assert sizes_of(experiment.model_tensors())[0] == last["dimensions_kept"] == 12


def test_a_target_that_is_reached_at_once_costs_what_came_before_recovery(given):
    for method, cost in (("attribution", 132), ("from_scratch", 0), ("group_lasso", 512)):
        _, reports = run(given, config_of(method, target_loss_nats=100.0))
        in_recovery = [report for report in reports if report["tokens_spent"] >= cost + 256 or report["reached_target"]]
        assert [(report["reached_target"], report["tokens_to_target"]) for report in in_recovery] == [(1.0, cost)] * len(
            in_recovery
        )
        assert len(in_recovery) >= 4


def test_a_target_that_is_reached_under_the_lasso_does_not_count_yet(given):
    first, *_ = run(given, config_of("group_lasso", target_loss_nats=100.0))[1]
    assert (first["tokens_spent"], first["tokens_to_target"], first["reached_target"]) == (256, 256, 0.0)


def test_a_target_that_is_never_reached_costs_all(given):
    for method in ("group_lasso", "attribution"):
        for report in run(given, config_of(method, target_loss_nats=1e-3))[1]:
            assert (report["reached_target"], report["tokens_to_target"]) == (0.0, report["tokens_spent"])


def test_the_first_time_at_the_target_counts_though_the_loss_rises_again():
    ledger = Ledger(config_of("weight_norm", target_loss_nats=4.0), num_parameters=NUM_BASE)
    ledger.note_losses({"python": 6.0, "prose": 6.0})
    ledger.note_pruned()
    tokens = []
    for update, loss in enumerate((5.0, 3.9, 4.5, 3.5), start=1):
        ledger.note_training("recovery", update, NUM_NARROW)
        ledger.note_losses({"python": loss, "prose": 6.0})
        report = ledger.metrics([])
        tokens.append((report["tokens_to_target"], report["reached_target"]))
    assert tokens == [(A_BATCH, 0.0), *[(2 * A_BATCH, 1.0)] * 3]


@pytest.mark.parametrize("teacher_share", [0.0, 0.5, 1.0])
def test_recovery_learns_the_text_and_the_base_models_answers(given, corpus, teacher_share):
    """One update by hand."""
    recovery = training(updates=1, warmup=0, learning_rate=1e-2, clip_norm=math.inf)
    config = config_of("distillation", teacher_share=teacher_share, temperature=3.0, recovery=recovery)
    experiment = begin(given, config)
    model = Narrowing.rebuild(config, {name: tensor.clone() for name, tensor in experiment.model_tensors().items()})
    token_BT = stream(corpus, {"python": 1.0}).batch(0)
    logits = model(token_BT[:, :-1], use_cache=False).logits
    with torch.no_grad():
        p_BTV = (base_model(given)(token_BT[:, :-1], use_cache=False).logits / 3).softmax(-1)
    divergence = (p_BTV * (p_BTV.log() - (logits / 3).log_softmax(-1))).sum(-1).mean()
    text = torch.nn.functional.cross_entropy(logits.flatten(0, 1), token_BT[:, 1:].flatten())
    ((1 - teacher_share) * text + teacher_share * 9 * divergence).backward()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    optimizer.step()
    report = experiment.step()
    assert held_out(model, corpus, "python") == pytest.approx(report["kept_loss_nats"], abs=2e-5)
    assert abs(report["kept_loss_nats"] - report["pruned_loss_nats"]) > 1e-3


def test_a_student_from_scratch_needs_no_teacher(given, finished):
    """Whatever the base model is, and whatever share of its answers is asked for."""
    broken = {**given, "base": {name: torch.full_like(tensor, math.nan) for name, tensor in given["base"].items()}}
    for share in (0.0, 0.5, 1.0):
        experiment, reports = run(broken, config_of("from_scratch", teacher_share=share))
        assert reports == finished["from_scratch"][1]
        assert same(experiment.model_tensors(), finished["from_scratch"][0].model_tensors())


@pytest.mark.parametrize("method", ["distillation", "weight_norm"])
def test_a_teachers_answers_tell(given, finished, method):
    without = run(given, config_of(method, teacher_share=0.0))
    assert without[1][-1]["kept_loss_nats"] != finished[method][1][-1]["kept_loss_nats"]
    assert without[1][-1]["pruned_loss_nats"] == finished[method][1][-1]["pruned_loss_nats"]


def test_distillation_by_default_is_not_from_scratch():
    """Its name says that it learns the base model's answers."""
    assert NarrowingConfig(method="distillation").teacher_weight > 0


def test_students_of_one_seed_begin_alike_and_of_another_do_not(given):
    models = [begin(given, config_of(method, seed=seed)).model_tensors() for method, seed in
              (("distillation", 0), ("from_scratch", 0), ("from_scratch", 1))]  # fmt: skip
    assert same(models[0], models[1])
    assert not same(models[1], models[2])


def test_relearning_is_the_best_of_its_rates_and_leaves_the_model_as_it_was(given, corpus):
    """By hand, on a copy, from the other domain's text."""
    rates = (1e-5, 1e-2, 3e-3)
    experiment, reports = run(given, config_of("weight_norm", relearning_rates=rates, updates_per_step=4))
    losses = []
    for rate in rates:
        model = Narrowing.rebuild(TINY, {name: tensor.clone() for name, tensor in experiment.model_tensors().items()})
        relearning = dataclasses.replace(TINY.relearning, learning_rate=rate)
        Trainer(model, stream(corpus, {"prose": 1.0}, "relearning"), relearning).run(2)
        losses.append(held_out(model, corpus, "prose"))
    assert losses[1] < losses[2] < losses[0] < reports[0]["other_loss_nats"]
    seen = [report["relearned_loss_nats"] for report in reports]
    assert seen == pytest.approx([reports[0]["other_loss_nats"], losses[0], losses[1], losses[1]], abs=1e-6)
    for report in reports[1:]:
        assert less(report, "relearned_loss_nats") == less(reports[0], "relearned_loss_nats")
    assert held_out(Narrowing.rebuild(TINY, experiment.model_tensors()), corpus, "prose") == pytest.approx(
        reports[0]["other_loss_nats"], abs=1e-6
    )


def test_a_model_is_the_same_before_and_after_relearning(given):
    experiment = begin(given, config_of("attribution", updates_per_step=4))
    experiment.step()
    before = {name: tensor.clone() for name, tensor in experiment.model_tensors().items()}
    while experiment.progress < 1.0:
        experiment.step()
    assert same(experiment.model_tensors(), before)


def test_one_rate_of_relearning_that_diverges_does_not_spoil_the_best_of_them(given, finished):
    """The trial's own model is finite."""
    config = config_of("weight_norm", teacher_share=0.5, relearning_rates=(1e-3, 3e-3, 1e30))
    reports = run(given, config)[1]
    assert reports[-1]["relearned_loss_nats"] == finished["weight_norm"][1][-1]["relearned_loss_nats"]


@pytest.mark.parametrize("method", ["group_lasso", "attribution", "distillation"])
def test_on_the_kept_domain_alone_no_other_text_is_trained_on_or_scored(given, finished, method):
    """All but relearning, which is of the others."""
    other = backwards(given, "(training|attribution)/prose")
    experiment, reports = run(other, config_of(method, teacher_share=0.5))
    assert same(experiment.model_tensors(), finished[method][0].model_tensors())
    for ours, theirs in zip(reports, finished[method][1], strict=True):
        assert less(ours, "relearned_loss_nats") == less(theirs, "relearned_loss_nats")
    assert reports[-1]["relearned_loss_nats"] != finished[method][1][-1]["relearned_loss_nats"]


@pytest.mark.parametrize("method", ["group_lasso", "weight_norm"])
def test_a_broader_mixture_is_trained_on(given, method):
    broad = config_of(method, breadth=0.5)
    models = [run(each, broad)[0].model_tensors() for each in (given, backwards(given, "training/prose"))]
    assert not same(*models)


def test_breadth_is_the_share_of_the_other_domains(given, corpus):
    config = config_of("weight_norm", breadth=0.25, updates_per_step=4)
    experiment = begin(given, config)
    model = Narrowing.rebuild(config, {name: tensor.clone() for name, tensor in experiment.model_tensors().items()})
    Trainer(model, stream(corpus, {"python": 0.75, "prose": 0.25}), config.recovery).run(4)
    assert experiment.step()["kept_loss_nats"] == pytest.approx(held_out(model, corpus, "python"), abs=1e-6)


@pytest.mark.parametrize("method", ["group_lasso", "attribution", "distillation"])
def test_held_out_text_decides_nothing(given, finished, method):
    experiment, reports = run(backwards(given, "evaluation/.*"), config_of(method, teacher_share=0.5))
    assert same(experiment.model_tensors(), finished[method][0].model_tensors())
    assert reports[-1]["kept_loss_nats"] != finished[method][1][-1]["kept_loss_nats"]


def test_only_attribution_reads_the_text_to_score_by(given, finished):
    changed = backwards(given, "attribution/python")
    for method in PRUNING:
        tensors = begin(changed, config_of(method)).model_tensors()
        assert same(tensors, begin(given, config_of(method)).model_tensors()) == (method != "attribution")


def test_the_text_that_is_trained_on_does_not_decide_what_attribution_keeps(given):
    one, other = (kept_by(each, config_of("attribution"))[0] for each in (given, backwards(given, "training/.*")))
    assert torch.equal(torch.cat(one), torch.cat(other))


def test_another_domain_can_be_the_kept_one(given, corpus):
    experiment, reports = run(given, config_of("attribution", kept_domain="prose"))
    model = Narrowing.rebuild(TINY, experiment.model_tensors())
    assert held_out(model, corpus, "prose") == pytest.approx(reports[-1]["kept_loss_nats"], abs=1e-6)
    assert held_out(model, corpus, "python") == pytest.approx(reports[-1]["other_loss_nats"], abs=1e-6)
    assert not torch.equal(torch.cat(kept_by(given, config_of("attribution", kept_domain="prose"))[0]),
                           torch.cat(kept_by(given, config_of("attribution"))[0]))  # fmt: skip


def with_a_third_domain(given):
    """Prose backwards, as if it were a language of its own."""
    more = {
        f"tokens/{split}/cpp": given["corpus"][f"tokens/{split}/prose"].to(torch.int32).flip(0)
        for split in ("training", "evaluation")
    }
    return {**given, "corpus": {**given["corpus"], **more}}


THREE = CorpusConfig(domains=("python", "prose", "cpp"), domain_bytes=60_000, vocabulary=300)


def test_of_several_other_domains_the_mean_is_reported_and_all_are_taught_again(given):
    three = with_a_third_domain(given)
    corpus = Corpus.of(three["corpus"])
    config = config_of("weight_norm", corpus=THREE, breadth=0.5, updates_per_step=4, relearning_rates=(3e-3,))
    experiment = begin(three, config)
    cut = {name: tensor.clone() for name, tensor in experiment.model_tensors().items()}
    reports = [experiment.step(), experiment.step()]
    model = Narrowing.rebuild(config, cut)
    Trainer(model, stream(corpus, {"python": 0.5, "prose": 0.25, "cpp": 0.25}), config.recovery).run(4)
    others = [held_out(model, corpus, domain) for domain in ("cpp", "prose")]
    assert reports[0]["other_loss_nats"] == pytest.approx(sum(others) / 2, abs=1e-6)
    Trainer(model, stream(corpus, {"prose": 1.0, "cpp": 1.0}, "relearning"), config.relearning_at(3e-3)).run(2)
    others = [held_out(model, corpus, domain) for domain in ("cpp", "prose")]
    assert reports[1]["relearned_loss_nats"] == pytest.approx(sum(others) / 2, abs=1e-6)
    (panel,) = experiment.charts()[0].panels
    assert [(series.label, series.dashed) for series in panel.series] == [
        ("cpp", True), ("prose", True), ("python (kept)", False),
    ]  # fmt: skip


def through_a_file(state):
    stored = io.BytesIO()
    torch.save(state, stored)
    stored.seek(0)
    return torch.load(stored, weights_only=True)


@pytest.mark.parametrize(("method", "updates_per_step"), [("group_lasso", 3), ("random", 4), ("distillation", 3)])
def test_saving_and_loading_at_every_step_and_between_stages_changes_nothing(given, method, updates_per_step):
    config = config_of(method, teacher_share=0.5, updates_per_step=updates_per_step)
    experiment, reports, states = begin(given, config), [], []
    while experiment.progress < 1.0:
        progress = experiment.progress
        states.append(through_a_file(experiment.state_dict()))
        experiment = begin(given, config)
        experiment.load_state_dict(states[-1])
        assert experiment.progress == progress
        reports.append(experiment.step())
    straight, expected = run(given, config)
    assert reports == expected
    assert same(experiment.model_tensors(), straight.model_tensors())
    assert experiment.charts() == straight.charts()
    last = through_a_file(experiment.state_dict())
    again = begin(given, config)
    again.load_state_dict(last)
    assert (again.progress, again.step()) == (1.0, expected[-1])
    straight.load_state_dict(states[0])  # back to the start, in the same object
    assert [straight.step() for _ in expected] == expected


def test_a_finished_trial_only_repeats_itself(finished):
    experiment, reports = finished["random"]
    before = {name: tensor.clone() for name, tensor in experiment.model_tensors().items()}
    assert experiment.step() == reports[-1]
    assert same(experiment.model_tensors(), before)


def test_progress_is_the_share_of_updates_relearning_included(given):
    """4 of lasso, 4 of recovery, 2 for each of 2 rates; one more is kept back until all is done."""
    for method, updates in (("group_lasso", [2, 4, 6, 8, 10]), ("attribution", [2, 4, 6])):
        experiment, seen = begin(given, config_of(method)), []
        assert experiment.progress == 0.0
        for _ in updates:
            experiment.step()
            seen.append(experiment.progress)
        assert seen == [done / (updates[-1] + 3) for done in updates]
        experiment.step()
        assert experiment.progress == 1.0


@pytest.mark.parametrize("method", ["group_lasso", "random", "distillation"])
def test_a_rate_at_which_numbers_overflow_ends_a_trial(given, method):
    absurd = training(learning_rate=1e30, clip_norm=math.inf, warmup=0)
    experiment = begin(given, config_of(method, lasso=absurd, recovery=absurd))
    with pytest.raises(DivergedError, match=r"loss(es)? must be finite, but (is|got) (nan|inf).*; ?lower"):
        while experiment.progress < 1.0:
            experiment.step()


def test_charts_show_the_loss_of_every_domain_over_the_tokens(finished):
    for method in METHODS:
        experiment, reports = finished[method]
        (chart,) = experiment.charts()
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


def test_a_charts_title_says_the_method_and_what_it_removed(finished):
    titles = {method: finished[method][0].charts()[0].title for method in ("weight_norm", "from_scratch")}
    assert titles["weight_norm"] == "weight norm: 50% of the neurons, 25% of the dimensions removed"
    assert titles["from_scratch"].startswith("from scratch: 50% of the neurons, ")


def test_a_chart_can_be_drawn_before_anything_is_trained(given):
    for method, points in (("group_lasso", 0), ("random", 1)):
        (panel,) = begin(given, config_of(method)).charts()[0].panels
        assert [len(series.x) for series in panel.series] == [points, points]


def test_corpus_and_base_are_needed_and_depend_on_neither_method_nor_seed():
    needs = [Narrowing.needs(config_of(method, seed=seed)) for method, seed in (("random", 0), ("attribution", 5))]
    assert [sorted(each) for each in needs] == [["base", "corpus"]] * 2
    assert needs[0]["corpus"].key == needs[1]["corpus"].key == needs[0]["base"].needs["corpus"].key
    assert needs[0]["base"].key == needs[1]["base"].key


def test_what_is_needed_depends_on_what_it_is_made_of():
    def keys(config):
        return {name: recipe.key for name, recipe in Narrowing.needs(config).items()}

    plain, reseeded = keys(TINY), keys(config_of(base_seed=1))
    wider = keys(config_of(base=dataclasses.replace(TINY.base, width=32)))
    other = keys(config_of(corpus=dataclasses.replace(TINY.corpus, seed=1)))
    assert plain["corpus"] == reseeded["corpus"] == wider["corpus"] != other["corpus"]
    assert len({each["base"] for each in (plain, reseeded, wider, other)}) == 4


def test_an_experiment_is_built_with_what_it_needs(given, finished, tmp_path):
    """From a storage that has all of it."""
    folder = Folder(tmp_path)

    class Filled(Shared):
        def get(self, recipe, device):
            names = {recipe.key: name for name, recipe in Narrowing.needs(TINY).items()}
            return given[names[recipe.key]]

    experiment = build_experiment(Narrowing, config_of("random", teacher_share=0.5), device=CPU, shared=Filled(folder))
    assert experiment.step() == finished["random"][1][0]


def with_named_rows(**changes):
    """A corpus whose domains are not known before it is read."""
    rows = Source(kind="jsonl", where="rows.jsonl", domain_column="language")
    corpus = CorpusConfig(sources=(rows,), domain_bytes=60_000, vocabulary=300)
    return config_of(corpus=corpus, **changes)


def test_domains_that_only_the_corpus_knows_will_do(given, finished):
    assert run(given, with_named_rows(method="random", teacher_share=0.5))[1] == finished["random"][1]


@pytest.mark.parametrize("method", METHODS)
def test_a_kept_domain_that_the_corpus_turns_out_not_to_have_is_refused(given, method):
    with pytest.raises(ValueError, match="a corpus must have 'rust' and another domain, but got prose, python"):
        begin(given, with_named_rows(method=method, kept_domain="rust")).step()


@pytest.mark.parametrize("method", ["weight_norm", "from_scratch", "group_lasso"])
def test_a_corpus_that_turns_out_to_have_one_domain_is_refused(given, method):
    alone = {name: tensor for name, tensor in given["corpus"].items() if not name.endswith("/prose")}
    with pytest.raises(ValueError, match="domain"):
        begin({**given, "corpus": alone}, with_named_rows(method=method)).step()


def test_scores_read_at_most_the_windows_that_there_are(given, corpus):
    """And all of them are counted, in whatever parts they are read."""
    available = corpus.num_windows("python", "attribution", LENGTH)
    assert available > 16  # several parts
    report = begin(given, config_of("attribution", score_windows=10**6)).step()
    assert report["tokens_spent"] == available * (LENGTH + 1) + 2 * A_BATCH


def test_the_loss_that_scores_follow_is_the_one_that_is_measured(given, corpus):
    """Of windows as they are cut, each token but the first is asked for."""
    model, windows = base_model(given), corpus.windows("python", LENGTH, 4)
    anatomy = dissect(model)
    loss = NextTokenLoss(model, anatomy, windows)(dict(model.named_parameters()), {})
    assert loss.item() == pytest.approx(held_out(model, corpus, "python"), abs=1e-6)


def test_metrics_have_names_of_their_own_and_reports_have_all_of_them(finished):
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for _, reports in finished.values():
        assert all(list(report) == names for report in reports)


def test_default_is_the_papers_narrow_task_at_small_scale():
    config = NarrowingConfig()
    assert (config.kept_domain, config.method, config.breadth, config.temperature) == ("python", "attribution", 0.0, 2.0)
    assert (config.per_layer, config.lasso_way) == (False, "subgradient")
    assert 1e-4 <= config.lasso_strength <= 1e-3
    assert 0.5 <= config.neuron_sparsity <= 0.95


def test_a_config_survives_json_with_all_that_is_nested():
    config = config_of(
        "group_lasso",
        lasso_way="proximal",
        relearning_rates=(1e-3, 2e-3, 5e-3),
        recovery=training(clip_norm=math.inf, updates=9),
        base=dataclasses.replace(TINY.base, weights={"python": 1.0}),
    )
    again = NarrowingConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    kinds = [type(getattr(again, name)) for name in ("corpus", "base", "lasso", "recovery", "relearning", "relearning_rates")]
    assert kinds == [CorpusConfig, BaseConfig, Training, Training, Training, tuple]
    assert type(again.base.training) is Training
    assert NarrowingConfig(recovery={"updates": 7}).recovery == Training(updates=7)


def test_relearning_differs_in_its_rate_alone():
    assert TINY.relearning_at(0.5) == dataclasses.replace(TINY.relearning, learning_rate=0.5)


def test_which_methods_cut_the_base_model_and_which_ask_it():
    assert {method for method in METHODS if config_of(method).prunes} == set(PRUNING)
    assert [config_of(method, teacher_share=0.3).teacher_weight for method in METHODS] == [0.3] * 5 + [0.0]


@pytest.mark.parametrize(
    ("width", "num_heads", "residual_sparsity", "narrow_width"),
    [
        (16, 2, 0.0, 16),
        (16, 2, 0.25, 12),
        (16, 2, 0.2, 14),  # 13 and one more
        (16, 8, 0.3, 16),  # 12 and four more
        (16, 2, 0.999, 2),
        (64, 4, 0.29, 48),  # 46 and two more
        (2048, 32, 0.5, 1024),
    ],
)
def test_a_narrow_width_is_what_the_sparsity_leaves_up_to_a_multiple_of_the_heads(
    width, num_heads, residual_sparsity, narrow_width
):
    base = dataclasses.replace(TINY.base, width=width, num_heads=num_heads)
    assert config_of(base=base, residual_sparsity=residual_sparsity).narrow_width == narrow_width


@pytest.mark.parametrize(
    ("changes", "law"),
    [
        ({"method": "magic"}, r"method must be one of group_lasso, .*, from_scratch, but got 'magic'; use attribution"),
        ({"lasso_way": "none"}, "lasso_way must be one of subgradient, proximal, but got 'none'; use subgradient"),
        ({"neuron_sparsity": 1.0}, r"neuron_sparsity must be in \[0, 1\), but got 1.0; use 0.8"),
        ({"neuron_sparsity": -0.1}, r"neuron_sparsity must be in \[0, 1\), but got -0.1"),
        ({"neuron_sparsity": math.nan}, r"neuron_sparsity must be in \[0, 1\), but got nan"),
        ({"residual_sparsity": 1.0}, r"residual_sparsity must be in \[0, 1\), but got 1.0"),
        ({"breadth": 1.0}, r"breadth must be in \[0, 1\), but got 1.0"),
        ({"breadth": -0.1}, r"breadth must be in \[0, 1\), but got -0.1"),
        ({"teacher_share": 1.1}, r"teacher_share must be in \[0, 1\], or none, but got 1.1; use 0.5"),
        ({"teacher_share": math.nan}, r"teacher_share must be in \[0, 1\], or none, but got nan"),
        ({"lasso_strength": 0.0}, "lasso_strength must be positive, but got 0.0"),
        ({"lasso_strength": math.inf}, "lasso_strength must be positive, but got inf"),
        ({"temperature": 0.0}, "temperature must be positive, but got 0.0"),
        ({"temperature": math.nan}, "temperature must be positive, but got nan"),
        ({"target_loss_nats": 0.0}, "target_loss_nats must be positive, but got 0.0"),
        ({"score_windows": 0}, "score_windows must be at least 1, but got 0; use 1 or more"),
        ({"evaluation_windows": 0}, "evaluation_windows must be at least 1, but got 0"),
        ({"updates_per_step": 0}, "updates_per_step must be at least 1, but got 0"),
        ({"relearning_rates": ()}, r"relearning_rates must be positive and finite, at least one, but got \(\); use \(1e-3,\)"),
        ({"relearning_rates": (1e-3, 0.0)}, "relearning_rates must be positive and finite"),
        ({"relearning_rates": (math.nan, 1e-3)}, "relearning_rates must be positive"),
        ({"relearning_rates": (1e-3, math.nan)}, "relearning_rates must be positive"),
        ({"relearning_rates": (1e-3, math.inf)}, "relearning_rates must be positive"),
        ({"kept_domain": "cpp"}, "kept_domain must be a domain of the corpus, but got 'cpp'; use one of prose, python"),
        ({"kept_domain": "rust", "corpus": {}}, "kept_domain must be a domain .*'rust'; use one of cpp, prose, python"),
        ({"corpus": {"domains": ["python"]}}, r"a corpus must have a domain beside the kept one, but got \['python'\]"),
        ({"base": {}}, r"the base's weights must be of domains of the corpus, but got \['cpp'\]; use prose, python"),
        ({"recovery": {"updates": -1}}, "updates must be at least 0, but got -1"),
        ({"base": {"width": 0}}, "width must be at least 1, but got 0"),
    ],
)
def test_impossible_configs_are_refused_in_a_sentence(changes, law):
    with pytest.raises(ValueError, match=law):
        dataclasses.replace(TINY, **changes)


def test_the_edges_of_what_is_possible_are_allowed():
    dataclasses.replace(TINY, neuron_sparsity=0.0, residual_sparsity=0.0, breadth=0.0, teacher_share=1.0, relearning_rates=(1.0,))
    dataclasses.replace(TINY, neuron_sparsity=0.999, residual_sparsity=0.999, breadth=0.999, score_windows=1, updates_per_step=1)


@pytest.mark.parametrize("method", ["attribution", "from_scratch"])
def test_the_folder_of_a_trials_model_is_one_that_transformers_loads(given, tmp_path, method):
    experiment, _ = run(given, config_of(method, per_layer=True))
    save_model(Folder(tmp_path), "llm_narrowing", experiment.config, experiment.model_tensors())
    for name, data in experiment.model_files().items():
        Folder(tmp_path).write(name, data)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    token_BT = torch.arange(24).view(2, 12)
    ours = experiment.rebuild(experiment.config, experiment.model_tensors())
    with torch.no_grad():
        torch.testing.assert_close(model(token_BT).logits, ours(token_BT).logits, rtol=0, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "def f(x):\n    return x + 1\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_tensors_of_a_trials_model_are_written_by_the_service(finished):
    for experiment, _ in finished.values():
        assert {"config.json", "tokenizer.json"} <= experiment.model_files().keys()
        assert "model.safetensors" not in experiment.model_files()
