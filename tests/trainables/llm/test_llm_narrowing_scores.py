import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from narrowing_trials import (
    A_BATCH,
    LENGTH,
    TINY,
    backwards,
    base_model,
    begin,
    best,
    config_of,
    corpus,
    finished,
    given,
    go_on,
    held_out,
    kept_by,
    kept_units,
    layers_of,
    rebuilt,
    same,
    stream,
    training,
)

from trainables.llm import narrowing_models
from trainables.llm.dissection import dissect
from trainables.llm.gates import NextTokenLoss, gated
from trainables.llm.narrowing_config import PRUNING
from trainables.llm.training import Trainer
from trainables.pruning.penalties import add_group_lasso_gradient, group_norms, proximal_step
from trainables.pruning.scores import SCORES
from trainables.pruning.surgery import mask


@pytest.mark.parametrize("way", ["mask", "gates"])
@pytest.mark.parametrize("method", ["attribution", "weight_norm", "random"])
def test_the_losses_after_pruning_are_those_of_the_masked_base_model(method, way):
    keep, model = kept_by(config_of(method)), base_model()
    layers = layers_of(model)
    if way == "mask":
        for units, keep_H in zip(layers, keep, strict=True):
            mask(dict(model.named_parameters()), units, keep_H)
        expected = {domain: held_out(model, domain) for domain in ("prose", "python")}
    else:
        gates = {units.name: keep_H.float() for units, keep_H in zip(layers, keep, strict=True)}
        with gated(model, dissect(model), gates):
            expected = {domain: held_out(model, domain) for domain in ("prose", "python")}
    assert abs(expected["python"] - held_out(base_model(), "python")) > 1e-5
    for report in finished(method)[1]:
        assert report["pruned_loss_nats"] == report["pruned_loss_nats/python"] == pytest.approx(expected["python"], abs=1e-6)
        assert report["pruned_loss_nats/prose"] == pytest.approx(expected["prose"], abs=1e-6)


