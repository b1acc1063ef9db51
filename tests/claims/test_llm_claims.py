"""Figs 5, 6, 11 and 13 of arXiv:2505.15811 on a Llama of 0.3 million parameters and the text of the installed packages.

Bands are the least and the most of a few seeds, or of Fig 11, where every unit counts, nine in ten draws of the units.
`pytest -m claim -s` shows the numbers; only what is robust is asserted.
"""

import copy
import dataclasses
import statistics
from functools import partial
from itertools import pairwise

import pytest
import torch

from trainables.experiment import build_experiment
from trainables.llm.anatomy import neurons
from trainables.llm.attribution import Attribution
from trainables.llm.attribution_config import AttributionConfig
from trainables.llm.attribution_metrics import pearson_of_logs
from trainables.llm.base import BaseConfig
from trainables.llm.corpus import Corpus
from trainables.llm.corpus_documents import CorpusConfig
from trainables.llm.corpus_stream import Stream
from trainables.llm.dissection import dissect
from trainables.llm.gates import NextTokenLoss
from trainables.llm.narrowing import Narrowing
from trainables.llm.narrowing_config import NarrowingConfig
from trainables.llm.shared_model import unpack_model
from trainables.llm.training import Trainer, Training, mean_loss_nats
from trainables.pruning.penalties import add_group_lasso_gradient
from trainables.pruning.scores import SCORES
from trainables.pruning.selection import choose_kept
from trainables.pruning.surgery import mask
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
    evaluation_windows=32,
    updates_per_step=10,
)
SIZES = ((0.5, 0.2), (0.8, 0.3), (0.9, 0.5))  # neuron and residual sparsity
TARGET_NATS = 4.2
LASSO = Training(updates=200, batch_size=8, learning_rate=2e-3)
STRENGTHS = (0.0, 2e-3, 4e-3, 1e-2)
SPARSITIES = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
FLAT_NATS = 0.05  # above the unpruned loss: still flat


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    torch.set_num_threads(2)
    yield Shared(Folder(tmp_path_factory.mktemp("shared")))
    torch.set_num_threads(1)


def run(shared, experiment_class, config):
    """A finished trial, and its last report."""
    experiment = build_experiment(experiment_class, config, device=CPU, shared=shared)
    while experiment.progress < 1.0:
        report = experiment.step()
    return experiment, report


def narrow(shared, **changes):
    return run(shared, Narrowing, dataclasses.replace(CONFIG, **changes))[1]


def band(values):
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def test_attribution_beats_random_pruning_before_recovery_and_hardly_after_at_equal_sparsity(shared):
    """Fig 13, with random units drawn without replacement."""
    gaps = []
    for seed in range(3):
        sizes = {"neuron_sparsity": 0.8, "residual_sparsity": 0.3, "seed": seed}
        scored, drawn = (narrow(shared, method=method, **sizes) for method in ("attribution", "random"))
        assert scored["neurons_kept"] == drawn["neurons_kept"]
        gaps.append([drawn[name] - scored[name] for name in ("pruned_loss_nats", "kept_loss_nats")])
    before, after = zip(*gaps, strict=True)
    print(f"\nrandom costs {band(before)} nats more before recovery, {band(after)} after 100 updates")
    assert min(before) > 0.5
    assert max(late / early for early, late in gaps) < 0.4


def test_pruning_reaches_a_loss_with_fewer_tokens_than_distillation_and_training_from_scratch(shared):
    """Fig 6, at three sizes."""
    for neuron_sparsity, residual_sparsity in SIZES:
        sizes = {"neuron_sparsity": neuron_sparsity, "residual_sparsity": residual_sparsity, "target_loss_nats": TARGET_NATS}
        reports = {
            method: [narrow(shared, method=method, seed=seed, **sizes) for seed in range(2)]
            for method in ("attribution", "distillation", "from_scratch")
        }
        tokens = {method: [report["tokens_to_target"] for report in found] for method, found in reports.items()}
        told = (
            f"{method} {' and '.join(f'{each:.0f}' for each in sorted(set(tokens[method])))}"
            + ("" if all(report["reached_target"] for report in found) else " and more")
            for method, found in reports.items()
        )
        size = reports["attribution"][0]["parameters_kept"]
        print(f"\n{size:.0f} parameters, tokens to {TARGET_NATS} nats, two seeds: {', '.join(told)}")
        assert all(report["reached_target"] for report in reports["attribution"])
        for method in ("distillation", "from_scratch"):
            assert max(tokens["attribution"]) < min(tokens[method])


def test_signed_attribution_tells_what_a_neuron_matters_better_than_absolute_gradients_and_neither_tells_of_dimensions(shared):
    """Fig 11, and the score that the authors pruned by in Figs 6, 12 and 13."""
    bands = agreement(shared, ("attribution", "abs_gradient_attribution"))
    low, _, _ = bands["neurons", "attribution"]
    assert low > 0.5
    assert low > max(high for name, (_, _, high) in bands.items() if name != ("neurons", "attribution"))


