import dataclasses
import math

import pytest
import torch
from idx_files import write_dataset

from trainables.mnist import teacher
from trainables.mnist.data import load_dataset
from trainables.mnist.teacher import TeacherConfig, teacher_recipe, train_teacher
from trainables.randomness import generator
from trainables.relu_networks import for_modules, initial_network, logits, modules

CPU = torch.device("cpu")
SMALL = TeacherConfig(widths=(8, 6), learning_rate=1e-2, batch_size=32, epochs=3)
CHANGES = {
    "widths": (6, 8),
    "dropout": 0.0,
    "learning_rate": 2e-2,
    "weight_decay": 0.0,
    "batch_size": 31,
    "epochs": 4,
    "accuracy": 0.98,
}
SHAPE = {"num_train": 200, "num_test": 20, "rows": 6, "cols": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), **SHAPE)


@pytest.fixture
def data(folder):
    return load_dataset(str(folder))


def key(data, seed=0, **changes):
    return teacher_recipe(dataclasses.replace(SMALL, **changes), data, seed).key


def same(tensors, others):
    return tensors.keys() == others.keys() and all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


def share_right(tensors, images):
    model = modules(for_modules(tensors))
    return (model(images.batch(torch.arange(len(images)))).argmax(-1) == images.label_N).double().mean().item()


@pytest.fixture
def scripted(monkeypatch):
    """Validation accuracies as a test wants them, epoch by epoch, and the learning rate of each epoch that was trained."""

    def script(*accuracies):
        left, rates, train_epoch = list(accuracies), [], teacher._train_epoch

        def watched(config, images, tensors, optimizer, seed, epoch):
            rates.append(optimizer.param_groups[0]["lr"])
            train_epoch(config, images, tensors, optimizer, seed, epoch)

        monkeypatch.setattr(teacher, "accuracy", lambda tensors, images: left.pop(0))
        monkeypatch.setattr(teacher, "_train_epoch", watched)
        return rates

    yield script


def test_default_is_the_papers():
    assert TeacherConfig().widths == (1200, 1200)
    assert [TeacherConfig().dropout, TeacherConfig().weight_decay, TeacherConfig().batch_size] == [0.2, 1e-4, 128]


def test_every_field_seed_and_data_set_makes_another_teacher(data, folder, tmp_path):
    assert CHANGES.keys() == {field.name for field in dataclasses.fields(TeacherConfig)}
    keys = [key(data), key(data, seed=1)]
    keys += [key(data, **{name: value}) for name, value in CHANGES.items()]
    keys += [key(load_dataset(str(folder), validation_fraction=0.3))]
    keys += [key(load_dataset(str(write_dataset(tmp_path / "other", **SHAPE, seed=1))))]
    assert len(set(keys)) == len(keys) == 11


def test_nothing_else_makes_another_teacher(data, tmp_path):
    elsewhere = load_dataset(str(write_dataset(tmp_path / "copy", **SHAPE, gz=True)))
    assert key(elsewhere) == key(data)
    assert key(data.to(torch.device("meta"))) == key(data)
    assert key(data, widths=[8, 6]) == key(data)  # as JSON brings them
    torch.manual_seed(7)
    assert key(data) == key(data, **dataclasses.asdict(SMALL))


def test_the_same_recipe_makes_the_same_tensors_without_the_global_generator(data):
    recipe = teacher_recipe(SMALL, data, 0)
    torch.manual_seed(0)
    first = recipe.make(CPU)
    torch.manual_seed(1)
    torch.rand(5)
    state = torch.get_rng_state()
    assert same(recipe.make(CPU), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_teachers_of_different_seeds_are_different(data):
    one, other = (teacher_recipe(SMALL, data, seed).make(CPU) for seed in (0, 1))
    assert not any((tensor == other[name]).any() for name, tensor in one.items())


def test_a_teacher_learns_all_classes_and_has_the_shapes_of_its_widths(data):
    tensors = train_teacher(dataclasses.replace(SMALL, widths=(32, 16), epochs=40, dropout=0.0), data, 0)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "layer0.weight": (36, 32),
        "layer0.bias": (32,),
        "layer1.weight": (32, 16),
        "layer1.bias": (16,),
        "layer2.weight": (16, 10),
        "layer2.bias": (10,),
    }
    assert not any(tensor.requires_grad for tensor in tensors.values())
    assert share_right(tensors, data.test) > 0.6  # 0.1 by guessing
    assert share_right(tensors, data.train) > 0.8


@pytest.mark.parametrize("accuracies", [(0.5, 0.7, 0.6, 0.1), (0.5, 0.7, 0.7, 0.7)])
def test_the_best_epoch_is_kept_and_the_first_of_equals(data, scripted, accuracies):
    scripted(*accuracies[:2])
    second = train_teacher(dataclasses.replace(SMALL, epochs=2), data, 0)
    scripted(*accuracies)
    assert same(train_teacher(dataclasses.replace(SMALL, epochs=4), data, 0), second)
    scripted(0.5)
    assert not same(train_teacher(dataclasses.replace(SMALL, epochs=1), data, 0), second)


