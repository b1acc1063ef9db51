import dataclasses
import io
import math
import statistics

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from tiny_models import CONFIGS, randomised, tiny, tokens
from transformers import AutoModelForCausalLM

from trainables.experiment import DivergedError
from trainables.llm.anatomy import neurons, residual
from trainables.llm.attribution import Attribution
from trainables.llm.attribution_config import AttributionConfig
from trainables.llm.attribution_metrics import correlations, pearson, pearson_of_logs
from trainables.llm.attribution_sample import ablate, draw_sample, whole_batches
from trainables.llm.corpus import Corpus
from trainables.llm.dissection import dissect
from trainables.llm.gates import NextTokenLoss
from trainables.llm.shared_model import pack_model, unpack_model
from trainables.pruning.scores import SCORES
from trainables.shared import Shared
from trainables.storage import Folder

CPU = torch.device("cpu")
TINY = AttributionConfig.tiny()
NUM_NEURONS, NUM_DIMENSIONS = 64, 16
"""Of the tiny base model: two blocks of 32 neurons."""


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Corpus and base model, made once for all tests."""
    shared = Shared(Folder(tmp_path_factory.mktemp("shared")))
    return {name: shared.get(recipe, CPU) for name, recipe in Attribution.needs(TINY).items()}


def begin(given, **changes):
    return Attribution(dataclasses.replace(TINY, **changes), device=CPU, given=given)


def run(given, **changes):
    experiment, reports = begin(given, **changes), []
    while experiment.progress < 1.0:
        reports.append(experiment.step())
    return experiment, reports


def layers_of(family):
    model, anatomy, tensors = tiny(family)
    return model, anatomy, tensors, [*neurons(anatomy, tensors), residual(anatomy, tensors)]


def with_text(given, split, change):
    """The same, with another text in a split of the kept domain."""
    name = f"tokens/{split}/python"
    return given | {"corpus": given["corpus"] | {name: change(given["corpus"][name].to(torch.int32))}}


def test_correlations_are_those_worked_out_by_hand():
    one, other = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 4.0])
    assert pearson(one, other) == pytest.approx(3 / math.sqrt(2 * 14 / 3))
    assert pearson(one, -other) == pytest.approx(-3 / math.sqrt(2 * 14 / 3))
    powers = torch.tensor([1.0, 10.0, 100.0])
    assert pearson_of_logs(powers, powers**2) == pytest.approx(1)
    assert pearson(powers, powers**2) < 0.999


def test_scores_too_small_for_their_squares_correlate_as_larger_ones_do():
    one, other = torch.rand(20), torch.rand(20)
    assert pearson(one * 1e-38, other) == pytest.approx(pearson(one, other), rel=1e-4)


@pytest.mark.parametrize(
    ("one", "other"),
    [([], []), ([1.0, 2.0], [1.0, 2.0]), ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]), ([0.1, 0.1, 0.1], [1.0, 2.0, 4.0])],
)
def test_there_is_no_correlation_of_fewer_than_three_units_or_of_equals(one, other):
    assert pearson(torch.tensor(one), torch.tensor(other)) == 0.0


def test_units_at_zero_are_left_out_of_logarithms_only_and_counted():
    ablation = torch.tensor([1.0, 0.0, 10.0, 100.0, 5.0, 6.0, 7.0])
    score = torch.tensor([2.0, 9.0, 20.0, 200.0, 0.0, 1.0, 1.0])
    is_residual = torch.tensor([False, False, False, False, False, True, True])
    found = correlations(ablation, {"weight_norm": score}, "weight_norm", is_residual)
    assert found["zeros_neurons"] == 2 and found["zeros_residual"] == 0
    assert found["r_log_neurons"] == found["r_log_neurons/weight_norm"] == pytest.approx(1)
    assert found["r_neurons"] == pytest.approx(statistics.correlation(ablation[:5].tolist(), score[:5].tolist()))
    assert found["r_residual"] == found["rank_residual"] == 0.0  # of two


def test_ranks_of_equals_are_their_mean():
    ablation, score = torch.tensor([1.0, 2.0, 3.0, 50.0]), torch.tensor([0.1, 0.2, 0.2, 9.0])
    found = correlations(ablation, {"random": score}, "random", torch.zeros(4, dtype=torch.bool))
    assert found["rank_neurons"] == pytest.approx(statistics.correlation([1.0, 2.0, 3.0, 4.0], [1.0, 2.5, 2.5, 4.0]))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("units_at_once", [1, 3, 100])
def test_ablating_a_sample_gives_what_ablating_all_units_gives_of_it(family, units_at_once):
    model, anatomy, tensors, layers = layers_of(family)
    sample = draw_sample(layers, num_neurons=10, num_dimensions=5, generator=torch.Generator().manual_seed(3))
    losses = [NextTokenLoss(model, anatomy, tokens((1, 6), seed)) for seed in (1, 2)]
    expected = sample.of(SCORES["ablation"](tensors, layers, losses, torch.Generator()))
    found = ablate(tensors, layers, losses, sample, units_at_once=units_at_once)
    assert len(found.unique()) == 15
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_sample_holds_each_unit_at_most_once_of_all_layers_in_a_random_order():
    *_, layers = layers_of("llama")
    sample = draw_sample(layers, num_neurons=60, num_dimensions=10, generator=torch.Generator().manual_seed(0))
    units = list(zip(sample.layer_S.tolist(), sample.index_S.tolist(), strict=True))
    assert len(set(units)) == len(units) == len(sample) == 70
    assert all(0 <= index < layers[layer].count for layer, index in units)
    assert [sum(layer == each for layer, _ in units) > 0 for each in range(3)] == [True, True, True]
    assert sum(layer == 2 for layer, _ in units) == 10  # the residual stream's
    assert 2 <= sum(layer == 2 for layer, _ in units[:35]) <= 8  # neither kind comes first
    again = draw_sample(layers, num_neurons=60, num_dimensions=10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.index_S, sample.index_S)
    everything = draw_sample(layers, num_neurons=1000, num_dimensions=1000, generator=torch.Generator())
    assert len(everything) == sum(units.count for units in layers)


@pytest.mark.parametrize(("num", "batch_size", "left"), [(8, 8, 8), (12, 8, 8), (7, 3, 6), (3, 8, 3), (5, 1, 5)])
def test_windows_that_make_no_whole_batch_are_not_read(num, batch_size, left):
    assert torch.equal(whole_batches(torch.arange(2 * num).reshape(num, 2), batch_size), torch.arange(2 * left).reshape(left, 2))


def test_a_trial_reports_the_correlations_of_its_scores_with_ablation(given):
    experiment, reports = run(given)
    model = unpack_model(given["base"])
    anatomy, tensors = dissect(model), dict(model.named_parameters())
    layers = [*neurons(anatomy, tensors), residual(anatomy, tensors)]
    corpus = Corpus.of(given["corpus"])
    score_windows = corpus.windows("python", 32, 4, "attribution")
    losses = [NextTokenLoss(model, anatomy, part) for part in torch.split(score_windows, 2)]
    ablated_on = [NextTokenLoss(model, anatomy, part) for part in corpus.windows("python", 32, 2, "attribution").split(1)]
    table = experiment.model_tensors()
    is_neuron = table["layer"] < 2
    places = list(zip(table["layer"].tolist(), table["index"].tolist(), strict=True))
    ablation = SCORES["ablation"](tensors, layers, ablated_on, torch.Generator())
    expected = torch.stack([ablation[layer][index] for layer, index in places])
    torch.testing.assert_close(table["ablation"], expected, rtol=0, atol=1e-6)
    for name in ("activation_attribution", "attribution", "abs_gradient_attribution"):
        score = SCORES[name](tensors, layers, losses, torch.Generator())
        values = torch.stack([score[layer][index] for layer, index in places])
        assert torch.equal(table[name], values)
        for kind, chosen in (("neurons", is_neuron), ("residual", ~is_neuron)):
            r = statistics.correlation(values[chosen].tolist(), table["ablation"][chosen].tolist())
            assert reports[-1][f"r_{kind}/{name}"] == pytest.approx(r, abs=1e-6)
    own = "activation_attribution"
    assert reports[-1]["r_neurons"] == reports[-1][f"r_neurons/{own}"] != reports[-1]["r_neurons/attribution"]
    assert reports[-1]["r_log_residual"] == reports[-1][f"r_log_residual/{own}"]


def test_each_step_ablates_some_more_units_and_counts_what_is_read(given):
    _, reports = run(given)
    assert [report["units_ablated"] for report in reports] == [16, 32, 36]  # 20 neurons and all 16 dimensions
    assert [report["ablation_tokens"] for report in reports] == [units * 2 * 33 for units in (16, 32, 36)]
    assert {report["score_tokens"] for report in reports} == {4 * 33}
    assert reports[0]["r_neurons"] != reports[-1]["r_neurons"]


def test_a_step_beyond_the_last_changes_nothing(given):
    experiment, reports = run(given)
    assert experiment.step() == reports[-1]


@pytest.mark.parametrize(("score", "num_tokens"), [("weight_norm", 0), ("random", 0), ("attribution", 132)])
def test_only_scores_that_read_cost_tokens(given, score, num_tokens):
    assert begin(given, score=score, num_neurons=3, num_dimensions=3).step()["score_tokens"] == num_tokens


def test_scores_are_those_that_the_config_names_each_once(given):
    experiment, reports = run(given, score="weight_norm", beside=("random", "weight_norm"), num_neurons=3)
    told = {name.partition("/")[2] for name in reports[-1] if "/" in name}
    assert told == {"weight_norm", "random"}
    assert experiment.model_tensors().keys() == {"layer", "index", "ablation", "weight_norm", "random"}
    assert [panel.x_label for panel in experiment.charts()[0].panels] == ["score by weight norm", "score by random"]


def test_another_seed_ablates_other_units(given):
    tables = [run(given, seed=seed, num_dimensions=3)[0].model_tensors() for seed in (0, 1)]
    assert not torch.equal(tables[0]["index"], tables[1]["index"])


@pytest.mark.parametrize("split", ["attribution", "evaluation"])
def test_ablations_read_their_own_split_and_scores_theirs(given, split):
    config = {"ablation_split": "evaluation", "num_neurons": 3, "num_dimensions": 3}
    changed = with_text(given, split, lambda token_N: token_N.flip(0))
    before, after = (run(each, **config)[0].model_tensors() for each in (given, changed))
    assert torch.equal(before["attribution"], after["attribution"]) == (split != "attribution")
    assert torch.equal(before["ablation"], after["ablation"]) == (split != "evaluation")


def test_the_size_of_a_batch_matters_to_scores_with_an_absolute_value_a_batch(given):
    one, four = (run(given, batch_size=size, num_neurons=3, num_dimensions=3)[0].model_tensors() for size in (1, 4))
    assert not torch.allclose(one["activation_attribution"], four["activation_attribution"], rtol=0.01)
    torch.testing.assert_close(one["attribution"], four["attribution"], rtol=1e-3, atol=1e-7)


def test_a_resumed_trial_makes_no_score_again(given, monkeypatch):
    experiment = begin(given)
    experiment.step()
    stored = io.BytesIO()
    torch.save(experiment.state_dict(), stored)
    stored.seek(0)
    again = begin(given)
    again.load_state_dict(torch.load(stored, weights_only=True))
    monkeypatch.setattr(Attribution, "_score", None)
    assert again.step() == experiment.step()


def test_a_model_of_another_family_is_scored_and_ablated(given):
    config = CONFIGS["gpt2"]()
    config.vocab_size, config.n_positions = 300, 64
    model = randomised(AutoModelForCausalLM.from_config(config))
    _, reports = run(given | {"base": pack_model(model)}, num_neurons=12, num_dimensions=8)
    assert reports[-1]["units_ablated"] == 20
    assert reports[-1]["rank_neurons"] > 0.3


def test_a_window_longer_than_the_model_takes_is_refused(given):
    config = CONFIGS["gpt2"]()
    config.vocab_size = 300
    short = given | {"base": pack_model(AutoModelForCausalLM.from_config(config))}
    begin(short, score_length=31, ablation_length=31)
    with pytest.raises(ValueError, match="ablation_length must be below the model's limit of 32 tokens, but got 32; use shorter"):
        begin(short, score_length=31, ablation_length=32)
    with pytest.raises(ValueError, match="score_length must be below the model's limit of 32 tokens"):
        begin(short, score_length=32, ablation_length=31)


def test_a_model_that_does_not_know_the_corpus_tokens_is_refused(given):
    model = AutoModelForCausalLM.from_config(CONFIGS["gpt2"]())  # of 61 tokens
    with pytest.raises(ValueError, match=r"a tokenizer must fit the model, with tokens in 0\.\.60"):
        begin(given | {"base": pack_model(model)})


def test_a_domain_that_the_corpus_lacks_is_refused(given):
    without = {name: tensor for name, tensor in given["corpus"].items() if "python" not in name}
    with pytest.raises(ValueError, match="a corpus must have 'python', but got prose; name a kept_domain of it"):
        begin(given | {"corpus": without})


def test_a_model_of_numbers_that_are_not_finite_ends_the_trial(given):
    name = "model.norm.weight"
    broken = given["base"] | {name: torch.full_like(given["base"][name], math.nan)}
    with pytest.raises(DivergedError, match="scores must be finite, but those by ablation, activation_attribution"):
        begin(given | {"base": broken}).step()


@pytest.mark.parametrize(
    ("change", "law"),
    [
        ({"score": "ablation"}, "scores must be of abs_gradient_attribution, .*, but got 'ablation'; use attribution"),
        ({"beside": ("attribution", "taylor")}, "scores must be of .*, but got 'taylor'"),
        ({"num_neurons": 2}, "num_neurons must be at least 3, for fewer units have no correlation, but got 2"),
        ({"num_dimensions": 0}, "num_dimensions must be at least 3"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"score_windows": 0}, "score_windows must be at least 1"),
        ({"ablation_split": "held out"}, "ablation_split must be one of attribution, training, evaluation, but got 'held out'"),
        ({"kept_domain": "cpp"}, "kept_domain must be a domain of the corpus, but got 'cpp'; use one of prose, python"),
        ({"base": dataclasses.replace(TINY.base, weights={"cpp": 1.0})}, "the base's weights must be of domains of the corpus"),
    ],
)
def test_impossible_configs_are_refused(change, law):
    with pytest.raises(ValueError, match=law):
        dataclasses.replace(TINY, **change)
