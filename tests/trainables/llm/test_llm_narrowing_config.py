import dataclasses
import json
import math

import pytest

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from narrowing_trials import TINY, config_of, training

from trainables.llm.base import BaseConfig
from trainables.llm.corpus_documents import CorpusConfig
from trainables.llm.narrowing import Narrowing
from trainables.llm.narrowing_config import METHODS, PRUNING, NarrowingConfig
from trainables.llm.text_sources import Source
from trainables.llm.training import Training
from trainables.pruning.strength import StrengthRule


def test_default_is_the_papers_narrow_task_at_small_scale():
    config = NarrowingConfig()
    assert (config.kept_domain, config.method, config.breadth, config.temperature) == ("python", "attribution", 0.0, 2.0)
    assert (config.per_layer, config.lasso_way, config.lasso_rule, config.lasso_breadth) == (False, "subgradient", None, 0.0)
    assert (config.other_weights, config.base.pretrained) == ({}, "")
    assert 1e-4 <= config.lasso_strength <= 1e-3
    assert 0.5 <= config.neuron_sparsity <= 0.95


def test_a_config_survives_json_with_all_that_is_nested():
    config = config_of(
        "group_lasso",
        lasso_way="proximal",
        lasso_rule=StrengthRule(interval=7),
        lasso_breadth=0.1,
        other_weights={"prose": 2.0},
        relearning_rates=(1e-3, 2e-3, 5e-3),
        recovery=training(clip_norm=math.inf, updates=9),
        base=dataclasses.replace(TINY.base, weights={"python": 1.0}, pretrained="folder", revision="1"),
    )
    again = NarrowingConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    kinds = {name: type(getattr(again, name)) for name in ("corpus", "base", "lasso", "recovery", "relearning", "lasso_rule")}
    nested = dict.fromkeys(("lasso", "recovery", "relearning"), Training)
    assert kinds == {"corpus": CorpusConfig, "base": BaseConfig, "lasso_rule": StrengthRule, **nested}
    assert (type(again.base.training), type(again.relearning_rates)) == (Training, tuple)
    assert NarrowingConfig(recovery={"updates": 7}).recovery == Training(updates=7)


def test_relearning_differs_in_its_rate_alone():
    assert TINY.relearning_at(0.5) == dataclasses.replace(TINY.relearning, learning_rate=0.5)


def test_which_methods_cut_the_base_model_and_which_ask_it():
    assert {method for method in METHODS if config_of(method).prunes} == set(PRUNING)
    assert [config_of(method, teacher_share=0.3).teacher_weight for method in METHODS] == [0.3] * 5 + [0.0]


def test_only_the_group_lasso_has_a_stage_of_its_own():
    stages = {method: list(config_of(method).trainings) for method in METHODS}
    assert stages.pop("group_lasso") == ["lasso", "recovery", "relearning"]
    assert {tuple(names) for names in stages.values()} == {("recovery", "relearning")}


def test_corpus_and_base_are_needed_and_depend_on_neither_method_nor_seed():
    needs = [Narrowing.needs(config_of(method, seed=seed)) for method, seed in (("random", 0), ("attribution", 5))]
    assert [sorted(each) for each in needs] == [["base", "corpus"]] * 2
    assert needs[0]["corpus"].key == needs[1]["corpus"].key == needs[0]["base"].needs["corpus"].key
    assert needs[0]["base"].key == needs[1]["base"].key


def keys(config):
    return {name: recipe.key for name, recipe in Narrowing.needs(config).items()}


def test_what_is_needed_depends_on_what_it_is_made_of():
    plain, reseeded = keys(TINY), keys(config_of(base_seed=1))
    wider = keys(config_of(base=dataclasses.replace(TINY.base, width=32)))
    other = keys(config_of(corpus=dataclasses.replace(TINY.corpus, seed=1)))
    assert plain["corpus"] == reseeded["corpus"] == wider["corpus"] != other["corpus"]
    assert len({each["base"] for each in (plain, reseeded, wider, other)}) == 4


def test_a_pretrained_base_is_needed_with_its_tokenizer_whatever_the_embedded_one_would_be():
    def pretrained(name="here", **changes):
        return keys(config_of(base=dataclasses.replace(TINY.base, pretrained=name, **changes), base_seed=changes.get("width", 0)))

    here, there, revised, wider = pretrained(), pretrained("there"), pretrained(revision="1"), pretrained(width=32)
    assert here.keys() == {"base", "corpus", "tokenizer"}
    assert here == wider
    for name in here:
        assert len({each[name] for each in (here, there, revised)}) == 3
    assert here["corpus"] != keys(TINY)["corpus"]


NO_FILE = Source(kind="files", where="/nowhere/*.py", domain="python")


@pytest.mark.parametrize("pretrained", ["", "/nowhere/model"])
def test_texts_that_are_not_there_are_told_before_a_study_starts(pretrained):
    prose = Source(kind="installed", domain="prose")
    config = config_of(corpus=CorpusConfig(sources=(NO_FILE, prose)), base=dataclasses.replace(TINY.base, pretrained=pretrained))
    with pytest.raises(ValueError, match=r"there must be a file at /nowhere/\*\.py, but got none"):
        Narrowing.needs(config)["corpus"].check_all()
    with pytest.raises(ValueError, match="a pretrained model must be there" if pretrained else r"/nowhere/\*\.py"):
        Narrowing.needs(config)["base"].check_all()


