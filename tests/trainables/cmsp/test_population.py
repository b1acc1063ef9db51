import pytest
import torch

from trainables.cmsp.population import ADAM_BETAS, ADAM_EPS, Population, Shape, unpadded_layers
from trainables.cmsp.task import Batches, Task
from trainables.randomness import generator, stream_key

CPU = torch.device("cpu")
TASK = Task(num_task_bits=12, num_atoms=2, bits_per_atom=3)


def make(seeds, *, depth=3, width=24, rates=None, task=TASK, counts=None):
    shape = Shape(num_inputs=task.num_inputs, depth=depth, width=width)
    population = Population(shape, [generator(seed, "weights") for seed in seeds], rates or [1e-3] * len(seeds), device=CPU)
    batches = Batches(task, counts or {(0,): 40, (0, 1): 60}, torch.tensor([stream_key(seed, "data") for seed in seeds]))
    return population, batches


class Reference(torch.nn.Module):
    """The same network as torch builds it."""

    def __init__(self, population, place):
        super().__init__()
        self.linears = torch.nn.ModuleList()
        for weight_PIO, bias_PO in unpadded_layers(population.shape, population.parameter_PF):
            linear = torch.nn.Linear(*weight_PIO.shape[1:])
            linear.load_state_dict({"weight": weight_PIO[place].T, "bias": bias_PO[place]})
            self.linears.append(linear)

    def forward(self, x):
        for linear in self.linears[:-1]:
            x = linear(x).relu()
        return self.linears[-1](x)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_training_follows_torch_autograd_and_torch_adam(depth):
    population, batches = make([0, 1, 2], depth=depth, rates=[1e-3, 2e-3, 5e-4])
    references = [Reference(population, place) for place in range(3)]
    optimizers = [
        torch.optim.Adam(reference.parameters(), lr=rate, eps=ADAM_EPS, betas=ADAM_BETAS)
        for reference, rate in zip(references, [1e-3, 2e-3, 5e-4], strict=True)
    ]
    for index in range(20):
        x_PBI, y_PB = batches.draw(index)
        losses = population.losses(x_PBI, y_PB).mean(1)
        population.update(x_PBI, y_PB)
        for place, (reference, optimizer) in enumerate(zip(references, optimizers, strict=True)):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(reference(x_PBI[place]), y_PB[place])
            torch.testing.assert_close(losses[place], loss.detach(), rtol=1e-5, atol=1e-6)
            loss.backward()
            optimizer.step()
    for place, reference in enumerate(references):
        layers = unpadded_layers(population.shape, population.parameter_PF)
        for (weight_PIO, bias_PO), linear in zip(layers, reference.linears, strict=True):
            torch.testing.assert_close(weight_PIO[place].T, linear.weight.detach(), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(bias_PO[place], linear.bias.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("width", "counts"), [(24, {(0,): 40, (0, 1): 60}), (19, {(0,): 13, (0, 1): 50}), (64, {(0, 1): 400})])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_networks_numbers_do_not_depend_on_its_company(width, counts, num_threads):
    torch.set_num_threads(num_threads)
    couple, couple_batches = make([3, 4], width=width, counts=counts)
    crowd, crowd_batches = make([0, 1, 2, 3, 4, 5, 6], width=width, counts=counts)
    for index in range(300):
        couple.update(*couple_batches.draw(index))
        crowd.update(*crowd_batches.draw(index))
    assert torch.equal(couple.parameter_PF, crowd.parameter_PF[3:5])
    torch.set_num_threads(1)


def test_networks_that_leave_do_not_disturb_those_that_stay():
    stays, stays_batches = make([2, 5])
    shrinks, shrinks_batches = make([0, 1, 2, 5])
    for index in range(200):
        stays.update(*stays_batches.draw(index))
        shrinks.update(*shrinks_batches.draw(index))
        if index == 99:
            shrinks.keep(torch.tensor([2, 3]))
            _, shrinks_batches = make([2, 5])
    assert torch.equal(stays.parameter_PF, shrinks.parameter_PF)


def test_parameters_are_counted_as_the_paper_counts_them():
    assert Shape(num_inputs=68, depth=3, width=128).num_parameters == 25_602
    assert Shape(num_inputs=68, depth=2, width=128).num_parameters == 9_090
    assert Shape(num_inputs=68, depth=2, width=361).num_parameters == 25_633


def test_initial_weights_are_uniform_within_one_over_the_root_of_fan_in():
    population, _ = make([0, 1], width=400)
    weight_PIO, bias_PO = unpadded_layers(population.shape, population.parameter_PF)[1]
    for tensor in (weight_PIO, bias_PO):
        assert tensor.abs().max() <= 1 / 20
    assert abs(weight_PIO.std() - 1 / 20 / 3**0.5) < 1e-3


@pytest.mark.parametrize(("depth", "width"), [(1, 8), (3, 0)])
def test_impossible_shapes_are_refused(depth, width):
    with pytest.raises(ValueError, match="must be at least"):
        Shape(num_inputs=4, depth=depth, width=width)
