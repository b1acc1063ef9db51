import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from toy_model import VOCABULARY, Model, windows

from trainables.experiment import DivergedError
from trainables.llm.training import mean_loss_nats


def test_the_mean_loss_is_that_of_every_token_but_the_first_of_each_window():
    """Uneven batches must not weigh their windows unevenly."""
    model, window_WT, total = Model(), windows(), 0.0
    for window in window_WT.tolist():
        for token, following in pairwise(window):
            logits = model(torch.tensor([[token]]), use_cache=False).logits[0, 0].double()
            total += (logits.exp().sum().log() - logits[following]).item()
    for batch_size in (1, 2, 3, 7, 100):
        assert mean_loss_nats(model, window_WT, batch_size=batch_size) == pytest.approx(total / 56, abs=1e-6)


def test_a_model_that_knows_nothing_has_the_loss_of_a_guess():
    model = Model()
    nn.init.zeros_(model.head.weight)
    assert mean_loss_nats(model, windows(), batch_size=4) == pytest.approx(math.log(VOCABULARY), abs=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_mean_loss_that_is_not_finite_ends_in_a_sentence(bad):
    model = Model()
    nn.init.constant_(model.head.weight, bad)
    with pytest.raises(DivergedError, match="losses must be finite, but got nan nats; lower the learning rate"):
        mean_loss_nats(model, windows(), batch_size=4)