@pytest.mark.parametrize(
    ("changes", "law"),
    [
        ({"method": "magic"}, r"method must be one of group_lasso, .*, from_scratch, but got 'magic'; use attribution"),
        ({"lasso_way": "none"}, "lasso_way must be one of subgradient, proximal, but got 'none'; use subgradient"),
        ({"neuron_sparsity": 1.0}, r"neuron_sparsity must be in \[0, 1\), but got 1.0; use 0.8"),
        ({"neuron_sparsity": -0.1}, r"neuron_sparsity must be in \[0, 1\), but got -0.1"),
        ({"neuron_sparsity": math.nan}, r"neuron_sparsity must be in \[0, 1\), but got nan"),
        ({"residual_sparsity": 1.0}, r"residual_sparsity must be in \[0, 1\), but got 1.0"),
        ({"breadth": 1.0}, r"breadth must be in \[0, 1\), but got 1.0"),
        ({"breadth": -0.1}, r"breadth must be in \[0, 1\), but got -0.1"),
        ({"lasso_breadth": 1.0}, r"lasso_breadth must be in \[0, 1\), but got 1.0"),
        ({"lasso_breadth": math.nan}, r"lasso_breadth must be in \[0, 1\), but got nan"),
        ({"teacher_share": 1.1}, r"teacher_share must be in \[0, 1\], or none, but got 1.1; use 0.5"),
        ({"teacher_share": math.nan}, r"teacher_share must be in \[0, 1\], or none, but got nan"),
        ({"lasso_strength": 0.0}, "lasso_strength must be positive, but got 0.0"),
        ({"lasso_strength": math.inf}, "lasso_strength must be positive, but got inf"),
        ({"lasso_rule": {"interval": 0}}, "interval must be at least 1, but got 0"),
        ({"temperature": 0.0}, "temperature must be positive, but got 0.0"),
        ({"temperature": math.nan}, "temperature must be positive, but got nan"),
        ({"target_loss_nats": 0.0}, "target_loss_nats must be positive, but got 0.0"),
        ({"window_length": 0}, "window_length must be at least 1, but got 0; use 1 or more"),
        ({"score_windows": 0}, "score_windows must be at least 1, but got 0; use 1 or more"),
        ({"evaluation_windows": 0}, "evaluation_windows must be at least 1, but got 0"),
        ({"updates_per_step": 0}, "updates_per_step must be at least 1, but got 0"),
        ({"relearning_rates": ()}, r"relearning_rates must be positive and finite, at least one, but got \(\); use \(1e-3,\)"),
        ({"relearning_rates": (1e-3, 0.0)}, "relearning_rates must be positive and finite"),
        ({"relearning_rates": (math.nan, 1e-3)}, "relearning_rates must be positive"),
        ({"relearning_rates": (1e-3, math.nan)}, "relearning_rates must be positive"),
        ({"relearning_rates": (1e-3, math.inf)}, "relearning_rates must be positive"),
        ({"kept_domain": "cpp"}, "kept_domain must be a domain of the corpus, but got 'cpp'; use one of prose, python"),
        ({"kept_domain": "rust", "corpus": {}}, "kept_domain must be a domain .*'rust'; use one of cpp, prose, python"),
        ({"corpus": {"domains": ["python"]}}, r"a corpus must have a domain beside the kept one, but got \['python'\]"),
        ({"base": {}}, r"the base's weights must be of domains of the corpus, but got \['cpp'\]; use prose, python"),
        ({"other_weights": {"rust": 1.0}}, r"other_weights must be of domains of the corpus, but got \['rust'\]"),
        ({"other_weights": {"python": 1.0}}, "other_weights must .* none the kept domain's, but got {'python': 1.0}"),
        ({"other_weights": {"prose": 0.0}}, "other_weights must be at least 0 and finite, one of them above 0"),
        ({"other_weights": {"prose": -1.0}}, "other_weights must be at least 0 and finite"),
        ({"other_weights": {"prose": math.nan}}, "other_weights must be at least 0 and finite"),
        ({"other_weights": {"prose": math.inf}}, "other_weights must be at least 0 and finite"),
        ({"recovery": {"updates": -1}}, "updates must be at least 0, but got -1"),
        ({"base": {"width": 0}}, "width must be at least 1, but got 0"),
    ],
)
def test_impossible_configs_are_refused_in_a_sentence(changes, law):
    with pytest.raises(ValueError, match=law):
        dataclasses.replace(TINY, **changes)


def test_the_edges_of_what_is_possible_are_allowed():
    dataclasses.replace(TINY, neuron_sparsity=0.0, residual_sparsity=0.0, breadth=0.0, teacher_share=1.0, relearning_rates=(1.0,))
    dataclasses.replace(TINY, neuron_sparsity=0.999, residual_sparsity=0.999, breadth=0.999, score_windows=1, updates_per_step=1)
    dataclasses.replace(TINY, lasso_breadth=0.999, other_weights={"prose": 1e-9}, window_length=1)


def test_a_pretrained_base_needs_no_weights_of_domains():
    """They are of the embedded model's training."""
    assert dataclasses.replace(TINY, base=BaseConfig(pretrained="here")).base.weights.keys() == {"python", "prose", "cpp"}
