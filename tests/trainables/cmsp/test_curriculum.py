import dataclasses

import pytest
import torch

from trainables.cmsp.curriculum import Curriculum, CurriculumConfig
from trainables.experiment import DivergedError

CPU = torch.device("cpu")
TINY = CurriculumConfig.tiny()


def run(config):
    experiment = Curriculum(config, device=CPU)
    report = {}
    while experiment.progress < 1.0:
        report = experiment.step()
    return experiment, report


def test_default_is_the_broad_arm_of_figure_2():
    config = CurriculumConfig()
    assert config.counts == {(0, 1, 2, 3): 2000, (0,): 2000, (1,): 2000, (2,): 2000, (3,): 2000}
    assert config.num_updates == 200_000
    assert config.shape.num_parameters == 25_602


def test_a_mixture_holds_what_its_breadth_says_in_the_shares_it_says():
    config = dataclasses.replace(
        CurriculumConfig(), num_atoms=6, related_atoms=2, unrelated_atoms=1, intermediate_composites=2,
        composite_share=0.5, samples_per_update=1001,
    )  # fmt: skip
    assert config.other_codes == [(0,), (1,), (4,), (0, 1), (2, 3)]
    assert config.counts[(0, 1, 2, 3)] == 500
    assert sum(config.counts.values()) == 1001
    assert {config.counts[code] for code in config.other_codes} == {100, 101}


def test_a_two_level_hierarchy_has_a_control_of_as_many_unrelated_codes():
    hierarchy = dataclasses.replace(CurriculumConfig(), num_atoms=8, intermediate_composites=2, composite_share=1 / 7)
    control = dataclasses.replace(
        hierarchy, related_atoms=0, intermediate_composites=0, unrelated_atoms=4, unrelated_composites=2
    )
    assert hierarchy.other_codes == [(0,), (1,), (2,), (3,), (0, 1), (2, 3)]
    assert control.other_codes == [(4,), (5,), (6,), (7,), (4, 5), (6, 7)]


def test_learning_stops_when_all_seeds_have_converged():
    experiment, report = run(TINY)
    assert report["fraction_converged"] == 1.0
    assert experiment.progress == 1.0
    assert report["samples_to_convergence"] == report["samples_used"] < TINY.sample_budget
    assert report["composite_loss_bits"] < TINY.target_loss_bits


def test_a_seed_that_never_converges_counts_at_the_budget():
    config = dataclasses.replace(TINY, sample_budget=12_800, learning_rate=1e-5)
    _, report = run(config)
    assert report["samples_to_convergence"] == 12_800
    assert report["fraction_converged"] == 0.0
    assert report["composite_loss_bits"] > 0.5


def test_the_budget_is_what_an_unconverged_seed_pays_even_when_it_is_no_multiple_of_a_batch():
    _, report = run(dataclasses.replace(TINY, sample_budget=12_850, learning_rate=1e-5))
    assert report["samples_to_convergence"] == report["samples_used"] == 12_800


def test_a_converged_seed_keeps_its_numbers_while_others_train_on():
    alone = {seed: run(dataclasses.replace(TINY, seed=seed, num_seeds=1))[0] for seed in range(4)}
    together, report = run(dataclasses.replace(TINY, num_seeds=4))
    for seed, experiment in alone.items():
        for name, tensor in experiment.model_tensors().items():
            assert torch.equal(tensor[0], together.model_tensors()[name][seed])
    samples = sorted(experiment.step()["samples_to_convergence"] for experiment in alone.values())
    assert report["samples_to_convergence"] == (samples[1] + samples[2]) / 2


def test_rebuilt_networks_solve_the_composite():
    experiment, _ = run(TINY)
    networks = Curriculum.rebuild(TINY, experiment.model_tensors(), {})
    assert len(networks) == TINY.num_seeds
    x_BI = torch.randint(0, 2, (500, 8), generator=torch.Generator().manual_seed(0)).float()
    x_BI[:, :2] = 1.0
    for network in networks:
        accuracy = (network(x_BI).argmax(-1) == x_BI[:, 2:6].sum(-1).remainder(2)).float().mean()
        assert accuracy > 0.95


def test_a_learning_rate_that_blows_up_is_reported_as_divergence():
    with pytest.raises(DivergedError, match=r"must be finite.*lower learning_rate"):
        run(dataclasses.replace(TINY, learning_rate=1e37))


@pytest.mark.parametrize(
    ("changes", "law"),
    [
        ({"composite_share": 0.0}, r"composite_share must be in \(0, 1\]"),
        ({"composite_share": 1.2}, r"composite_share must be in \(0, 1\]"),
        ({"related_atoms": 0}, "composite_share must be 1 when nothing else"),
        ({"related_atoms": 3}, r"related_atoms must be in \[0, 2\]"),
        ({"unrelated_atoms": 1}, r"unrelated_atoms must be in \[0, 0\]"),
        ({"unrelated_composites": 1}, r"unrelated_composites must be in \[0, 0\]"),
        ({"composite_size": 1}, r"composite_size must be in \[2, 2\]"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive and finite"),
        ({"updates_per_evaluation": 51}, r"updates_per_evaluation must be in \[1, 50\]"),
        ({"updates_per_step": 120}, "updates_per_step must be a multiple"),
        ({"sample_budget": 10}, "sample_budget must be at least"),
        ({"num_seeds": 0}, "num_seeds must be at least 1"),
        ({"composite_share": 0.001}, "every code of the mixture must get at least one sample"),
        ({"composite_share": 0.999}, "every code of the mixture must get at least one sample"),
        ({"depth": 1}, "depth must be at least 2"),
        ({"num_task_bits": 3}, "num_task_bits must be at least"),
    ],
)
def test_a_config_states_the_law_that_it_breaks(changes, law):
    with pytest.raises(ValueError, match=law):
        dataclasses.replace(TINY, **changes)
