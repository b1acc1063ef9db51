import pytest
import torch

from trainables.cmsp.task import Batches, Task
from trainables.randomness import stream_key

TASK = Task(num_task_bits=20, num_atoms=3, bits_per_atom=4)


def draw(task=TASK, counts=None, num_networks=2, index=0):
    keys = torch.tensor([stream_key(seed, "data") for seed in range(num_networks)])
    return Batches(task, counts or {(0,): 5, (2,): 7, (0, 1, 2): 11}, keys).draw(index)


def test_a_sample_shows_its_code_in_its_control_bits():
    x_PBI, _ = draw()
    assert x_PBI.shape == (2, 23, 32)
    assert x_PBI[0, :5, :3].tolist() == [[1, 0, 0]] * 5
    assert x_PBI[0, 5:12, :3].tolist() == [[0, 0, 1]] * 7
    assert x_PBI[1, 12:, :3].tolist() == [[1, 1, 1]] * 11


def test_the_label_is_the_parity_of_the_bits_that_the_active_atoms_own():
    x_PBI, y_PB = draw(counts={(0,): 100, (1, 2): 100}, num_networks=3)
    bits = x_PBI[..., 3:23]
    assert torch.equal(y_PB[:, :100], bits[:, :100, 0:4].sum(-1).remainder(2))
    assert torch.equal(y_PB[:, 100:], bits[:, 100:, 4:12].sum(-1).remainder(2))


@pytest.mark.parametrize("num_task_bits", [12, 32, 64, 96])
def test_any_number_of_task_bits_gives_fair_zeros_and_ones(num_task_bits):
    task = Task(num_task_bits=num_task_bits, num_atoms=3, bits_per_atom=4)
    x_PBI, y_PB = draw(task, {(0, 1, 2): 4000})
    x_PBI = x_PBI[..., : 3 + num_task_bits]
    assert set(x_PBI.unique().tolist()) == {0.0, 1.0}
    assert (x_PBI[..., 3:].mean(dim=1) - 0.5).abs().max() < 0.05
    assert abs(y_PB.float().mean() - 0.5) < 0.05
    assert torch.equal(y_PB, x_PBI[..., 3:15].sum(-1).remainder(2))


def test_every_batch_is_fresh_and_the_same_index_repeats_it():
    assert torch.equal(draw(index=3)[0], draw(index=3)[0])
    assert not torch.equal(draw(index=3)[0], draw(index=4)[0])


def test_a_networks_batch_does_not_depend_on_its_company():
    assert torch.equal(draw(num_networks=5)[0][:2], draw(num_networks=2)[0])


def test_atoms_must_fit_into_the_task_bits():
    with pytest.raises(ValueError, match=r"num_task_bits must be at least num_atoms \* bits_per_atom = 12, but got 11"):
        Task(num_task_bits=11, num_atoms=3, bits_per_atom=4)


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="at least one sample"):
        draw(counts={(0,): 0, (1,): 0})


def test_after_the_bits_come_a_one_for_the_bias_and_zeros():
    x_PBI, _ = draw()
    assert (x_PBI[..., 23] == 1).all()
    assert (x_PBI[..., 24:] == 0).all()
