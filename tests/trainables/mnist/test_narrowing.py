import dataclasses

import pytest
import torch

from trainables.experiment import build_experiment
from trainables.mnist.narrowing import Narrowing
from trainables.mnist.narrowing_config import SCORE_OF, NarrowingConfig
from trainables.mnist.teacher import TeacherConfig
from trainables.shared import Shared
from trainables.storage import Folder

CPU = torch.device("cpu")
TINY = NarrowingConfig.tiny()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Where teachers are made once for all tests."""
    return Shared(Folder(tmp_path_factory.mktemp("shared")))


def begin(shared, config):
    return build_experiment(Narrowing, config, device=CPU, shared=shared)


def candidates(shared, config, *, interrupted):
    """Number and metrics of every candidate of a whole run."""
    experiment, found = begin(shared, config), []
    while experiment.progress < 1.0:
        experiment.step()
        found += [(candidate.number, candidate.metrics) for candidate in experiment.candidates()]
        if interrupted:
            state, experiment = experiment.state_dict(), begin(shared, config)
            experiment.load_state_dict(state)
    return found


@pytest.mark.parametrize("ranking", ["per_layer", "global"])
@pytest.mark.parametrize("method", sorted(SCORE_OF))
@pytest.mark.parametrize(("widths", "neurons"), [((24, 24), 25), ((24, 24), 47), ((24, 24), 3), ((30, 7), 20), ((24, 24), 24)])
def test_pruning_leaves_as_many_neurons_as_it_was_told_and_the_network_can_be_done(shared, method, ranking, widths, neurons):
    """A target that any network has at the first check: 5 of 10 classes are kept, and one in fifty is enough."""
    teacher = TeacherConfig(widths=widths, epochs=3, batch_size=64, dropout=0.0, learning_rate=5e-3)
    config = dataclasses.replace(
        TINY,
        teacher=teacher,
        method=method,
        ranking=ranking,
        neurons=neurons,
        target_accuracy=0.02,
        num_seeds=1,
        checks_per_step=1,
    )
    experiment = begin(shared, config)
    report = experiment.step()
    assert report["neurons_kept"] == neurons
    assert report["fraction_reached"] == 1.0
    assert experiment.progress == 1.0


def test_an_interrupted_lasso_run_offers_the_candidates_of_one_that_was_not(shared):
    """Sizes are so close that networks pass several at once, one seed before the other."""
    config = dataclasses.replace(TINY, candidate_ratio=0.97, mask_threshold=0.3, checks_per_step=1)
    assert candidates(shared, config, interrupted=True) == candidates(shared, config, interrupted=False)
