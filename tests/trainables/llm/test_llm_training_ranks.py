import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_of_ranks import WAYS, train

from trainables.llm import loss_head
from trainables.llm.training_ranks import num_ranks, rank

SIZE = 2


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes have left that train together, on CPU."""
    folder, script = tmp_path_factory.mktemp("ranks"), Path(__file__).with_name("training_of_ranks.py")
    # the package need not be installed: pytest alone may know where it is
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(number), str(SIZE), folder], env=environment, stderr=subprocess.PIPE, text=True
        )
        for number in range(SIZE)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * SIZE, errors
    return [torch.load(folder / f"{number}.pt") for number in range(SIZE)]


@pytest.mark.parametrize("way", WAYS)
def test_ranks_make_the_updates_of_one_process_and_agree_to_the_last_bit(way, ranks, monkeypatch):
    monkeypatch.setattr(loss_head, "FEW_LOGITS", 0)
    one, other = (each["left"][way] for each in ranks)
    alone = train(way)
    assert all(torch.equal(one[name], other[name]) for name in alone)
    torch.testing.assert_close(one, alone, rtol=1e-5, atol=1e-5)


def test_the_ways_differ(ranks):
    """So the test above sees each."""
    weights = [ranks[0]["left"][way]["head.weight"] for way in ("plain", "penalty", "proximal", "teacher")]
    for index, weight in enumerate(weights):
        assert not any(torch.allclose(weight, another, rtol=1e-4, atol=1e-4) for another in weights[:index])


def test_a_loss_that_is_not_finite_in_one_rank_ends_all(ranks):
    for each in ranks:
        assert each["said"]["diverged"] == "the loss must be finite, but is nan at learning rate 0.02; lower it"


def test_a_batch_that_ranks_cannot_share_equally_is_refused_in_a_sentence(ranks):
    law = "batch_size must be a multiple of the 2 processes that train together, but got 5; use 6"
    assert [each["said"]["odd"] for each in ranks] == [law, law]


def test_a_process_alone_is_rank_0_of_1():
    assert (rank(), num_ranks()) == (0, 1)