def owned_norms(model):
    """Of every neuron of all blocks: the norm of its rows of gate and up and its column of down."""
    tensors = dict(model.named_parameters())
    norms = []
    for block in range(2):
        gate, up, down = (tensors[f"model.layers.{block}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        norms.append((gate.square().sum(1) + up.square().sum(1) + down.square().sum(0)).sqrt())
    return torch.cat(norms).detach()


@pytest.mark.parametrize(("residual_sparsity", "dimensions"), [(0.25, 12), (0.2, 14)])
def test_the_norm_of_all_that_a_unit_owns_decides_in_weight_norm(residual_sparsity, dimensions):
    keep, model = kept_by(config_of("weight_norm", residual_sparsity=residual_sparsity)), base_model()
    assert torch.equal(torch.cat(keep[:-1]), best(owned_norms(model), 32))
    square_D = 0.0
    readers = tuple(f"{name}.weight" for name in ("embed_tokens", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"))
    for name, parameter in model.named_parameters():
        square = parameter.detach().square()
        square_D = square_D + (square if square.dim() == 1 else square.sum(0) if name.endswith(readers) else square.sum(1))
    assert torch.equal(keep[-1], best(square_D, dimensions))


def test_what_the_kept_domains_loss_would_feel_first_decides_in_attribution():
    """|sum over what a unit owns of gradient times parameter|, over the attribution split of the kept domain."""
    keep, model = kept_by(config_of("attribution")), base_model()
    token_WT = corpus().windows("python", LENGTH, 4, "attribution")
    logits = model(token_WT[:, :-1], use_cache=False).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), token_WT[:, 1:].flatten()).backward()
    products = {name: (parameter * parameter.grad).detach() for name, parameter in model.named_parameters()}
    scores = [units.sum_by_unit(products).abs() for units in layers_of(model)]
    assert torch.equal(torch.cat(keep[:-1]), best(torch.cat(scores[:-1]), 32))
    assert torch.equal(keep[-1], best(scores[-1], 12))


@pytest.mark.parametrize(("num_windows", "size"), [(6, 3), (7, 1), (8, 4), (9, 3)])
def test_every_window_weighs_the_same_in_scores(num_windows, size, monkeypatch):
    """Batches are averaged, so all of them have as many windows: of room for four, as many as divide the number."""
    seen = []

    def score(tensors, layers, losses, generator):
        seen.extend(loss.token_BT for loss in losses)
        return attribution(tensors, layers, losses, generator)

    attribution = SCORES["attribution"]
    monkeypatch.setitem(SCORES, "attribution", score)
    monkeypatch.setattr(narrowing_models, "_TOKENS_AT_ONCE", 4 * (LENGTH + 1) + 5)
    begin(config_of("attribution", score_windows=num_windows)).state_dict()
    assert {len(token_BT) for token_BT in seen} == {size}
    assert torch.equal(torch.cat(seen), corpus().windows("python", LENGTH, num_windows, "attribution"))


def test_scores_read_at_most_the_windows_that_there_are(monkeypatch):
    """And all of them are counted, in whatever parts they are read."""
    monkeypatch.setattr(narrowing_models, "_LOGITS_AT_ONCE", 300 * 3 * (LENGTH + 1))
    available = corpus().num_windows("python", "attribution", LENGTH)
    assert available > 16
    report = begin(config_of("attribution", score_windows=10**6)).step()
    assert report["tokens_spent"] == available * (LENGTH + 1) + 2 * A_BATCH


def test_the_loss_that_scores_follow_is_the_one_that_is_measured():
    """Of windows as they are cut, each token but the first is asked for."""
    model, windows = base_model(), corpus().windows("python", LENGTH, 4)
    loss = NextTokenLoss(model, dissect(model), windows)(dict(model.named_parameters()), {})
    assert loss.item() == pytest.approx(held_out(model, "python"), abs=1e-6)


def test_random_pruning_takes_other_units_for_every_seed():
    first, again, other = (torch.cat(kept_by(config_of("random", seed=seed))) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[:64], best(torch.arange(64.0), 32))


def test_every_method_keeps_other_units():
    keeps = [torch.cat(kept_by(config_of(method))) for method in ("attribution", "weight_norm", "random")]
    assert not any(torch.equal(keeps[one], keeps[other]) for one, other in ((0, 1), (0, 2), (1, 2)))


def test_only_attribution_reads_the_text_to_score_by():
    changed = backwards("attribution/python")
    for method in PRUNING:
        tensors = [begin(config_of(method), changed).model_tensors(), begin(config_of(method)).model_tensors()]
        assert same(*tensors) == (method != "attribution")


def test_the_text_that_is_trained_on_does_not_decide_what_attribution_keeps():
    one, other = kept_by(config_of("attribution")), kept_by(config_of("attribution"), backwards("training/.*"))
    assert torch.equal(torch.cat(one), torch.cat(other))


def test_another_domain_can_be_the_kept_one():
    experiment = begin(config_of("attribution", kept_domain="prose"))
    assert not torch.equal(
        torch.cat(kept_units(base_model(), experiment.model_tensors())), torch.cat(kept_by(config_of("attribution")))
    )
    report = experiment.step()
    assert held_out(rebuilt(experiment), "prose") == pytest.approx(report["kept_loss_nats"], abs=1e-6)
    assert held_out(rebuilt(experiment), "python") == pytest.approx(report["other_loss_nats"], abs=1e-6)


@pytest.mark.parametrize(("way", "strength"), [("subgradient", 0.3), ("proximal", 19.0)])
def test_the_lasso_acts_on_the_whole_base_model_before_it_is_cut(way, strength):
    """Two updates by hand; the third leads to the norms that decide what is left."""
    lasso = training(updates=3, learning_rate=3e-3, warmup=0)
    config = config_of("group_lasso", lasso_way=way, lasso_strength=strength, lasso=lasso, updates_per_step=2)
    experiment, model = begin(config), base_model()
    layers, tensors = layers_of(model)[:-1], dict(model.named_parameters())
    ways = {
        "subgradient": {"add_penalty": lambda ours, grads: add_group_lasso_gradient(ours, grads, layers, strength)},
        "proximal": {"after_update": lambda ours, rate: proximal_step(ours, layers, rate * strength)},
    }
    trainer = Trainer(model, stream({"python": 1.0}, "lasso"), lasso, **ways[way])
    trainer.run(2)
    experiment.step()
    assert same(experiment.model_tensors(), {name: tensor.detach() for name, tensor in tensors.items()})
    trainer.run(1)
    zeros = sum(int((group_norms(tensors, units) == 0).sum()) for units in layers)
    assert 0 < zeros < 32 if way == "proximal" else zeros == 0
    report = experiment.step()
    keep = kept_units(model, experiment.model_tensors())
    assert sorted(owned_norms(model)[torch.cat(keep[:-1])].tolist()) == sorted(owned_norms(model).tolist())[32:]
    for units, keep_H in zip(layers_of(model), keep, strict=True):
        mask(tensors, units, keep_H)
    assert report["pruned_loss_nats"] == pytest.approx(held_out(model, "python"), abs=1e-5)


def test_a_stronger_lasso_leaves_shorter_groups():
    totals = []
    for strength in (1e-6, 0.1, 10.0):
        lasso = training(updates=8, learning_rate=3e-3)
        experiment = begin(config_of("group_lasso", lasso_strength=strength, lasso=lasso, updates_per_step=7))
        experiment.step()
        totals.append(float(owned_norms(rebuilt(experiment)).sum()))
    assert totals == sorted(totals, reverse=True)
    assert totals[2] < 0.9 * totals[0]


def test_pruning_leaves_what_others_share_as_it_was():
    """Of tensors that the storage maps for all trials of a machine."""
    before = {name: {key: tensor.clone() for key, tensor in tensors.items()} for name, tensors in given().items()}
    for method in ("group_lasso", "attribution", "distillation"):
        go_on(begin(config_of(method, teacher_share=0.5, updates_per_step=9)))
    assert all(same(given()[name], before[name]) for name in before)


def test_a_trial_looks_at_its_model_when_it_is_asked_for_numbers(monkeypatch):
    """Not when it is made: going on from a checkpoint, that would be for nothing."""
    monkeypatch.setattr("trainables.llm.narrowing.unpack_model", lambda _: pytest.fail("built"))
    experiment = begin(TINY)
    assert experiment.progress == 0.0
    assert [len(panel.series[0].x) for chart in experiment.charts() for panel in chart.panels] == [0, 0]


@pytest.mark.parametrize(("method", "score"), [("attribution", "attribution"), ("random", "random")])
def test_the_account_tells_which_units_are_left_and_by_which_score_also_after_a_checkpoint(method, score):
    config = config_of(method)
    before = begin(config)
    before.model_tensors()  # now it is cut
    experiment = begin(config)
    experiment.load_state_dict(before.state_dict())
    removal = experiment.account().removal
    assert removal.score == score
    for told_H, kept_H in zip(removal.kept.values(), kept_by(config), strict=True):
        assert torch.equal(told_H, kept_H)


def test_the_account_holds_the_held_out_text_and_digests_of_what_was_read():
    account = begin(config_of("attribution")).account()
    for domain, window_WT in account.evidence.items():
        expected = corpus().windows(domain, TINY.window_length, TINY.evaluation_windows)
        assert window_WT.dtype == torch.uint16
        assert torch.equal(window_WT.long(), expected)
    assert account.evidence.keys() == set(corpus().domains)
    assert "calibration windows" in account.read
    assert "calibration windows" not in begin(config_of("random")).account().read
