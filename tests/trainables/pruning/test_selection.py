import math

import pytest
import torch

from trainables.pruning.selection import choose_kept, keep_more, overlap


def test_the_lowest_scores_of_all_layers_together_go():
    kept = choose_kept([torch.tensor([5.0, 1.0, 3.0]), torch.tensor([2.0, 4.0, 6.0, 0.5])], 3 / 7)
    assert [keep_H.tolist() for keep_H in kept] == [[True, False, True], [False, True, True, False]]


def test_a_layer_can_lose_all_its_units_to_a_global_ranking_and_not_to_its_own():
    scores = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])]
    assert [keep_H.tolist() for keep_H in choose_kept(scores, 0.5)] == [[False, False], [True, True]]
    assert [keep_H.tolist() for keep_H in choose_kept(scores, 0.5, per_layer=True)] == [[False, True], [False, True]]


def test_ties_go_by_layer_and_then_by_index():
    scores = [torch.zeros(300), torch.zeros(300)]  # long enough for a sort that is not stable to show it
    first, second = choose_kept(scores, 0.75)
    assert not first.any()
    assert second.nonzero().flatten().tolist() == list(range(150, 300))


@pytest.mark.parametrize(
    ("count", "sparsity", "removed"),
    [(100, 0.29, 29), (100, 0.0, 0), (100, 0.999, 99), (131_072, 0.3, 39_321), (131_072, 0.63, 82_575), (131_072, 0.8, 104_857)],
)
def test_sparsity_is_exact(count, sparsity, removed):
    (keep_H,) = choose_kept([torch.rand(count)], sparsity)
    assert (~keep_H).sum() == removed


@pytest.mark.parametrize("sparsity", [1.2, 1.0, -0.1, math.nan])
def test_a_sparsity_out_of_range_is_refused(sparsity):
    with pytest.raises(ValueError, match=rf"sparsity must be in \[0, 1\), but got {sparsity}; use 0.95 to keep one unit in"):
        choose_kept([torch.rand(4)], sparsity)


def test_a_score_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match=r"scores must be finite, but got \[nan\]; the network diverged"):
        choose_kept([torch.tensor([1.0, math.nan])], 0.5)


def test_overlap_is_the_share_of_the_top_units_that_two_scores_have_in_common():
    a = [torch.tensor([9.0, 8.0, 1.0]), torch.tensor([7.0, 2.0, 3.0])]  # top half: units 0, 1, 3
    b = [torch.tensor([9.0, 1.0, 8.0]), torch.tensor([7.0, 2.0, 3.0])]  # top half: units 0, 2, 3
    assert overlap(a, b, 0.5) == 2 / 4
    assert overlap(a, a, 0.5) == 1.0
    assert overlap(a, [-score_H for score_H in a], 0.5) == 0.0
    assert overlap(a, b, 1.0) == 1.0


@pytest.mark.parametrize("fraction", [0.0, 1.5])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match=rf"fraction must be in \(0, 1\], but got {fraction}; use 0.25 for the top quarter"):
        overlap([torch.rand(4)], [torch.rand(4)], fraction)


def test_overlap_of_different_networks_is_refused():
    with pytest.raises(ValueError, match=r"both scores must be of the same layers, but got \[4\] and \[2, 2\] units"):
        overlap([torch.rand(4)], [torch.rand(2), torch.rand(2)], 0.5)


def test_keeping_more_keeps_what_was_kept_and_the_best_of_the_rest():
    score_H, keep_H = torch.tensor([0.5, 9.0, 3.0, 2.0, 3.0]), torch.tensor([True, False, False, False, False])
    assert keep_more(score_H, keep_H, 3).tolist() == [True, True, True, False, False]
    assert keep_more(score_H, keep_H, 1).tolist() == keep_H.tolist()
    assert keep_more(score_H, keep_H, 5).all()
    for count in (0, 6):
        with pytest.raises(ValueError, match=f"between 1 and 5 units can be kept, but got {count}"):
            keep_more(score_H, keep_H, count)
