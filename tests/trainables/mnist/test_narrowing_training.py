import dataclasses
import io
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from trainables.mnist.data import Images
from trainables.mnist.narrowing_config import NarrowingConfig
from trainables.mnist.teacher import TeacherConfig
from trainables.mnist.training import Training
from trainables.pruning.penalties import group_norms
from trainables.randomness import generator
from trainables.relu_networks import for_modules, hidden_neurons, initial_network, logits, modules

WIDTHS, NUM_IMAGES, BATCH = (6, 5), 50, 8
EPOCH = 6  # updates: 48 of 50 images
CONFIG = NarrowingConfig(
    teacher=TeacherConfig(widths=WIDTHS),
    method="from_scratch",
    neurons=4,
    learning_rate=1e-2,
    batch_size=BATCH,
    clip_norm=float("inf"),
    samples_per_check=BATCH,
    num_seeds=3,
)


def images():
    draw = torch.Generator().manual_seed(0)
    return Images(
        pixel_FI=torch.randint(256, (60, 9), generator=draw, dtype=torch.uint8),
        row_N=torch.randperm(60, generator=draw)[:NUM_IMAGES],
        label_N=torch.randint(4, (NUM_IMAGES,), generator=draw),
        white=255,
    )


class Watched:
    """Images that remember which of them were asked for: place_PB, update by update."""

    def __init__(self):
        self.places, self._images = [], images()
        self.label_N = self._images.label_N

    def __len__(self):
        return len(self._images)

    def batch(self, place_PB):
        self.places.append(place_PB)
        return self._images.batch(place_PB)


def network(seed, widths=WIDTHS):
    return initial_network(list(pairwise([9, *widths, 4])), generator(seed, "weights"))


def teachers(config):
    return [network(100 + seed, (7,)) for seed in config.seeds]


def make(networks=None, *, watched=None, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return Training(config, watched or images(), networks or [network(seed) for seed in config.seeds], teachers(config))


def drawn(num_updates, **changes):
    """place_UPB of every update of a training."""
    watched = Watched()
    make(watched=watched, **changes).run(num_updates)
    return torch.stack([place_PB for place_PB in watched.places if place_PB.dim() == 2])  # the teachers are asked for all at once


def next_gradients(training):
    """What the next update hands to Adam, which is not made; and the images it is from: place_PB."""
    found, watched = [], Watched()
    training.population.adam = found.append
    training._images = watched
    training.run(1)
    return found[0], watched.places[0]


def assert_gradients_are_of(training, loss_of):
    """loss_of: function of the network's number in training, its torch modules, x_BI, label_B and place_B."""
    networks = [{name: tensor[row].clone() for name, tensor in training.population.tensors.items()} for row in range(2)]
    gradients, place_PB = next_gradients(training)
    x_PBI, label_PB = images().batch(place_PB), images().label_N[place_PB]
    for row, one in enumerate(networks):
        model = modules(for_modules(one))
        loss_of(row, model, x_PBI[row], label_PB[row], place_PB[row]).backward()
        expected = for_modules({name: gradient[row] for name, gradient in gradients.items()})
        for linear, parameters in zip(model[::2], by_layer(expected), strict=True):
            for gradient, parameter in zip(parameters, (linear.weight, linear.bias), strict=True):
                torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=1e-7)


