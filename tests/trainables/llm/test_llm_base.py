import dataclasses
import json

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from corpus_texts import write_texts

from trainables.llm import corpus_recipe as recipe_module
from trainables.llm.anatomy import neurons, residual
from trainables.llm.base import BaseConfig, base_recipes, build_llama, draw_parameters, train_base
from trainables.llm.corpus import Corpus
from trainables.llm.corpus_documents import CorpusConfig
from trainables.llm.corpus_recipe import corpus_recipe, make_corpus
from trainables.llm.dissection import dissect
from trainables.llm.files import save
from trainables.llm.shared_model import pack_model, unpack_model
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
    return tensors_of(train_base(config, Corpus.of(corpus_tensors), seed, CPU))


def base_recipe(config, corpus_config, seed):
    return base_recipes(config, corpus_config, seed)["base"]


def same(tensors, others):
    return tensors.keys() == others.keys() and all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


def tensors_of(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def drawn(config=TINY):
    """A model whose norms, which begin at one, show what becomes of them."""
    model = build_llama(config, VOCABULARY)
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
    """Those too that the corpus does not have, but that its tokenizer may make of other texts."""
    corpus = Corpus.of(corpus_tensors)
    about = json.dumps({**corpus.about, "vocabulary": corpus.vocabulary + 9}).encode()
    wider = {**corpus_tensors, "about.json": torch.tensor(list(about), dtype=torch.uint8)}
    for given, vocabulary in ((corpus_tensors, corpus.vocabulary), (wider, corpus.vocabulary + 9)):
        tensors = made(TINY, given)
        assert tensors["model.embed_tokens.weight"].shape == (vocabulary, 16)
        assert tensors.keys() == tensors_of(build_llama(TINY, vocabulary)).keys()
        assert "lm_head.weight" not in tensors
    assert corpus.vocabulary == corpus.tokenizer().largest_id + 1 > corpus.largest_id


def test_a_base_model_learns_all_domains_of_its_mixture(corpus_tensors):
    corpus = Corpus.of(corpus_tensors)
    model = build_llama(TINY, corpus.vocabulary)
    draw_parameters(model, 0, "base")
    longer = dataclasses.replace(SHORT, updates=60, learning_rate=1e-2)
    trained = train_base(dataclasses.replace(TINY, training=longer), corpus, 0, CPU)
    assert not trained.training
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
    own_fields = {field.name for field in dataclasses.fields(BaseConfig)} - {"pretrained", "revision"}
    assert len(keys) == 4 + len(changes) == 4 + len(own_fields)
    assert base_recipe(TINY, corpus_config, 0).key in keys


def test_a_pretrained_model_is_named_by_its_name_and_revision_alone(corpus_config):
    def keys(seed=0, **changes):
        recipes = base_recipes(dataclasses.replace(TINY, **changes), corpus_config, seed)
        return {name: recipe.key for name, recipe in recipes.items()}

    here = keys(pretrained="here")
    assert here == keys(seed=1, pretrained="here", width=32, weights={})
    assert here.keys() == {"base", "corpus", "tokenizer"}
    for other in (keys(pretrained="there"), keys(pretrained="here", revision="1")):
        assert not set(here.values()) & set(other.values())
    assert keys(revision="1") == keys()  # of the embedded model there is one
    recipes = base_recipes(dataclasses.replace(TINY, pretrained="here"), corpus_config, 0)
    assert recipes["corpus"].needs["tokenizer"].key == recipes["tokenizer"].key
    assert recipes["corpus"].key != corpus_recipe(corpus_config).key


def test_the_corpus_is_needed_and_not_made_again(corpus_config, tmp_path, monkeypatch):
    made_of, make = [], recipe_module.make_corpus
    monkeypatch.setattr(recipe_module, "make_corpus", lambda *args: made_of.append(args) or make(*args))
    shared = Shared(Folder(tmp_path / "shared"))
    first, second = (base_recipe(TINY, corpus_config, seed) for seed in (0, 1))
    assert [recipe.key for recipe in first.needs.values()] == [corpus_recipe(corpus_config).key]
    tensors = [tensors_of(unpack_model(shared.get(recipe, CPU))) for recipe in (first, second, first)]
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


def test_a_model_has_the_shape_of_its_config():
    config = BaseConfig(width=24, num_layers=3, mlp_width=40, num_heads=4)
    model = build_llama(config, VOCABULARY)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert len([name for name in shapes if name.endswith("down_proj.weight")]) == 3
    assert shapes["model.embed_tokens.weight"] == (VOCABULARY, 24)
    assert shapes["model.layers.2.self_attn.q_proj.weight"] == shapes["model.layers.2.self_attn.o_proj.weight"] == (24, 24)
    assert shapes["model.layers.1.mlp.up_proj.weight"] == (40, 24)
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


def through_a_study(model):
    return unpack_model(pack_model(model))


def test_a_base_model_comes_through_a_study_as_it_was():
    model = drawn()
    assert torch.equal(logits(model), logits(through_a_study(model)))


@pytest.mark.parametrize("neurons_left", [(24, 24), (9, 9), (5, 17), (1, 24), (0, 3), (0, 0)])
@pytest.mark.parametrize("dimensions_left", [16, 12, 2])
def test_a_cut_model_of_any_sizes_is_built_again(neurons_left, dimensions_left):
    """Its heads keep their width, and its norms the eps that makes up for what they do not average over any more."""
    model = cut(drawn(), neurons_left, dimensions_left)
    again = through_a_study(model)
    assert torch.equal(logits(model), logits(again))
    for block, count in enumerate(neurons_left):
        mlp = again.get_submodule(f"model.layers.{block}.mlp")
        sizes = [(each.in_features, each.out_features) for each in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)]
        assert sizes == [(dimensions_left, count), (dimensions_left, count), (count, dimensions_left)]
    assert again.get_submodule("model.layers.0.self_attn.q_proj").out_features == 16
    assert again.get_submodule("model.norm").variance_epsilon == pytest.approx(1e-6 * 16 / dimensions_left)


def test_a_model_that_was_built_again_has_its_head_tied_to_its_embedding_and_can_learn():
    model = through_a_study(cut(drawn(), (5, 17), 12))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


@pytest.mark.parametrize("born", ["cut", "small"])
def test_a_model_whose_mlps_are_all_as_wide_is_saved_as_its_stock_class(tmp_path, born):
    """As the model is that it was: with a config that tells its sizes, and no code in the folder."""
    small = dataclasses.replace(TINY, width=12, mlp_width=9)
    model = cut(drawn(), (9, 9), 12) if born == "cut" else drawn(small)
    for place, each in (("model", model), ("again", through_a_study(model))):
        assert (each.config.hidden_size, each.config.intermediate_size) == (12, 9)
        assert not save(each, tmp_path / place)


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
