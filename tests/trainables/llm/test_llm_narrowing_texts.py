import json

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from narrowing_trials import (
    CPU,
    LENGTH,
    TINY,
    backwards,
    base_model,
    begin,
    config_of,
    corpus,
    finished,
    given,
    held_out,
    less,
    rebuilt,
    run,
    same,
    stream,
    training,
)

from trainables.experiment import build_experiment
from trainables.llm.base import build_llama
from trainables.llm.corpus import Corpus
from trainables.llm.corpus_documents import CorpusConfig
from trainables.llm.narrowing import Narrowing
from trainables.llm.shared_model import pack_model
from trainables.llm.text_sources import Source
from trainables.llm.training import Trainer, mean_loss_nats
from trainables.shared import Shared
from trainables.storage import Folder


@pytest.mark.parametrize("method", ["group_lasso", "attribution", "distillation"])
def test_on_the_kept_domain_alone_no_other_text_is_trained_on_or_scored(method):
    """All but relearning, which is of the others."""
    experiment, reports = run(config_of(method, teacher_share=0.5), backwards("(training|attribution)/prose"))
    expected = finished(method)
    assert same(experiment.model_tensors(), expected[0].model_tensors())
    for ours, theirs in zip(reports, expected[1], strict=True):
        assert less(ours, "relearned_loss_nats") == less(theirs, "relearned_loss_nats")
    assert reports[-1]["relearned_loss_nats"] != expected[1][-1]["relearned_loss_nats"]


def reads_prose(**changes):
    """Whether the first step of a trial that begins with a lasso depends on prose to train on."""
    config = config_of("group_lasso", lasso=training(updates=2), recovery=training(updates=2), **changes)
    trials = begin(config), begin(config, backwards("training/prose"))
    found = []
    for _ in range(2):  # lasso, then recovery
        for trial in trials:
            trial.step()
        found.append(not same(*(trial.model_tensors() for trial in trials)))
    return found


def test_breadth_is_of_recovery_and_lasso_breadth_of_the_lasso():
    """What the lasso read stays in the model."""
    assert reads_prose() == [False, False]
    assert reads_prose(breadth=0.5) == [False, True]
    assert reads_prose(lasso_breadth=0.5) == [True, True]


def test_breadth_is_the_share_of_the_other_domains():
    experiment = begin(config_of("weight_norm", breadth=0.25, updates_per_step=4))
    model = rebuilt(experiment)
    Trainer(model, stream({"python": 0.75, "prose": 0.25}), experiment.config.recovery).run(4)
    assert experiment.step()["kept_loss_nats"] == pytest.approx(held_out(model, "python"), abs=1e-6)


def test_the_breadth_of_the_lasso_is_the_share_of_the_other_domains():
    """A strength next to nothing, so that updates are those without a lasso."""
    lasso = training(updates=4)
    experiment = begin(config_of("group_lasso", lasso=lasso, lasso_strength=1e-30, lasso_breadth=0.25, updates_per_step=3))
    model = base_model()
    Trainer(model, stream({"python": 0.75, "prose": 0.25}, "lasso"), lasso).run(3)
    assert experiment.step()["kept_loss_nats"] == pytest.approx(held_out(model, "python"), abs=1e-6)


@pytest.mark.parametrize("method", ["group_lasso", "attribution", "distillation"])
def test_held_out_text_decides_nothing(method):
    experiment, reports = run(config_of(method, teacher_share=0.5), backwards("evaluation/.*"))
    expected = finished(method)
    assert same(experiment.model_tensors(), expected[0].model_tensors())
    assert reports[-1]["kept_loss_nats"] != expected[1][-1]["kept_loss_nats"]


@pytest.mark.parametrize("length", [7, 64])
def test_losses_are_of_windows_of_their_own_length(length):
    """Whatever the length of the sequences that are trained on."""
    experiment = begin(config_of("attribution", window_length=length))
    report = experiment.step()
    for domain in ("prose", "python"):
        assert report[f"loss_nats/{domain}"] == pytest.approx(held_out(rebuilt(experiment), domain, length=length), abs=1e-6)
    assert report["tokens_spent"] == 4 * (length + 1) + 256


THREE = CorpusConfig(domains=("python", "prose", "cpp"), domain_bytes=60_000, vocabulary=300)


def with_a_third_domain():
    """Prose backwards, as if it were a language of its own."""
    tensors = given()["corpus"]
    turned = {split: tensors[f"tokens/{split}/prose"].to(torch.int32).flip(0) for split in ("training", "evaluation")}
    return {**given(), "corpus": {**tensors, **{f"tokens/{split}/cpp": token_N for split, token_N in turned.items()}}}


def others_mean(model, texts):
    return sum(held_out(model, domain, texts) for domain in ("cpp", "prose")) / 2


@pytest.mark.parametrize(
    ("other_weights", "shares"),
    [
        ({}, {"python": 0.5, "prose": 0.25, "cpp": 0.25}),
        ({"prose": 3.0, "cpp": 1.0}, {"python": 0.5, "prose": 0.375, "cpp": 0.125}),
        ({"cpp": 7.0}, {"python": 0.5, "cpp": 0.5}),
    ],
)
def test_other_weights_share_out_the_breadth_and_all_domains_are_taught_again_alike(other_weights, shares):
    texts = Corpus.of(with_a_third_domain()["corpus"])
    config = config_of(
        "weight_norm", corpus=THREE, breadth=0.5, other_weights=other_weights, updates_per_step=4, relearning_rates=(3e-3,)
    )
    experiment = begin(config, with_a_third_domain)
    model = rebuilt(experiment)
    reports = [experiment.step(), experiment.step()]
    Trainer(model, stream(shares, texts=texts), config.recovery).run(4)
    assert reports[0]["kept_loss_nats"] == pytest.approx(held_out(model, "python", texts), abs=1e-6)
    assert reports[0]["other_loss_nats"] == pytest.approx(others_mean(model, texts), abs=1e-6)
    Trainer(model, stream({"prose": 1.0, "cpp": 1.0}, "relearning", texts), config.relearning_at(3e-3)).run(2)
    assert reports[1]["relearned_loss_nats"] == pytest.approx(others_mean(model, texts), abs=1e-6)


