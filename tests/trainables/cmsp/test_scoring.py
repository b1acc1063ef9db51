import math

import pytest
import torch

from trainables.cmsp.networks import Shape, join, split
from trainables.cmsp.scoring import CrossEntropy, score_neurons
from trainables.cmsp.task import Batches, Task
from trainables.pruning.scores import SCORES
from trainables.pruning.surgery import remove
from trainables.randomness import generator, stream_key
from trainables.relu_networks import for_modules, initial_network, modules

TASK = Task(num_task_bits=8, num_atoms=4, bits_per_atom=2)
XOR = Task(num_task_bits=4, num_atoms=4, bits_per_atom=1)
A = (0, 1)


def make(seed=0, widths=(9, 13)):
    shape = Shape(num_inputs=TASK.num_inputs, widths=widths)
    return shape, initial_network(shape.layers, generator(seed, "weights"))


def batch(num_samples=50):
    x_PBI, y_PB = Batches(TASK, {A: num_samples}, torch.tensor([stream_key(0, "test")])).draw(0)
    return CrossEntropy(x_PBI[0, :, : TASK.num_inputs], y_PB[0].long())


def open_gates(tensors):
    return {f"layer{layer}": torch.ones(len(tensors[f"layer{layer}.bias"])) for layer in range(len(tensors) // 2 - 1)}


@pytest.mark.parametrize("widths", [(9,), (9, 13), (5, 6, 7)])
def test_with_open_gates_the_loss_is_torchs_cross_entropy_of_the_network(widths):
    _, tensors = make(widths=widths)
    loss = batch()
    expected = torch.nn.functional.cross_entropy(modules(for_modules(tensors))(loss.x_BI), loss.label_B)
    torch.testing.assert_close(loss(tensors, open_gates(tensors)), expected.detach())


@pytest.mark.parametrize("layer", [0, 1])
def test_a_gate_of_0_is_as_good_as_removal(layer):
    shape, tensors = make()
    loss = batch()
    intact = loss(tensors, open_gates(tensors))
    moved = 0.0
    for unit in range(shape.widths[layer]):
        gates = open_gates(tensors)
        gates[f"layer{layer}"][unit] = 0.0
        keep = [gate > 0 for gate in gates.values()]
        smaller = remove(tensors, shape.neurons, keep)
        torch.testing.assert_close(loss(tensors, gates), loss(smaller, open_gates(smaller)))
        moved += abs(loss(tensors, gates) - intact)
    assert moved > 1e-3


def test_gates_for_every_sample_are_gates_of_that_sample():
    _, tensors = make()
    loss = batch()
    assert loss.activation_shape == (50,)
    gates = open_gates(tensors)
    by_sample = {name: gate.expand(50, -1).clone() for name, gate in gates.items()}
    by_sample["layer0"][:25, 3] = 0.0
    gates["layer0"][3] = 0.0
    halves = [CrossEntropy(loss.x_BI[part], loss.label_B[part]) for part in (slice(25), slice(25, 50))]
    expected = (halves[0](tensors, gates) + halves[1](tensors, open_gates(tensors))) / 2
    torch.testing.assert_close(loss(tensors, by_sample), expected)


def test_ablation_scores_of_a_network_made_by_hand():
    """Bits a and b; the layers hold s = a + b, p = a * b and a third unit that nothing hears. Margin: 40 s - 80 p - 20.

    Whole, every sample has a margin of 20 the right way: its loss is exp(-20), nothing. Without s, samples of parity 1
    (half of all) have margin -20 and pay 20 nats: 10 on average. Without p, a = b = 1 (a quarter) has 60 and pays 60: 15.
    """
    tensors = {
        "layer0.weight": torch.zeros(XOR.num_inputs, 3),
        "layer0.bias": torch.tensor([0.0, -1.0, 0.0]),
        "layer1.weight": torch.diag(torch.tensor([1.0, 1.0, 0.0])),
        "layer1.bias": torch.zeros(3),
        "layer2.weight": torch.tensor([[0.0, 40.0], [0.0, -80.0], [0.0, 0.0]]),
        "layer2.bias": torch.tensor([20.0, 0.0]),
    }
    tensors["layer0.weight"][4:6] = 1.0
    shape = Shape(num_inputs=XOR.num_inputs, widths=(3, 3))
    for score_H in score_neurons("ablation", XOR, shape, tensors, A, num_samples=20_000, seed=0):
        assert score_H.tolist() == pytest.approx([10.0, 15.0, 0.0], rel=0.05)


def test_scores_follow_the_task_that_they_are_of():
    shape, tensors = make()
    of_a, of_b, again = (
        score_neurons("ablation", TASK, shape, tensors, code, num_samples=100, seed=0) for code in (A, (2, 3), A)
    )
    assert torch.equal(torch.cat(of_a), torch.cat(again))
    assert not torch.equal(torch.cat(of_a), torch.cat(of_b))


@pytest.mark.parametrize("kind", sorted(SCORES))
def test_a_networks_scores_do_not_depend_on_its_company(kind):
    shape = Shape(num_inputs=TASK.num_inputs, widths=(20, 40))
    found = []
    for seeds in ([3], [3, 4], [2, 9, 1, 3, 5]):
        flat_PF = join(shape, [initial_network(shape.layers, generator(seed, "weights")) for seed in seeds])
        tensors = {name: tensor[seeds.index(3)] for name, tensor in split(shape, flat_PF).items()}
        found.append(score_neurons(kind, TASK, shape, tensors, A, num_samples=120, seed=3))
    for scores in found:
        assert [len(score_H) for score_H in scores] == [20, 40]
        assert all(torch.equal(score_H, first_H) for score_H, first_H in zip(scores, found[0], strict=True))
        assert all(math.isfinite(score) and score >= 0 for score in torch.cat(scores).tolist())
    assert torch.cat(found[0]).unique().numel() > 30


def test_networks_of_two_seeds_are_scored_on_two_batches():
    shape, tensors = make()
    one, other = (score_neurons("ablation", TASK, shape, tensors, A, num_samples=100, seed=seed) for seed in (0, 1))
    assert not torch.equal(torch.cat(one), torch.cat(other))
