import dataclasses
import json

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from corpus_texts import write_texts

from trainables.llm import corpus_recipe as recipe_module
from trainables.llm.anatomy import neurons, residual
from trainables.llm.base import (
    EPS,
    BaseConfig,
    base_recipe,
    build_llama,
    draw_parameters,
    load_parameters,
    rebuild_llama,
    train_base,
)
from trainables.llm.corpus import Corpus
from trainables.llm.corpus_documents import CorpusConfig
from trainables.llm.corpus_recipe import corpus_recipe, make_corpus
from trainables.llm.dissection import dissect
from trainables.llm.files import save
from trainables.llm.surgery import remove
from trainables.llm.text_sources import Source
from trainables.llm.training import Training, mean_loss_nats
from trainables.shared import Shared
from trainables.storage import Folder

CPU = torch.device("cpu")
VOCABULARY = 61
SHORT = Training(updates=3, batch_size=4, length=16, warmup=1)
TINY = BaseConfig(width=16, num_layers=2, mlp_width=24, num_heads=2, weights={"code": 0.5, "prose": 0.5}, training=SHORT)


@pytest.fixture(scope="module")
def corpus_config(tmp_path_factory):
    """Two domains of a few kilobytes, of files."""
    folder = tmp_path_factory.mktemp("texts")
    for domain in ("code", "prose"):
        write_texts(folder, domain, 60)
    sources = tuple(Source(kind="files", where=str(folder / domain), domain=domain) for domain in ("code", "prose"))
    return CorpusConfig(sources=sources, vocabulary=300)


@pytest.fixture(scope="module")
def corpus_tensors(corpus_config):
    return make_corpus(corpus_config)


def backwards(token_N):
    return token_N.to(torch.int32).flip(0)


def made(config, corpus_tensors, seed=0):
    return train_base(config, Corpus.of(corpus_tensors), seed, CPU)


def same(tensors, others):
    return tensors.keys() == others.keys() and all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


