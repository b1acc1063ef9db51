import pytest
import torch

from trainables.cmsp.networks import Shape, join, split
from trainables.cmsp.population import ADAM_BETAS, ADAM_EPS, Population
from trainables.cmsp.task import Batches, Task
from trainables.cmsp.update_loop import UpdateLoop
from trainables.randomness import generator, stream_key
from trainables.relu_networks import initial_network

CPU = torch.device("cpu")
TASK = Task(num_task_bits=12, num_atoms=2, bits_per_atom=3)


def make(seeds, *, widths=(24, 24), rates=None, counts=None):
    shape = Shape(num_inputs=TASK.num_inputs, widths=widths)
    networks = [initial_network(shape.layers, generator(seed, "weights")) for seed in seeds]
    population = Population(shape, join(shape, networks), rates or [1e-3] * len(seeds))
    return population, batches_of(seeds, counts)


def batches_of(seeds, counts=None):
    return Batches(TASK, counts or {(0,): 40, (0, 1): 60}, torch.tensor([stream_key(seed, "data") for seed in seeds]))


class Reference(torch.nn.Module):
    """The same network as torch builds it."""

    def __init__(self, population, place):
        super().__init__()
        self.linears = torch.nn.ModuleList()
        tensors = split(population.shape, population.parameter_PF)
        for layer in range(len(tensors) // 2):
            weight_IO, bias_O = tensors[f"layer{layer}.weight"][place], tensors[f"layer{layer}.bias"][place]
            linear = torch.nn.Linear(*weight_IO.shape)
            linear.load_state_dict({"weight": weight_IO.T, "bias": bias_O})
            self.linears.append(linear)

    def forward(self, x):
        for linear in self.linears[:-1]:
            x = linear(x).relu()
        return self.linears[-1](x)


@pytest.mark.parametrize(
    ("widths", "counts"), [((24,), None), ((24, 24), None), ((24, 40, 16), None), ((512, 512), {(0, 1): 1201})]
)
@pytest.mark.parametrize("num_networks", [1, 3])
def test_training_follows_torch_autograd_and_torch_adam(widths, counts, num_networks):
    rates = [1e-3, 2e-3, 5e-4][:num_networks]
    population, batches = make(range(num_networks), widths=widths, rates=rates, counts=counts)
    references = [Reference(population, place) for place in range(num_networks)]
    optimizers = [
        torch.optim.Adam(reference.parameters(), lr=rate, eps=ADAM_EPS, betas=ADAM_BETAS)
        for reference, rate in zip(references, rates, strict=True)
    ]
    for index in range(15):
        x_PBI, y_PB = batches.draw(index)
        losses = population.losses(x_PBI, y_PB).mean(1)
        population.update(x_PBI, y_PB)
        for place, (reference, optimizer) in enumerate(zip(references, optimizers, strict=True)):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(reference(x_PBI[place, :, : TASK.num_inputs]), y_PB[place].long())
            torch.testing.assert_close(losses[place], loss.detach(), rtol=1e-5, atol=1e-6)
            loss.backward()
            optimizer.step()
    tensors = split(population.shape, population.parameter_PF)
    for place, reference in enumerate(references):
        for layer, linear in enumerate(reference.linears):
            weight_PIO, bias_PO = tensors[f"layer{layer}.weight"], tensors[f"layer{layer}.bias"]
            torch.testing.assert_close(weight_PIO[place].T, linear.weight.detach(), rtol=1e-4, atol=2e-5)
            torch.testing.assert_close(bias_PO[place], linear.bias.detach(), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("widths", "counts", "num_updates"),
    [
        ((24, 24), {(0,): 40, (0, 1): 60}, 60),
        ((19, 35), {(0,): 13, (0, 1): 50}, 60),
        ((64, 64), {(0, 1): 400}, 30),
        ((130, 30), {(0, 1): 1}, 20),
        ((500, 300), {(0,): 1000, (0, 1): 1301}, 4),
    ],
)
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_networks_numbers_do_not_depend_on_its_company(widths, counts, num_updates, num_threads):
    torch.set_num_threads(num_threads)
    companies = [[3], [3, 4], [2, 3, 9], list(range(11))]
    made = [make(seeds, widths=widths, counts=counts) for seeds in companies]
    for index in range(num_updates):
        for population, batches in made:
            population.update(*batches.draw(index))
    torch.set_num_threads(1)
    found = [population.parameter_PF[seeds.index(3)] for (population, _), seeds in zip(made, companies, strict=True)]
    losses = [p.losses(*b.draw(0))[seeds.index(3)] for (p, b), seeds in zip(made, companies, strict=True)]
    assert all(torch.equal(found[0], other) for other in found[1:])
    assert all(torch.equal(losses[0], other) for other in losses[1:])


def test_networks_that_leave_do_not_disturb_those_that_stay():
    stays, stays_batches = make([2])
    shrinks, shrinks_batches = make([0, 1, 2, 5])
    for index in range(200):
        stays.update(*stays_batches.draw(index))
        shrinks.update(*shrinks_batches.draw(index))
        if index in (99, 149):
            remaining = {99: [2, 5], 149: [2]}[index]
            shrinks.keep(torch.tensor({99: [2, 3], 149: [0]}[index]))
            shrinks_batches = batches_of(remaining)
    assert torch.equal(stays.parameter_PF, shrinks.parameter_PF)


def test_a_pruned_network_in_a_wider_shape_trains_as_in_its_own():
    """Units that are not there are zero, and stay zero: masked and removed train alike."""
    pruned = initial_network(Shape(num_inputs=TASK.num_inputs, widths=(9, 5)).layers, generator(0, "weights"))
    trained = []
    for widths in ((9, 5), (64, 48)):
        shape = Shape(num_inputs=TASK.num_inputs, widths=widths)
        population = Population(shape, join(shape, [pruned, pruned]), [1e-3] * 2)
        batches = batches_of([0, 1])
        for index in range(50):
            population.update(*batches.draw(index))
        trained.append(split(shape, population.parameter_PF))
    for name, small in trained[0].items():
        large = trained[1][name]
        part = large[tuple(slice(size) for size in small.shape)]
        torch.testing.assert_close(part, small, rtol=1e-4, atol=1e-5)
        assert large.count_nonzero() == part.count_nonzero()


def test_the_loop_with_its_counter_on_the_device_makes_the_same_updates_as_plain_calls():
    plain, batches = make([0, 1, 2])
    for index in range(40):
        plain.update(*batches.draw(index))
    looped, batches = make([0, 1, 2])
    loop = UpdateLoop(lambda index: looped.update(*batches.draw(index)), device=CPU)
    loop.run(0, 15)
    loop.run(15, 40)
    assert torch.equal(plain.parameter_PF, looped.parameter_PF)


@pytest.mark.gpu
def test_a_captured_update_on_a_gpu_follows_the_plain_one_on_the_cpu():
    cuda = torch.device("cuda")
    plain, batches = make([0, 1, 2])
    shape, keys = plain.shape, batches.key_P
    on_gpu = Population(shape, plain.parameter_PF.to(cuda, copy=True), [1e-3] * 3)
    gpu_batches = Batches(TASK, batches.counts, keys.to(cuda))
    loop = UpdateLoop(lambda index: on_gpu.update(*gpu_batches.draw(index)), device=cuda)
    for index in range(20):
        plain.update(*batches.draw(index))
    loop.run(0, 20)
    torch.testing.assert_close(on_gpu.parameter_PF.cpu(), plain.parameter_PF, rtol=2e-2, atol=2e-3)  # captured in TF32


def test_a_state_brings_a_population_back_whatever_its_number_of_networks():
    population, batches = make([0, 1, 2])
    population.update(*batches.draw(0))
    population.keep(torch.tensor([1]))
    state = population.state_dict()
    again, _ = make([0, 1, 2])
    again.load_state_dict(state)
    batches = batches_of([1])
    for one in (population, again):
        one.update(*batches.draw(1))
    assert torch.equal(population.parameter_PF, again.parameter_PF)
