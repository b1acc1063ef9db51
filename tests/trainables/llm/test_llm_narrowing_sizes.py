import copy
import dataclasses

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from narrowing_trials import (
    LENGTH,
    NUM_NARROW,
    STUDENTS,
    TINY,
    base_model,
    begin,
    config_of,
    corpus,
    finished,
    go_on,
    held_out,
    layers_of,
    rebuilt,
    run,
    same,
    sizes_of,
    training,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainables.llm.base import build_llama, draw_parameters
from trainables.llm.dissection import dissect
from trainables.llm.narrowing_config import METHODS, PRUNING
from trainables.llm.narrowing_models import cut, student
from trainables.llm.surgery import remove
from trainables.model_files import load_model, save_model
from trainables.storage import Folder


def of_model(model):
    return sizes_of(dict(model.named_parameters()))


@pytest.mark.parametrize("method", METHODS)
def test_every_way_ends_with_a_model_of_the_sizes_that_its_sparsities_say(method):
    """32 of 64 neurons go, and 4 of 16 dimensions."""
    experiment, reports = finished(method)
    last, (dimensions, *widths) = reports[-1], sizes_of(experiment.model_tensors())
    assert experiment.progress == 1.0
    assert (dimensions, sum(widths)) == (12, 32)
    assert (last["dimensions_kept"], last["neurons_kept"], last["least_neurons"]) == (12, 32, min(widths))
    assert [last[f"neurons_of_block/{block:03d}"] for block in range(2)] == widths
    assert last["parameters_kept"] == NUM_NARROW
    assert sum(tensor.numel() for tensor in experiment.model_tensors().values()) == NUM_NARROW
    assert method in PRUNING or widths == [16, 16]


@pytest.mark.parametrize("method", ["group_lasso", "random", "from_scratch"])
@pytest.mark.parametrize(
    ("neuron_sparsity", "residual_sparsity", "num_neurons", "dimensions"),
    [(0.0, 0.0, 64, 16), (0.29, 0.5, 46, 8), (0.95, 0.9, 4, 2), (0.8, 0.2, 13, 14)],
)
def test_other_sparsities_have_other_sizes(method, neuron_sparsity, residual_sparsity, num_neurons, dimensions):
    """int(64 x 0.29) = 18 neurons go, or 2 x int(32 x 0.29) of a student; int(16 x 0.2) = 3 dimensions, less 1 for 2 heads."""
    sizes = {"neuron_sparsity": neuron_sparsity, "residual_sparsity": residual_sparsity}
    experiment = begin(config_of(method, lasso=training(updates=1), recovery=training(updates=1), **sizes))
    if method == "group_lasso":
        experiment.step()
    if method in STUDENTS:
        num_neurons = 2 * (32 - int(32 * neuron_sparsity))
    report = experiment.step()
    width, *widths = sizes_of(experiment.model_tensors())
    assert (width, sum(widths)) == (dimensions, num_neurons)
    assert (report["dimensions_kept"], report["neurons_kept"]) == (dimensions, num_neurons)
    assert held_out(rebuilt(experiment), "python") == pytest.approx(report["kept_loss_nats"], abs=1e-6)


@pytest.mark.parametrize(
    ("width", "num_heads", "residual_sparsity", "dimensions"),
    [
        (16, 2, 0.0, 16),
        (16, 2, 0.25, 12),
        (16, 2, 0.2, 14),  # 13 and one more
        (16, 8, 0.3, 16),  # 12 and four more
        (16, 2, 0.999, 2),
        (64, 4, 0.29, 48),  # 46 and two more
    ],
)
def test_dimensions_are_kept_up_to_a_multiple_of_the_heads(width, num_heads, residual_sparsity, dimensions):
    model = build_llama(dataclasses.replace(TINY.base, width=width, num_heads=num_heads), 300)
    config = config_of("random", residual_sparsity=residual_sparsity)
    assert of_model(student(model, config))[0] == dimensions
    cut(model, config, corpus().windows("python", LENGTH, 1))
    assert of_model(model)[0] == dimensions


@pytest.mark.parametrize("method", ["group_lasso", "attribution"])
def test_layers_ranked_on_their_own_keep_as_many_neurons_each(method):
    tensors = {}
    for per_layer in (True, False):
        experiment = begin(config_of(method, neuron_sparsity=0.7, per_layer=per_layer, lasso=training(updates=1)))
        while experiment.step()["neurons_kept"] == 64:
            pass
        tensors[per_layer] = experiment.model_tensors()
    assert sizes_of(tensors[True]) == [12, 10, 10]  # int(32 x 0.7) = 22 go of each
    dimensions, *widths = sizes_of(tensors[False])
    assert (dimensions, sum(widths)) == (12, 20)  # int(64 x 0.7) = 44 go of both


def test_a_layer_may_lose_all_its_neurons():
    """All groups of a strong proximal lasso are zero; of equals, those of the first layer go first."""
    lasso = training(updates=1, learning_rate=1e-2, warmup=0)
    config = config_of("group_lasso", lasso_way="proximal", lasso_strength=1e6, lasso=lasso, updates_per_step=4)
    experiment = begin(config)
    reports = [experiment.step()]
    state, experiment = experiment.state_dict(), begin(config)
    experiment.load_state_dict(state)
    reports += go_on(experiment)
    assert sizes_of(experiment.model_tensors()) == [12, 0, 32]
    assert [report["least_neurons"] for report in reports] == [0] * len(reports)
    assert held_out(rebuilt(experiment), "python") == pytest.approx(reports[-1]["kept_loss_nats"], abs=1e-6)


def base_of(*num_neurons):
    """The base model with the first neurons of its blocks alone, as if it had been narrowed before."""
    model = base_model()
    layers = layers_of(model)[:-1]
    remove(model, dissect(model), layers, [torch.arange(32) < count for count in num_neurons])
    return model


@pytest.mark.parametrize("num_neurons", [(24, 8), (0, 31), (0, 0)])
def test_a_student_has_as_many_neurons_as_pruning_leaves_where_blocks_are_unlike(num_neurons):
    """In each block half of their mean, rounded down before and up afterwards; a stock class has no empty MLP."""
    mean = max(1, sum(num_neurons) // 2)
    assert of_model(student(base_of(*num_neurons), TINY)) == [12, mean - mean // 2, mean - mean // 2]


@pytest.mark.parametrize("method", METHODS)
def test_reports_are_of_the_model_that_its_files_hold(tmp_path, method):
    """Losses, and every logit of the model as it is in memory."""
    experiment, reports = finished(method)
    save_model(Folder(tmp_path), "llm_narrowing", experiment.config, experiment.model_tensors(), experiment.model_files())
    loaded, last = load_model(tmp_path), reports[-1]
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert held_out(loaded, "python") == pytest.approx(last["kept_loss_nats"], abs=1e-6)
    assert held_out(loaded, "prose") == pytest.approx(last["other_loss_nats"], abs=1e-6)
    token_BT = corpus().windows("python", LENGTH, 2)
    with torch.no_grad():
        ours, theirs = (model(token_BT, use_cache=False).logits for model in (loaded, experiment._model))
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["attribution", "from_scratch"])
def test_the_folder_of_a_trials_model_is_one_that_transformers_loads(tmp_path, method):
    experiment, _ = run(config_of(method, per_layer=True))
    files = experiment.model_files()
    assert {"config.json", "tokenizer.json"} <= files.keys()
    assert "model.safetensors" not in files  # the service writes it
    save_model(Folder(tmp_path), "llm_narrowing", experiment.config, experiment.model_tensors(), files)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    token_BT = torch.arange(24).view(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(model(token_BT).logits, rebuilt(experiment)(token_BT).logits, rtol=0, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "def f(x):\n    return x + 1\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_folder_of_a_model_whose_blocks_are_unlike_has_its_code():
    assert "modeling_narrowed.py" in finished("weight_norm")[0].model_files()
    assert "modeling_narrowed.py" not in finished("from_scratch")[0].model_files()


@pytest.mark.parametrize("method", STUDENTS)
def test_students_of_one_seed_begin_alike_and_of_another_do_not(method):
    models = [begin(config_of(name, seed=seed)).model_tensors() for name, seed in ((method, 0), (STUDENTS[0], 0), (method, 1))]
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


def test_making_a_student_neither_draws_from_nor_moves_the_global_generator():
    torch.manual_seed(1)
    state, model = torch.get_rng_state(), base_model()
    first = dict(student(model, TINY).named_parameters())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert same(first, dict(student(model, TINY).named_parameters()))


def test_a_students_matrices_are_drawn_by_its_seed_and_their_names_as_a_base_models_are():
    model = student(base_model(), config_of(seed=3))
    again = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in again.parameters():
            if parameter.dim() == 2:
                parameter.zero_()
    draw_parameters(again, 3, "student")
    assert same(dict(model.named_parameters()), dict(again.named_parameters()))