def tensors_of(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def drawn(config=TINY, **sizes):
    """A model whose norms, which begin at one, show what becomes of them."""
    model = build_llama(config, VOCABULARY, **sizes)
    draw_parameters(model, 3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def logits(model):
    token_BT = torch.randint(VOCABULARY, (2, 10), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(token_BT, use_cache=False).logits


def cut(model, neurons_left, dimensions_left):
    """Take units out: so many neurons of each MLP and so many dimensions stay."""
    anatomy, tensors = dissect(model), dict(model.named_parameters())
    layers, generator = [*neurons(anatomy, tensors), residual(anatomy, tensors)], torch.Generator().manual_seed(2)
    counts = [*neurons_left, dimensions_left]
    keep = [torch.randperm(units.count, generator=generator) < count for units, count in zip(layers, counts, strict=True)]
    remove(model, anatomy, layers, keep)
    return model


def test_a_base_model_is_made_twice_alike_and_another_seed_makes_another(corpus_tensors):
    first, again, other = (made(TINY, corpus_tensors, seed) for seed in (0, 0, 1))
    assert same(first, again)
    assert not any(torch.equal(first[name], other[name]) for name in first if first[name].dim() == 2)


def test_making_a_base_model_neither_draws_from_nor_moves_the_global_generator(corpus_tensors):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = made(TINY, corpus_tensors)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert same(first, made(TINY, corpus_tensors))


def test_a_base_model_holds_every_parameter_once_and_knows_every_token(corpus_tensors):
    tensors, model = made(TINY, corpus_tensors), build_llama(TINY, Corpus.of(corpus_tensors).largest_id + 1)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: parameter.shape for name, parameter in model.named_parameters()
    }
    assert not any(tensor.requires_grad for tensor in tensors.values())
    assert "lm_head.weight" not in tensors


def test_a_base_model_learns_all_domains_of_its_mixture(corpus_tensors):
    corpus = Corpus.of(corpus_tensors)
    model = build_llama(TINY, corpus.largest_id + 1)
    draw_parameters(model, 0, "base")
    longer = dataclasses.replace(SHORT, updates=60, learning_rate=1e-2)
    tensors = made(dataclasses.replace(TINY, training=longer), corpus_tensors)
    trained = build_llama(TINY, corpus.largest_id + 1)
    load_parameters(trained, tensors)
    for domain in corpus.domains:
        windows = corpus.windows(domain, 16, 8)
        before, after = (mean_loss_nats(each, windows, batch_size=8) for each in (model, trained))
        assert after < before - 1


def test_a_domain_of_no_weight_is_never_read(corpus_tensors):
    one_sided = dataclasses.replace(TINY, weights={"code": 1.0, "prose": 0.0})
    changed = {**corpus_tensors, "tokens/training/prose": backwards(corpus_tensors["tokens/training/prose"])}
    assert same(made(one_sided, corpus_tensors), made(one_sided, changed))
    assert not same(made(TINY, corpus_tensors), made(TINY, changed))


def test_held_out_and_attribution_text_is_never_read(corpus_tensors):
    changed = {
        name: backwards(tensor) if name.startswith(("tokens/evaluation", "tokens/attribution")) else tensor
        for name, tensor in corpus_tensors.items()
    }
    assert same(made(TINY, corpus_tensors), made(TINY, changed))


def test_more_updates_than_are_made_at_once_are_all_made(corpus_tensors, monkeypatch):
    monkeypatch.setattr("trainables.llm.base._UPDATES_AT_ONCE", 2)
    few_at_once = made(TINY, corpus_tensors)  # 2 and 1
    monkeypatch.undo()
    assert same(few_at_once, made(TINY, corpus_tensors))
    assert not same(few_at_once, made(dataclasses.replace(TINY, training=dataclasses.replace(SHORT, updates=4)), corpus_tensors))


def test_corpus_config_and_seed_name_the_base_model(corpus_config):
    keys = {
        base_recipe(TINY, corpus_config, 0).key,
        base_recipe(TINY, corpus_config, 1).key,
        base_recipe(TINY, dataclasses.replace(corpus_config, seed=1), 0).key,
        base_recipe(TINY, dataclasses.replace(corpus_config, vocabulary=301), 0).key,
    }
    training = dataclasses.replace(SHORT, learning_rate=2e-3)
    changes = [
        {"width": 32}, {"num_layers": 3}, {"mlp_width": 25}, {"num_heads": 4}, {"weights": {"code": 1.0}}, {"training": training},
    ]  # fmt: skip
    keys |= {base_recipe(dataclasses.replace(TINY, **change), corpus_config, 0).key for change in changes}
    assert len(keys) == 4 + len(changes) == 4 + len(dataclasses.fields(BaseConfig))
    assert base_recipe(TINY, corpus_config, 0).key in keys


def test_the_corpus_is_needed_and_not_made_again(corpus_config, tmp_path, monkeypatch):
    made_of, make = [], recipe_module.make_corpus
    monkeypatch.setattr(recipe_module, "make_corpus", lambda *args: made_of.append(args) or make(*args))
    shared = Shared(Folder(tmp_path / "shared"))
    first, second = (base_recipe(TINY, corpus_config, seed) for seed in (0, 1))
    assert [recipe.key for recipe in first.needs.values()] == [corpus_recipe(corpus_config).key]
    tensors = [shared.get(recipe, CPU) for recipe in (first, second, first)]
    assert same(tensors[0], tensors[2])
    assert not same(tensors[0], tensors[1])
    assert len(made_of) == 1
    corpus = shared.get(corpus_recipe(corpus_config), CPU)
    assert len(made_of) == 1
    assert same(tensors[0], made(TINY, corpus))


def test_building_a_model_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    draw_parameters(build_llama(TINY, VOCABULARY), 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_has_the_shape_of_its_config_or_a_smaller_one_with_the_same_heads():
    config = BaseConfig(width=24, num_layers=3, mlp_width=40, num_heads=4)
    whole, small = build_llama(config, VOCABULARY), build_llama(config, VOCABULARY, width=12, mlp_width=7)
    for model, width, mlp_width in ((whole, 24, 40), (small, 12, 7)):
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        assert len([name for name in shapes if name.endswith("down_proj.weight")]) == 3
        assert shapes["model.embed_tokens.weight"] == (VOCABULARY, width)
        assert shapes["model.layers.2.self_attn.q_proj.weight"] == (24, width)  # 4 heads of 6, whatever the width
        assert shapes["model.layers.2.self_attn.o_proj.weight"] == (width, 24)
        assert shapes["model.layers.1.mlp.up_proj.weight"] == (mlp_width, width)
        assert not model.training
    assert config.head_width == 6


def test_drawn_parameters_are_small_smaller_where_blocks_write_and_ones_in_norms():
    model = build_llama(BaseConfig(width=64, num_layers=2, mlp_width=128, num_heads=4), VOCABULARY)
    draw_parameters(model, 0)
    for name, parameter in tensors_of(model).items():
        if parameter.dim() == 1:
            assert parameter.tolist() == [1.0] * 64
        else:
            std = 0.02 / 2 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02  # 4 writes: two blocks, two each
            assert float(parameter.std()) == pytest.approx(std, rel=0.06)
            assert abs(float(parameter.mean())) < 0.06 * std


def test_what_is_drawn_depends_on_seed_and_name_alone():
    model, again, other = (build_llama(TINY, VOCABULARY) for _ in range(3))
    for each, seed in ((model, (1, "base")), (again, (1, "base")), (other, (1, "student"))):
        draw_parameters(each, *seed)
    assert same(tensors_of(model), tensors_of(again))
    matrices = [name for name, tensor in tensors_of(model).items() if tensor.dim() == 2]
    assert not any(torch.equal(tensors_of(model)[name], tensors_of(other)[name]) for name in matrices)
    blocks = [tensors_of(model)[f"model.layers.{block}.mlp.up_proj.weight"] for block in range(2)]
    assert not torch.equal(*blocks)


def test_a_base_model_is_built_again_from_its_parameters():
    model = drawn()
    again = rebuild_llama(TINY, tensors_of(model), is_cut=True)
    assert torch.equal(logits(model), logits(again))
    assert torch.equal(logits(model), logits(rebuild_llama(TINY, tensors_of(model), is_cut=False)))


@pytest.mark.parametrize("neurons_left", [(24, 24), (9, 9), (5, 17), (1, 24), (0, 3), (0, 0)])
@pytest.mark.parametrize("dimensions_left", [16, 12, 2])
def test_a_cut_model_of_any_sizes_is_built_again_from_its_parameters(neurons_left, dimensions_left):
    model = cut(drawn(), neurons_left, dimensions_left)
    again = rebuild_llama(TINY, tensors_of(model), is_cut=True)
    assert torch.allclose(logits(model), logits(again), rtol=1e-6, atol=1e-7)
    for block, count in enumerate(neurons_left):
        mlp = again.get_submodule(f"model.layers.{block}.mlp")
        sizes = [(each.in_features, each.out_features) for each in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)]
        assert sizes == [(dimensions_left, count), (dimensions_left, count), (count, dimensions_left)]


def test_a_cut_models_norms_have_another_eps_than_a_small_models():
    """A dimension of four is left, so what is averaged over a fourth has a fourfold eps."""
    tensors = tensors_of(cut(drawn(), (24, 24), 4))
    small, cut_one = (rebuild_llama(TINY, tensors, is_cut=is_cut) for is_cut in (False, True))
    assert small.get_submodule("model.norm").variance_epsilon == EPS
    assert cut_one.get_submodule("model.norm").variance_epsilon == pytest.approx(4 * EPS)
    assert not torch.allclose(logits(small), logits(cut_one), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("width", "mlp_width"), [(16, 5), (10, 24), (2, 1)])
def test_a_student_is_built_again_from_its_parameters(width, mlp_width):
    student = drawn(width=width, mlp_width=mlp_width)
    assert torch.equal(logits(student), logits(rebuild_llama(TINY, tensors_of(student), is_cut=False)))


def test_a_rebuilt_model_has_its_head_tied_to_its_embedding_and_can_learn():
    model = rebuild_llama(TINY, tensors_of(cut(drawn(), (5, 17), 12)), is_cut=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


@pytest.mark.parametrize("born", ["cut", "small"])
def test_a_rebuilt_model_whose_mlps_are_all_as_wide_is_saved_as_its_stock_class(tmp_path, born):
    """As the model is that it was: with a config that tells its sizes, and no code in the folder."""
    model = cut(drawn(), (9, 9), 12) if born == "cut" else drawn(width=12, mlp_width=9)
    again = rebuild_llama(TINY, tensors_of(model), is_cut=born == "cut")
    assert (model.config.hidden_size, model.config.intermediate_size) == (12, 9)
    assert not save(model, tmp_path / "model")
    assert (again.config.hidden_size, again.config.intermediate_size) == (12, 9)
    assert not save(again, tmp_path / "again")


def test_parameters_are_put_in_place_by_copy():
    model, other = drawn(), build_llama(TINY, VOCABULARY)
    given = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
    load_parameters(other, given)
    assert torch.equal(logits(model), logits(other))
    for tensor in given.values():
        tensor.zero_()
    assert torch.equal(logits(model), logits(other))


def test_parameters_that_are_missing_or_left_over_are_refused():
    model = drawn()
    tensors, before = tensors_of(model), logits(model)
    missing = {name: torch.zeros_like(tensor) for name, tensor in tensors.items() if name != "model.norm.weight"}
    law = r"a model's parameters must be given, each once, but got \['{}'\] missing or left over; use tensors of this model"
    for given, name in ((missing, "model.norm.weight"), ({**tensors, "lm_head.weight": torch.zeros(1)}, "lm_head.weight")):
        with pytest.raises(ValueError, match=law.format(name)):
            load_parameters(model, given)
    assert torch.equal(logits(model), before)


def test_a_config_survives_json_with_its_training():
    again = BaseConfig(**json.loads(json.dumps(dataclasses.asdict(TINY))))
    assert again == TINY
    assert type(again.training) is Training
    assert BaseConfig(training={"updates": 7}).training == Training(updates=7)


@pytest.mark.parametrize(
    ("changes", "law"),
    [
        ({"width": 0}, "width must be at least 1, but got 0; use 1 or more"),
        ({"num_layers": 0}, "num_layers must be at least 1, but got 0"),
        ({"mlp_width": 0}, "mlp_width must be at least 1, but got 0"),
        ({"num_heads": 0}, "num_heads must be at least 1, but got 0"),
        ({"width": 18, "num_heads": 4}, "width must be an even multiple of num_heads, .* but got 18; use a multiple of 8"),
        ({"training": {"updates": -1}}, "updates must be at least 0, but got -1"),
    ],
)
def test_impossible_base_models_are_refused_in_a_sentence(changes, law):
    with pytest.raises(ValueError, match=law):
        dataclasses.replace(TINY, **changes)


def test_heads_of_an_odd_width_are_refused_or_work():
    """Positions turn pairs of a head's dimensions."""
    try:
        config = dataclasses.replace(TINY, width=12, num_heads=4)
    except ValueError:
        return
    assert logits(drawn(config)).isfinite().all()