def test_a_network_that_never_answers_right_is_a_teacher_still(data, scripted):
    scripted(0.0, 0.0)
    assert train_teacher(dataclasses.replace(SMALL, epochs=2), data, 0).keys() == {
        f"layer{layer}.{part}" for layer in range(3) for part in ("weight", "bias")
    }


def test_training_ends_at_the_accuracy_that_was_asked_for(data, scripted):
    rates = scripted(0.5, 0.89, 0.9, 0.95)
    train_teacher(dataclasses.replace(SMALL, epochs=4, accuracy=0.9), data, 0)
    assert len(rates) == 3


def test_the_learning_rate_is_halved_as_torch_does_with_a_patience_of_two(data, scripted):
    rates = scripted(0.5, 0.6, 0.6, 0.5, 0.6, 0.6, 0.7)
    train_teacher(dataclasses.replace(SMALL, epochs=7), data, 0)
    assert rates == [1e-2] * 5 + [5e-3] * 2


def test_the_best_epoch_is_chosen_on_validation_images_and_never_on_test_images(data):
    blind = dataclasses.replace(data, test=data.test.of_classes([0]), validation=data.validation)
    assert same(train_teacher(SMALL, blind, 0), train_teacher(SMALL, data, 0))
    upside_down = dataclasses.replace(data.validation, label_N=(data.validation.label_N + 1) % 10)
    long = dataclasses.replace(SMALL, epochs=12, accuracy=1.0)
    misled = train_teacher(long, dataclasses.replace(data, validation=upside_down), 0)
    assert not same(misled, train_teacher(long, data, 0))


def test_an_epoch_without_dropout_is_plain_adam_over_all_images_once(data):
    config = dataclasses.replace(SMALL, epochs=1, dropout=0.0, weight_decay=0.1)
    network = initial_network([(36, 8), (8, 6), (6, 10)], generator(0, "teacher", "weights"))
    model = modules(for_modules(network))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=0.1)
    order = torch.randperm(len(data.train), generator=generator(0, "teacher", "order", 0))
    for place_B in order.split(32):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(data.train.batch(place_B)), data.train.label_N[place_B]).backward()
        optimizer.step()
    tensors, x_BI = train_teacher(config, data, 0), data.test.batch(torch.arange(20))
    torch.testing.assert_close(logits(tensors, x_BI), model(x_BI).detach(), rtol=1e-4, atol=1e-5)


def test_dropout_drops_its_share_and_scales_up_the_rest():
    gates = teacher._dropout(dataclasses.replace(SMALL, dropout=0.2), 1000, 50, generator(0, "noise"))
    assert set(gates.unique().tolist()) == {0.0, 1.25}
    assert (gates == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert gates.float().mean(0).std() > 0  # of each sample and neuron its own
    assert teacher._dropout(dataclasses.replace(SMALL, dropout=0.0), 4, 3, generator(0, "noise")).tolist() == [[1.0] * 3] * 4


@pytest.mark.parametrize(
    ("changes", "law"),
    [
        ({"widths": ()}, r"a teacher's widths must be at least one positive number, but got \(\); use"),
        ({"widths": (8, 0)}, r"a teacher's widths must be at least one positive number, but got \(8, 0\)"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), but got 1.0"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\), but got -0.1"),
        ({"dropout": math.nan}, r"dropout must be in \[0, 1\), but got nan"),
        ({"learning_rate": 0.0}, "learning_rate must be positive and finite, but got 0.0"),
        ({"learning_rate": math.inf}, "learning_rate must be positive and finite, but got inf"),
        ({"learning_rate": math.nan}, "learning_rate must be positive and finite, but got nan"),
        ({"weight_decay": -1e-4}, "weight_decay must be at least 0, but got -0.0001"),
        ({"weight_decay": math.inf}, "weight_decay must be .*, but got inf"),
        ({"batch_size": 0}, "batch_size must be at least 1, but got 0"),
        ({"epochs": 0}, "epochs must be at least 1, but got 0"),
        ({"accuracy": 0.0}, r"accuracy must be in \(0, 1\], but got 0.0"),
        ({"accuracy": 1.01}, r"accuracy must be in \(0, 1\], but got 1.01"),
    ],
)
def test_impossible_teachers_are_refused(changes, law):
    with pytest.raises(ValueError, match=law):
        dataclasses.replace(SMALL, **changes)


def test_the_edges_of_what_is_possible_are_allowed():
    TeacherConfig(widths=(1,), dropout=0.0, weight_decay=0.0, batch_size=1, epochs=1, accuracy=1.0)
