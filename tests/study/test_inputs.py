"""What a space's configs need is looked at before any trial runs; what it reports may be a family."""

import dataclasses

import pytest

from search_spaces.space import StudySpace
from study.errors import UserError
from study.probe import check_inputs, describe_space
from trainables.experiment import Experiment, Metric
from trainables.shared import Recipe

ASKED = []
BAD = {3: ValueError("corpus 3 must be there, but is not; put it there"), 5: OSError("disk"), 7: ImportError("pip install it")}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    corpus: int = 0


class Reader(Experiment):
    """Needs a model that is made of a corpus."""

    Config = Config
    METRICS = (
        Metric(name="loss", goal="min", unit="nats", meaning="on all texts"),
        Metric(name="loss/*", goal="min", unit="nats", meaning="on each text"),
        Metric(name="size/*", goal=None, unit="1", meaning="of each block"),
    )
    progress = 1.0

    def __init__(self, config, *, device, given):
        pytest.fail("no trial runs yet")

    step = state_dict = load_state_dict = model_tensors = rebuild = None

    @classmethod
    def needs(cls, config):
        def check():
            ASKED.append(config.corpus)
            if config.corpus in BAD:
                raise BAD[config.corpus]

        def make(device, given=None):
            pytest.fail("made before a trial asked")

        ingredients = {"seed": config.corpus}
        corpus = Recipe(name="corpus", ingredients=ingredients, make=make, check=check)
        return {"base": Recipe(name="base", ingredients={}, make=make, needs={"corpus": corpus})}


def space(*corpora, **changes):
    def suggest(trial):
        return {"corpus": trial.suggest_categorical("corpus", list(corpora))}

    fields = {"experiment": "test_inputs:Reader", "suggest": suggest, "objectives": ("loss",)}
    return StudySpace(**(fields | changes))


@pytest.fixture(autouse=True)
def asked():
    ASKED.clear()
    return ASKED


def test_what_every_config_needs_is_looked_at_once(asked):
    check_inputs(space(0, 1, 2))
    assert sorted(asked) == [0, 1, 2]


@pytest.mark.parametrize("bad", sorted(BAD))
def test_what_is_of_no_use_is_the_users_mistake_though_only_some_trials_would_need_it(bad, asked):
    with pytest.raises(UserError, match=str(BAD[bad]).split(",")[0]):
        check_inputs(space(*range(bad), bad))
    assert bad in asked


def test_a_bug_in_a_look_is_not_the_users_mistake(monkeypatch):
    monkeypatch.setitem(BAD, 0, ZeroDivisionError("ours"))
    with pytest.raises(ZeroDivisionError):
        check_inputs(space(0))


def test_one_of_a_family_may_be_an_objective_and_a_representative():
    family = space(0, objectives=("loss", "loss/python"), representative="loss/prose")
    description = describe_space(family)
    assert description.objectives == {"loss": "min", "loss/python": "min"}
    assert description.representative == {"loss/prose": "min"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": ("size/000",)}, r"an objective must .* that has a goal, but got 'size/000'; use loss, loss/\*"),
        ({"objectives": ("accuracy/python",)}, "an objective must be a metric of"),
        ({"representative": "size/000"}, "a representative must be a metric of"),
        ({"constraints": ("width <= 3",)}, r"a constraint must bound a metric of .*; use loss, loss/\*, size/\*"),
    ],
)
def test_what_no_family_declares_or_has_no_goal_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        describe_space(space(0, **changes))


def test_a_pretrained_model_that_is_not_there_is_told_of_before_a_study_starts(tmp_path):
    pytest.importorskip("transformers")
    files = {"kind": "files", "where": str(tmp_path), "domain": "python"}
    corpus = {"sources": [files, {"kind": "installed", "domain": "prose"}]}
    (tmp_path / "a.py").write_text("x = 1\n")
    config = {"base": {"pretrained": str(tmp_path / "nowhere")}, "corpus": corpus}
    pretrained = StudySpace(experiment="llm_narrowing", suggest=lambda trial: config, objectives=("kept_loss_nats",))
    with pytest.raises(UserError, match=r"a pretrained model must be there, but got .*/nowhere; name a folder of transformers"):
        check_inputs(pretrained)