def test_every_domain_has_its_losses_and_its_line():
    experiment = begin(config_of("random", corpus=THREE), with_a_third_domain)
    families = [name for name in experiment.step() if name.startswith("loss_nats/")]
    assert families == ["loss_nats/cpp", "loss_nats/prose", "loss_nats/python"]
    (panel,) = experiment.charts()[0].panels
    assert [(series.label, series.dashed) for series in panel.series] == [
        ("cpp", True), ("prose", True), ("python (kept)", False),
    ]  # fmt: skip


def with_named_rows(**changes):
    """A corpus whose domains are not known before it is read."""
    rows = Source(kind="jsonl", where="rows.jsonl", domain_column="language")
    return config_of(corpus=CorpusConfig(sources=(rows,), domain_bytes=60_000, vocabulary=300), **changes)


def test_domains_that_only_the_corpus_knows_will_do():
    assert run(with_named_rows(method="random", teacher_share=0.5))[1] == finished("random")[1]


@pytest.mark.parametrize("method", ["weight_norm", "from_scratch", "group_lasso"])
def test_a_kept_domain_that_the_corpus_turns_out_not_to_have_is_refused(method):
    with pytest.raises(ValueError, match="a corpus must have 'rust' and another domain, but got prose, python; name"):
        begin(with_named_rows(method=method, kept_domain="rust"))


def test_a_corpus_that_turns_out_to_have_one_domain_is_refused():
    alone = {name: tensor for name, tensor in given()["corpus"].items() if not name.endswith("/prose")}
    with pytest.raises(ValueError, match="a corpus must have 'python' and another domain, but got python; name"):
        begin(with_named_rows(method="weight_norm"), lambda: {**given(), "corpus": alone})


def test_other_weights_of_a_domain_that_the_corpus_turns_out_not_to_have_are_refused():
    with pytest.raises(ValueError, match=r"a mixture's domains must be of the corpus \(prose, python\), but got rust"):
        begin(with_named_rows(method="random", breadth=0.5, other_weights={"rust": 1.0})).step()


def test_a_domain_without_documents_ends_a_trial_in_a_sentence(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "some words", "language": "prose"}))
    rows = Source(kind="jsonl", where=str(tmp_path / "rows.jsonl"), domain_column="language")
    config = config_of(corpus=CorpusConfig(sources=(rows,), domains=("python", "prose"), vocabulary=300))
    with pytest.raises(ValueError, match="every domain of a corpus must have documents, but got none of python; name sources"):
        build_experiment(Narrowing, config, device=CPU, shared=Shared(Folder(tmp_path / "shared")))


def test_windows_longer_than_a_split_are_refused():
    with pytest.raises(ValueError, match=r"a sequence must be no longer than the \d+ tokens of domain p\w+ for evaluation"):
        begin(config_of(window_length=10**6))


def test_losses_read_at_most_the_windows_that_there_are():
    experiment = begin(config_of("from_scratch", evaluation_windows=10**6))
    expected = mean_loss_nats(rebuilt(experiment), corpus().windows("python", LENGTH, 10**6), batch_size=7)
    assert experiment.step()["pruned_loss_nats"] == pytest.approx(expected, abs=1e-6)
    assert expected != pytest.approx(finished("from_scratch")[1][0]["pruned_loss_nats"], abs=1e-6)


def with_limit(limit, vocabulary=300):
    """A base model that takes short sequences."""
    model = build_llama(TINY.base, vocabulary)
    model.config.max_position_embeddings = limit
    return lambda: {**given(), "base": pack_model(model)}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, "window_length"),
        ({"window_length": 16}, "recovery.length"),
        ({"window_length": 16, "recovery": training(length=16)}, "relearning.length"),
        ({"window_length": 16, "recovery": training(length=16), "method": "group_lasso"}, "lasso.length"),
    ],
)
def test_sequences_longer_than_a_model_takes_are_refused_by_name(changes, named):
    law = f"{named} must be at most the model's limit of 16 tokens, but got 32; use shorter sequences"
    with pytest.raises(ValueError, match=law):
        begin(config_of(**{"method": "random", **changes}), with_limit(16)).step()


def test_sequences_as_long_as_a_model_takes_will_do_but_attribution_shows_it_one_token_more():
    begin(config_of("weight_norm"), with_limit(32)).step()
    begin(config_of("attribution"), with_limit(33)).step()
    law = "window_length must be below the model's limit of 32 tokens for attribution, but got 32; use shorter windows"
    with pytest.raises(ValueError, match=law):
        begin(config_of("attribution"), with_limit(32)).step()


@pytest.mark.parametrize("method", ["random", "from_scratch"])
def test_a_model_that_does_not_know_the_corpus_tokens_is_refused(method):
    law = r"a tokenizer must fit the model, with tokens in 0\.\.99, but got a token \d+; use the model's own tokenizer"
    with pytest.raises(ValueError, match=law):
        begin(config_of(method), with_limit(4096, vocabulary=100)).step()


def test_a_model_may_know_more_tokens_than_the_corpus_has():
    assert begin(config_of("random"), with_limit(4096, vocabulary=400)).step()["parameters_kept"] > 300 * 12