def by_layer(tensors):
    return [(tensors[f"layer{layer}.weight"], tensors[f"layer{layer}.bias"]) for layer in range(len(tensors) // 2)]


def sum_of_group_norms(model):
    """Of every hidden neuron: in-weights, bias and out-weights."""
    total = 0
    for linear, following in pairwise(model[::2]):
        for neuron in range(linear.out_features):
            group = [linear.weight[neuron], linear.bias[neuron, None], following.weight[:, neuron]]
            total = total + torch.cat(group).norm()
    return total


def shorten(tensors, layer, neurons, *, bias=0.03):
    """Give neurons no in-weights, a small bias and small out-weights: norm just under 0.05."""
    tensors[f"layer{layer}.weight"][:, neurons] = 0
    tensors[f"layer{layer}.bias"][neurons] = bias
    tensors[f"layer{layer + 1}.weight"][neurons] = 0.01
    return tensors


def counts(training):
    """Living neurons of each network."""
    return sum(alive_PH.sum(1) for alive_PH in training.population.alive()).tolist()


def test_an_epoch_is_a_permutation_but_for_its_remainder():
    place_UPB = drawn(2 * EPOCH)
    for seed in range(3):
        epochs = [place_UPB[start : start + EPOCH, seed].flatten().tolist() for start in (0, EPOCH)]
        for epoch in epochs:
            assert len(set(epoch)) == len(epoch) == 48
            assert set(epoch) < set(range(NUM_IMAGES))
        assert epochs[0] != epochs[1]


def test_a_batch_of_all_images_is_an_epoch():
    place_UPB = drawn(2, batch_size=NUM_IMAGES, samples_per_check=NUM_IMAGES)
    assert place_UPB.shape == (2, 3, NUM_IMAGES)
    assert all(sorted(order) == list(range(NUM_IMAGES)) for update in place_UPB.tolist() for order in update)


def test_seeds_draw_orders_of_their_own_whatever_their_company():
    place_UPB = drawn(EPOCH + 2, seed=3)
    assert not torch.equal(place_UPB[:, 0], place_UPB[:, 1])
    assert torch.equal(drawn(EPOCH + 2, seed=4, num_seeds=1)[:, 0], place_UPB[:, 1])
    assert torch.equal(drawn(EPOCH + 2, seed=2, num_seeds=4)[:, 2], place_UPB[:, 1])


@pytest.mark.parametrize("changes", [{"method": "distillation"}, {"method": "group_lasso"}, {"learning_rate": 1e-4}])
def test_all_methods_draw_the_same_images(changes):
    assert torch.equal(drawn(EPOCH + 2, **changes), drawn(EPOCH + 2))


@pytest.mark.parametrize("method", ["from_scratch", "random", "weight_norm", "attribution"])
def test_most_methods_minimise_cross_entropy(method):
    assert_gradients_are_of(
        make(method=method, score_samples=8), lambda row, model, x, label, place: cross_entropy(model(x), label)
    )


def distillation(config, places, *, temperature, alpha):
    """The paper's loss, as torch's functions compute it."""

    def loss_of(row, model, x_BI, label_B, place_B):
        teacher_BO = logits(teachers(config)[places[row]], x_BI)
        student, teacher = (model(x_BI) / temperature).log_softmax(-1), (teacher_BO / temperature).softmax(-1)
        soft = kl_div(student, teacher, reduction="batchmean")
        return alpha * cross_entropy(model(x_BI), label_B) + (1 - alpha) * temperature**2 * soft

    return loss_of


@pytest.mark.parametrize(("temperature", "alpha"), [(20.0, 0.1), (1.0, 0.0), (3.0, 0.5)])
def test_distillation_weighs_labels_and_the_teacher_as_the_paper_does(temperature, alpha):
    training = make(method="distillation", temperature=temperature, alpha=alpha)
    assert_gradients_are_of(training, distillation(CONFIG, [0, 1], temperature=temperature, alpha=alpha))


def test_distillation_from_labels_alone_is_cross_entropy():
    assert_gradients_are_of(
        make(method="distillation", alpha=1.0), lambda row, model, x, label, place: cross_entropy(model(x), label)
    )


def test_each_student_has_its_own_teacher_although_others_have_left():
    training = make(method="distillation", temperature=2.0)
    training.run(2)
    training.keep([1, 2])
    assert_gradients_are_of(training, distillation(CONFIG, [1, 2], temperature=2.0, alpha=0.1))


def test_the_lasso_adds_the_norms_of_all_groups_with_their_biases():
    training = make(method="group_lasso", lasso_strength=0.3)
    assert_gradients_are_of(
        training, lambda row, model, x, label, place: cross_entropy(model(x), label) + 0.3 * sum_of_group_norms(model)
    )


def test_training_is_plain_adam_on_its_loss():
    watched = Watched()
    training = make(method="group_lasso", lasso_strength=1e-2, mask_threshold=1e-6, clip_norm=0.5, watched=watched)
    models = [modules(for_modules(network(seed))) for seed in CONFIG.seeds]
    optimizers = [torch.optim.Adam(model.parameters(), lr=1e-2) for model in models]
    for _ in range(EPOCH + 2):
        training.run(1)
        for row, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            place_B = watched.places[-1][row]
            optimizer.zero_grad()
            loss = cross_entropy(model(images().batch(place_B)), images().label_N[place_B]) + 1e-2 * sum_of_group_norms(model)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    for seed, model in enumerate(models):
        ours = modules(for_modules(training.network(seed))).state_dict()
        for name, parameter in model.state_dict().items():
            torch.testing.assert_close(ours[name], parameter, rtol=1e-4, atol=1e-6)


def test_short_groups_are_masked_their_constants_folded_and_stay_dead():
    """Neurons of both layers, and so slow a training that nothing else moves a network by what is looked at."""
    networks = [network(0), shorten(shorten(network(1), 0, [0, 4]), 1, [2]), shorten(network(2), 1, [1], bias=-0.03)]
    x_BI = images().batch(torch.arange(NUM_IMAGES))
    training = make(networks, method="group_lasso", learning_rate=1e-7)
    before = [logits(one, x_BI) for one in networks]
    training.run(1)
    assert counts(training) == [11, 8, 10]
    for place, logit_BO in enumerate(before):
        torch.testing.assert_close(logits(training.network(place), x_BI), logit_BO, rtol=0, atol=1e-5)
    assert [len(training.network(1)[f"layer{layer}.bias"]) for layer in range(3)] == [4, 4, 4]
    for _ in range(EPOCH):
        training.run(1)
        for layer, gone in ((0, [0, 4]), (1, [2])):
            units = hidden_neurons(training.population.tensors)[layer]
            assert group_norms(training.population.tensors, units)[1, gone].tolist() == [0.0] * len(gone)
    assert counts(training) == [11, 8, 10]


@pytest.mark.parametrize(("threshold", "left"), [(0.05, 10), (0.035, 11)])
def test_groups_up_to_the_threshold_are_short(threshold, left):
    """Norm of the group: root of 0.03^2 and four times 0.01^2, a little more than 0.036."""
    training = make(
        [shorten(network(0), 1, [3])], num_seeds=1, method="group_lasso", learning_rate=1e-7, mask_threshold=threshold
    )
    training.run(1)
    assert counts(training) == [left]


def test_other_methods_mask_nothing():
    training = make([shorten(network(seed), 0, [1]) for seed in range(3)])
    training.run(2)
    assert counts(training) == [11, 11, 11]


def test_the_lasso_ends_for_a_network_that_is_small_enough_and_goes_on_for_others():
    networks = [shorten(network(0), 0, [0, 1]), shorten(network(1), 0, [0])]
    training = make(networks, num_seeds=2, method="group_lasso", lasso_strength=0.3, learning_rate=1e-7, neurons=9)
    assert training.in_lasso == [True, True]
    training.run(1)
    assert (counts(training), training.in_lasso) == ([9, 10], [False, True])
    for place in range(2):  # one more short group each: who is out of the lasso keeps it
        shorten({name: tensor[place] for name, tensor in training.population.tensors.items()}, 1, [4])
    assert_gradients_are_of(
        training, lambda row, model, x, label, place: cross_entropy(model(x), label) + row * 0.3 * sum_of_living(model)
    )
    assert (counts(training), training.in_lasso) == ([9, 9], [False, False])


def sum_of_living(model):
    """Norms of the groups that are not zero: torch has no gradient at zero."""
    total = 0
    for linear, following in pairwise(model[::2]):
        groups_HG = torch.cat([linear.weight, linear.bias[:, None], following.weight.T], dim=1)
        total = total + groups_HG[groups_HG.detach().any(1)].norm(dim=1).sum()
    return total


def test_after_the_lasso_a_network_trains_on_without_losing_neurons():
    training = make(method="group_lasso", lasso_strength=1.0, mask_threshold=0.3, learning_rate=3e-2, neurons=7)
    updates = 0
    while any(training.in_lasso):
        training.run(1)
        updates += 1
        assert updates < 300
    after = counts(training)
    assert max(after) <= 7
    before = training.network(0)
    training.run(20)
    assert counts(training) == after
    assert not torch.equal(training.network(0)["layer0.bias"], before["layer0.bias"])


def test_the_proximal_way_shortens_groups_by_rate_times_strength_and_leaves_the_loss_alone():
    """One hidden layer, so that no weight is in two groups."""
    teacher = TeacherConfig(widths=(6,))
    networks = [network(seed, (6,)) for seed in range(2)]
    training = make(
        networks, num_seeds=2, teacher=teacher, method="group_lasso", lasso_way="proximal", lasso_strength=70.0, neurons=2
    )
    (units,) = hidden_neurons(training.population.tensors)
    before_PH = group_norms(training.population.tensors, units)
    assert 0 < (before_PH <= 0.01 * 70.0).sum() < 12
    assert_gradients_are_of(training, lambda row, model, x, label, place: cross_entropy(model(x), label))
    after_PH = group_norms(training.population.tensors, units)
    torch.testing.assert_close(after_PH, (before_PH - 0.7).clamp(min=0), rtol=1e-5, atol=1e-6)
    assert torch.equal(after_PH == 0, before_PH <= 0.7)


def test_the_proximal_way_makes_exact_zeros_that_stay_and_ends_at_its_size():
    training = make(method="group_lasso", lasso_way="proximal", lasso_strength=2.0, neurons=6)
    dead, acted = [torch.zeros(3, width, dtype=torch.bool) for width in WIDTHS], training.in_lasso
    for _ in range(150):
        before = counts(training)
        training.run(1)
        alive = training.population.alive()
        assert not any((was & is_alive).any() for was, is_alive in zip(dead, alive, strict=True))
        dead = [~alive_PH for alive_PH in alive]
        for units, dead_PH in zip(hidden_neurons(training.population.tensors), dead, strict=True):
            assert not group_norms(training.population.tensors, units)[dead_PH].any()
        after = counts(training)
        assert all(acts or left == had for acts, left, had in zip(acted, after, before, strict=True))
        acted = training.in_lasso
        assert acted == [left > 6 for left in after]
    assert 0 < max(after) <= 6


@pytest.mark.parametrize("num_updates", [3, EPOCH])
def test_those_that_stay_go_on_in_the_same_order(num_updates):
    """In the middle of an epoch or at its end."""
    watched = Watched(), Watched()
    stays, shrinks = (make(watched=each) for each in watched)
    for training in (stays, shrinks):
        training.run(num_updates)
    shrinks.keep([0, 2])
    for training in (stays, shrinks):
        training.run(EPOCH)
    for whole_PB, left_PB in zip(watched[0].places[num_updates:], watched[1].places[num_updates:], strict=True):
        assert torch.equal(whole_PB[[0, 2]], left_PB)
    for place in (0, 2):
        for name, tensor in shrinks.network(place).items():
            torch.testing.assert_close(tensor, stays.network(place)[name], rtol=1e-5, atol=1e-6)


def test_networks_are_known_by_their_place_and_may_leave_before_any_update():
    training = make()
    training.keep([1, 2])
    training.keep([2])
    assert training.places == [2]
    assert all(torch.equal(tensor, network(2)[name]) for name, tensor in training.network(2).items())
    with pytest.raises(ValueError, match="1 is not in list"):
        training.network(1)


def advance(training, num_updates):
    """Some updates, one network leaving after the fourth."""
    for _ in range(num_updates):
        training.run(1)
        if training._update == 4:
            training.keep([0, 2])


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "group_lasso", "lasso_strength": 0.3, "mask_threshold": 0.6, "clip_norm": 1.0},
        {"method": "group_lasso", "lasso_strength": 5.0, "lasso_way": "proximal"},
        {"method": "distillation"},
    ],
)
def test_a_training_goes_on_from_its_state_at_any_update_exactly(changes):
    straight = make(**changes)
    advance(straight, 2 * EPOCH)
    for interrupted_at in range(2 * EPOCH):
        training, again = make(**changes), make(**changes)
        advance(training, interrupted_at)
        stored = io.BytesIO()
        torch.save(training.state_dict(), stored)
        stored.seek(0)
        again.load_state_dict(torch.load(stored, weights_only=True))
        advance(again, 2 * EPOCH - interrupted_at)
        assert (again.places, again.in_lasso) == (straight.places, straight.in_lasso) == ([0, 2], straight.in_lasso)
        for name, tensor in straight.population.tensors.items():
            assert torch.equal(tensor, again.population.tensors[name])
    if changes["method"] == "group_lasso":
        assert min(counts(straight)) < 11


def test_a_training_goes_back_to_a_state_of_its_own():
    """To networks that have left since, in the same epoch."""
    training, straight = make(), make()
    training.run(2)
    state = training.state_dict()
    training.run(1)
    training.keep([2])
    training.run(1)
    training.load_state_dict(state)
    training.run(2)
    straight.run(4)
    assert training.places == [0, 1, 2]
    assert all(torch.equal(tensor, training.population.tensors[name]) for name, tensor in straight.population.tensors.items())


def test_many_updates_at_once_are_those_one_by_one():
    once, single = make(method="distillation"), make(method="distillation")
    once.run(EPOCH + 2)
    for _ in range(EPOCH + 2):
        single.run(1)
    assert all(torch.equal(tensor, single.population.tensors[name]) for name, tensor in once.population.tensors.items())
