"""Figs 6, 11 and 13 of arXiv:2505.15811 on a Llama of 0.3 million parameters and the text of the installed packages.

`pytest -m claim -s` shows the numbers; only what is robust is asserted.
"""

import dataclasses
import math
import statistics

import pytest
import torch

from trainables.experiment import build_experiment
from trainables.llm.anatomy import neurons
from trainables.llm.base import BaseConfig, build_llama, load_parameters
from trainables.llm.corpus import Corpus
from trainables.llm.corpus_documents import CorpusConfig
from trainables.llm.dissection import dissect
from trainables.llm.gates import NextTokenLoss
from trainables.llm.narrowing import Narrowing
from trainables.llm.narrowing_config import NarrowingConfig
from trainables.llm.training import Training
from trainables.pruning.scores import SCORES
from trainables.shared import Shared
from trainables.storage import Folder

pytestmark = pytest.mark.claim

CPU = torch.device("cpu")
CONFIG = NarrowingConfig(
    corpus=CorpusConfig(vocabulary=512),
    base=BaseConfig(training=Training(updates=600, learning_rate=4e-3, warmup=50)),
    recovery=Training(updates=100, learning_rate=2e-3),
    relearning=Training(updates=10),
    relearning_rates=(1e-3,),
    score_windows=32,
    updates_per_step=10,
)
SIZES = ((0.5, 0.2), (0.8, 0.3), (0.9, 0.5))  # neuron and residual sparsity
TARGET_NATS = 4.2


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    torch.set_num_threads(2)
    yield Shared(Folder(tmp_path_factory.mktemp("shared")))
    torch.set_num_threads(1)


def run(shared, **changes):
    """The last report of a trial."""
    experiment = build_experiment(Narrowing, dataclasses.replace(CONFIG, **changes), device=CPU, shared=shared)
    while experiment.progress < 1.0:
        report = experiment.step()
    return report


def test_attribution_beats_random_pruning_before_recovery_and_hardly_after_at_equal_sparsity(shared):
    """Fig 13, with random units drawn without replacement."""
    gaps = []
    for seed in range(3):
        sizes = {"neuron_sparsity": 0.8, "residual_sparsity": 0.3, "seed": seed}
        scored, drawn = (run(shared, method=method, **sizes) for method in ("attribution", "random"))
        assert scored["neurons_kept"] == drawn["neurons_kept"]
        before, after = (drawn[name] - scored[name] for name in ("pruned_loss_nats", "kept_loss_nats"))
        print(f"\nseed {seed}: random costs {before:.2f} nats more before recovery, {after:.2f} after 100 updates")
        gaps.append((before, after))
    assert min(before for before, _ in gaps) > 0.5
    assert max(after / before for before, after in gaps) < 0.4


def test_pruning_reaches_a_loss_with_fewer_tokens_than_distillation_and_training_from_scratch(shared):
    """Fig 6, at three sizes."""
    for neuron_sparsity, residual_sparsity in SIZES:
        sizes = {"neuron_sparsity": neuron_sparsity, "residual_sparsity": residual_sparsity, "target_loss_nats": TARGET_NATS}
        reports = {method: run(shared, method=method, **sizes) for method in ("attribution", "distillation", "from_scratch")}
        told = (
            f"{method} {report['tokens_to_target']:.0f}" + ("" if report["reached_target"] else " and more")
            for method, report in reports.items()
        )
        print(f"\n{reports['attribution']['parameters_kept']:.0f} parameters, tokens to {TARGET_NATS} nats: {', '.join(told)}")
        assert reports["attribution"]["reached_target"] == 1.0
        for method in ("distillation", "from_scratch"):
            assert reports["attribution"]["tokens_to_target"] < reports[method]["tokens_to_target"]


def test_signed_attribution_tells_more_of_ablation_than_absolute_gradients_do(shared):
    """Fig 11, and the score that the authors pruned by in Figs 6, 12 and 13."""
    recipes = Narrowing.needs(CONFIG)
    corpus = Corpus.of(shared.get(recipes["corpus"], CPU))
    model = build_llama(CONFIG.base, corpus.largest_id + 1)
    load_parameters(model, shared.get(recipes["base"], CPU))
    anatomy = dissect(model)
    tensors = dict(model.named_parameters())
    layers = neurons(anatomy, tensors)
    losses = [NextTokenLoss(model, anatomy, part) for part in torch.split(corpus.windows("python", 128, 8, "attribution"), 4)]
    names = ("ablation", "attribution", "abs_gradient_attribution")
    scores = {name: torch.cat(SCORES[name](tensors, layers, losses, torch.Generator())) for name in names}
    signed, absolute = (correlation(scores["ablation"], scores[name]) for name in names[1:])
    count = len(scores["ablation"])
    print(f"\nlog-log correlation with ablation over {count} neurons: signed {signed:.2f}, |gradient| {absolute:.2f}")
    assert signed > absolute
    assert signed > 0.5


def correlation(one, other):
    """Pearson's r of the logarithms, of the units where neither score is 0."""
    both = (one > 0) & (other > 0)
    return statistics.correlation(*([math.log(value) for value in scores[both].tolist()] for scores in (one, other)))