def test_signed_attribution_owes_much_of_its_agreement_to_the_text_being_the_same(shared):
    """Not in the paper: where ablations are of held-out text, scores without cancellation tell more."""
    scores = ("attribution", "activation_attribution", "sample_activation_attribution", "weight_norm")
    same, other = (agreement(shared, scores, ablation_split=split) for split in ("attribution", "evaluation"))
    assert other["neurons", "attribution"][2] < same["neurons", "attribution"][0]
    assert other["neurons", "sample_activation_attribution"][1] > other["neurons", "attribution"][1] + 0.1


def agreement(shared, scores, **changes):
    """Hold scores against ablations: low end, log-log correlation and high end, by kind of unit and score."""
    config = AttributionConfig(corpus=CONFIG.corpus, base=CONFIG.base, beside=scores, **changes)
    trial, report = run(shared, Attribution, config)
    table, found = trial.model_tensors(), {}
    is_neuron = table["layer"] < CONFIG.base.num_layers
    print(f"\nr and r of logarithms with ablation on the text for {config.ablation_split}")
    for kind, is_kind in (("neurons", is_neuron), ("residual", ~is_neuron)):
        for score in scores:
            low, high = band_of_draws(table[score][is_kind], table["ablation"][is_kind])
            r, r_log = report[f"r_{kind}/{score}"], report[f"r_log_{kind}/{score}"]
            print(f"{score:>30}, {int(is_kind.sum()):3} {kind:8} {r:5.2f} {r_log:5.2f} [{low:.2f}, {high:.2f}]")
            found[kind, score] = low, r_log, high
    return found


def band_of_draws(score_S, ablation_S):
    """What the log-log correlation is between in nine of ten draws of as many units, with replacement (bootstrap)."""
    draws = torch.randint(len(score_S), (1000, len(score_S)), generator=torch.Generator().manual_seed(0))
    found = sorted(pearson_of_logs(score_S[place_S], ablation_S[place_S]) for place_S in draws)
    return found[50], found[950]


def test_after_the_lasso_the_loss_is_flat_to_a_sparsity_that_grows_with_its_strength_as_the_unpruned_loss_does(shared):
    """Fig 5, left: neurons are masked by weight norm after a lasso, by attribution without one; nothing recovers."""
    curves = {strength: [sparsity_curve(shared, strength, seed) for seed in range(3)] for strength in STRENGTHS}
    knees = {strength: [knee(curve) for curve in found] for strength, found in curves.items()}
    print("\nheld-out loss on Python, nats, at sparsity" + "".join(f"{sparsity:>20}" for sparsity in SPARSITIES) + "  flat to")
    for strength, found in curves.items():
        cells = "".join(f"{band(losses):>20}" for losses in zip(*found, strict=True))
        print(f"lasso of strength {strength:<24}{cells}  {min(knees[strength])} to {max(knees[strength])}")
    for weaker, stronger in pairwise(STRENGTHS):
        assert max(curve[0] for curve in curves[weaker]) < min(curve[0] for curve in curves[stronger])
        assert max(knees[weaker]) <= min(knees[stronger])
    assert max(knees[STRENGTHS[0]]) < 0.3
    assert min(knees[STRENGTHS[-1]]) >= 0.6


def sparsity_curve(shared, strength, seed):
    """Train the base model on Python under the lasso, mask neurons: the held-out loss at every sparsity, in nats."""
    given = {name: shared.get(recipe, CPU) for name, recipe in Narrowing.needs(CONFIG).items()}
    corpus, model = Corpus.of(given["corpus"]), unpack_model(given["base"])
    anatomy, tensors = dissect(model), dict(model.named_parameters())
    layers = neurons(anatomy, tensors)
    stream = Stream(corpus, weights={"python": 1.0}, length=LASSO.length, batch_size=LASSO.batch_size, seed=seed)
    penalise = partial(add_group_lasso_gradient, layers=layers, strength=strength)
    Trainer(model, stream, LASSO, add_penalty=penalise).run(LASSO.updates)
    parts = torch.split(corpus.windows("python", LASSO.length, 32, "attribution"), 16)
    losses = [NextTokenLoss(model, anatomy, part) for part in parts]
    scores = SCORES["weight_norm" if strength else "attribution"](tensors, layers, losses, torch.Generator())
    held_out = corpus.windows("python", LASSO.length, 48)
    return [mean_loss_nats(masked(model, layers, choose_kept(scores, share)), held_out, batch_size=16) for share in SPARSITIES]


def masked(model, layers, keep):
    model = copy.deepcopy(model)
    for units, keep_H in zip(layers, keep, strict=True):
        mask(dict(model.named_parameters()), units, keep_H)
    return model


def knee(losses):
    """The last sparsity up to which the loss is flat."""
    flat = [loss <= losses[0] + FLAT_NATS for loss in losses]
    return max(sparsity for place, sparsity in enumerate(SPARSITIES) if all(flat[: place + 1]))
