"""A tiny corpus and base model, and trials that narrow it, for the tests beside this file; what is costly is made once."""

import dataclasses
import functools
import io
import json
import random
import re
import tempfile
from pathlib import Path

import torch

from trainables.llm.anatomy import neurons, residual
from trainables.llm.corpus import Corpus
from trainables.llm.corpus_documents import CorpusConfig
from trainables.llm.corpus_recipe import make_corpus
from trainables.llm.corpus_stream import Stream
from trainables.llm.dissection import dissect
from trainables.llm.narrowing import Narrowing
from trainables.llm.narrowing_config import NarrowingConfig
from trainables.llm.shared_model import unpack_model
from trainables.llm.text_sources import Source
from trainables.llm.training import mean_loss_nats
from trainables.randomness import stream_key

CPU = torch.device("cpu")
TINY = NarrowingConfig.tiny()
STUDENTS = ("distillation", "from_scratch")
LENGTH, BATCH, UPDATES = 32, 4, 4
A_BATCH = BATCH * LENGTH
NUM_BASE = 300 * 16 + 2 * (4 * 16 * 16 + 3 * 16 * 32 + 2 * 16) + 16
"""Parameters: embedding, two blocks of attention, MLP and two norms, the last norm."""
NUM_NARROW = 300 * 12 + 2 * (4 * 12 * 16 + 2 * 12) + 3 * 12 * 32 + 12
"""With 12 dimensions for 16 and 32 neurons in both blocks together, for 64; the heads keep their widths."""
LETTERS = {"python": "abcdefgh_", "prose": "mnopqrst'"}


def texts_of(domain, count=100):
    """Texts of made-up words, the same on every machine."""
    draw = random.Random(domain)
    words = ["".join(draw.choices(LETTERS[domain], k=draw.randint(2, 7))) for _ in range(50)]
    return [" ".join(draw.choices(words, k=100)) for _ in range(count)]


def write_rows(folder):
    """Write the texts of both domains into one file, and return it as a source."""
    rows = [json.dumps({"text": text, "domain": domain}) for domain in LETTERS for text in texts_of(domain)]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    return Source(kind="jsonl", where=str(folder / "rows.jsonl"), domain_column="domain")


@functools.cache
def given():
    """Corpus and base model, as a study's storage gives them."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = make_corpus(CorpusConfig(sources=(write_rows(Path(folder)),), vocabulary=300))
    return {"corpus": corpus, "base": Narrowing.needs(TINY)["base"].make(CPU, {"corpus": corpus})}


def corpus():
    return Corpus.of(given()["corpus"])


def config_of(method="weight_norm", **changes):
    return dataclasses.replace(TINY, method=method, **changes)


def training(**changes):
    return dataclasses.replace(TINY.recovery, **changes)


def begin(config, given=given):
    return Narrowing(config, device=CPU, given=given())


def run(config, given=given):
    """A whole trial, and all that it reported."""
    experiment = begin(config, given)
    return experiment, go_on(experiment)


def go_on(experiment):
    """What is reported until nothing is left to do."""
    reports = []
    while experiment.progress < 1.0:
        reports.append(experiment.step())
    return reports


@functools.cache
def finished(method):
    """A whole trial of a method, with the base model's answers where it has use for them."""
    return run(config_of(method, teacher_share=0.5))


def backwards(pattern):
    """What is given, with the tokens of some splits turned round."""
    tensors = given()["corpus"]
    names = [name for name in tensors if re.fullmatch(f"tokens/{pattern}", name)]
    assert names
    turned = {name: tensors[name].to(torch.int32).flip(0) for name in names}
    return lambda: {**given(), "corpus": tensors | turned}


def base_model():
    return unpack_model(given()["base"])


def rebuilt(experiment):
    """A copy of a trial's model."""
    tensors = {name: tensor.clone() for name, tensor in experiment.model_tensors().items()}
    return Narrowing.rebuild(experiment.config, tensors, experiment.model_files())


def layers_of(model):
    anatomy, tensors = dissect(model), dict(model.named_parameters())
    return [*neurons(anatomy, tensors), residual(anatomy, tensors)]


def kept_units(before, after):
    """Which units of a model are left in the tensors of a cut one, in their order: layer by layer, dimensions last."""
    tensors = dict(before.named_parameters())
    embedding = "model.embed_tokens.weight"
    keep_D = _rows_in(tensors[embedding].T, after[embedding].T)
    keeps = []
    for block in range(2):
        name = f"model.layers.{block}.mlp.up_proj.weight"
        keep_H = _rows_in(tensors[name][:, keep_D], after[name])
        assert torch.equal(tensors[name][keep_H][:, keep_D], after[name])
        keeps.append(keep_H)
    return [*keeps, keep_D]


def _rows_in(matrix, others):
    return (matrix[:, None] == others[None]).all(-1).any(1)


def kept_by(config, given=given):
    """Which units of the base model a way keeps that trains nothing before it prunes."""
    return kept_units(base_model(), begin(config, given).model_tensors())


def best(score_H, count):
    """A bool for each unit: whether it is among the best."""
    keep_H = torch.zeros(len(score_H), dtype=torch.bool)
    keep_H[score_H.topk(count).indices] = True
    return keep_H


def same(tensors, others):
    return tensors.keys() == others.keys() and all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


def less(metrics, *names):
    """Without some of them, or some families."""
    return {name: value for name, value in metrics.items() if not name.startswith(names)}


def held_out(model, domain, texts=None, *, length=LENGTH):
    windows = (texts or corpus()).windows(domain, length, TINY.evaluation_windows)
    return mean_loss_nats(model, windows, batch_size=BATCH)


def stream(weights, stage="recovery", texts=None):
    return Stream(texts or corpus(), weights=weights, length=LENGTH, batch_size=BATCH, seed=stream_key(0, stage))


def sizes_of(tensors):
    """Dimensions, then neurons of each block."""
    downs = [tensor for name, tensor in sorted(tensors.items()) if name.endswith("down_proj.weight")]
    return [tensors["model.embed_tokens.weight"].shape[1], *(down.shape[1] for down in downs)]


def through_a_file(state):
    stored = io.BytesIO()
    torch.save(state, stored)
    stored.seek(0)
    return torch.load(stored, weights_only=True)
