"""What a trial asks of a cluster, and how many fit; the clusters are lists of nodes."""

import dataclasses

import pytest

from search_spaces.space import StudySpace
from study.errors import UserError
from study.running import placement
from study.running.placement import Node, Placement, concurrency, place

SMALL = Node("a1", "small", {"CPU": 8, "GPU": 1}, "T4", 16.0)
LARGE = Node("b1", "large", {"CPU": 8, "GPU": 2}, "H100", 80.0)
PLAIN = Node("c1", "plain", {"CPU": 4})


@dataclasses.dataclass
class Needs:
    num_cpus: float = 1
    num_gpus: float = 0
    gpu_memory_gib: float = 0
    resources: dict = dataclasses.field(default_factory=dict)


@pytest.mark.parametrize(
    ("bundle", "slots"),
    [
        ({"CPU": 1}, 20),
        ({"CPU": 3}, 5),
        ({"CPU": 5}, 2),
        ({"GPU": 0.25}, 12),
        ({"GPU": 0.6}, 3),
        ({"GPU": 1 / 3}, 9),
        ({"CPU": 4, "GPU": 0.5}, 4),
        ({"GPU": 2}, 1),
        ({"CPU": 1, "rare": 1}, 0),
        ({}, 3),
    ],
)
def test_trials_are_counted_node_by_node_and_gpu_by_gpu(bundle, slots):
    assert Placement(bundle, {}).num_slots([SMALL, LARGE, PLAIN]) == slots


@pytest.mark.parametrize(
    ("needs", "share", "hosts"),
    [
        (Needs(num_gpus=1, gpu_memory_gib=8), 0.5, {"small", "large"}),
        (Needs(num_gpus=1, gpu_memory_gib=20), 0.25, {"large"}),
        (Needs(num_gpus=1, gpu_memory_gib=80), 1, {"large"}),
        (Needs(num_gpus=2, gpu_memory_gib=20), 2, {"large"}),
        (Needs(num_gpus=1, gpu_memory_gib=16 / 3), 1 / 3, {"small", "large"}),
        (Needs(num_gpus=0.25, gpu_memory_gib=4), 0.25, {"small", "large"}),
        (Needs(num_gpus=0.25, gpu_memory_gib=20), 0.25, {"large"}),
    ],
)
def test_a_trial_takes_the_share_of_a_gpu_that_its_memory_is_and_only_of_gpus_that_have_it(needs, share, hosts):
    found = place(needs, [SMALL, LARGE, PLAIN])
    assert found.bundle["GPU"] == pytest.approx(share, abs=1e-4)
    assert {node.host for node in (SMALL, LARGE, PLAIN) if found.num_slots([node])} == hosts


def test_shares_never_add_up_to_more_memory_than_a_gpu_has():
    for gib in (0.1, 0.7, 3, 7, 11, 23.9, 80 / 3):
        found = place(Needs(num_cpus=0, num_gpus=1, gpu_memory_gib=gib), [LARGE])
        assert found.num_slots([LARGE]) / 2 * gib <= 80 + 1e-6
        assert found.num_slots([LARGE]) / 2 >= min(80 // gib, 80 / gib * 0.9)
        assert found.bundle["GPU"] <= 1


def test_gpus_are_told_apart_by_their_type_or_else_by_their_nodes():
    needs = Needs(num_gpus=1, gpu_memory_gib=20)
    assert place(needs, [SMALL, LARGE]).selector == {"ray.io/accelerator-type": "in(H100)"}
    same_type = dataclasses.replace(SMALL, accelerator="H100")
    assert place(needs, [same_type, LARGE]).selector == {"ray.io/node-id": "in(b1)"}
    assert place(needs, [LARGE]).selector == {}


def test_where_no_gpu_is_known_yet_a_trial_takes_a_whole_one():
    unknown = dataclasses.replace(LARGE, gpu_memory_gib=None)
    for nodes in ([PLAIN], [unknown]):
        assert place(Needs(num_gpus=1, gpu_memory_gib=20), nodes).bundle == {"CPU": 1, "GPU": 1}


def test_a_trial_that_is_too_large_for_every_gpu_is_refused():
    with pytest.raises(UserError, match=r"needs one of 90 GiB and the largest has 80; use "):
        place(Needs(num_gpus=1, gpu_memory_gib=90), [SMALL, LARGE])


def test_trials_are_handed_out_as_nodes_come_and_never_more_than_the_limit(monkeypatch):
    nodes, now = [PLAIN], [0.0]
    monkeypatch.setattr(placement, "nodes_now", lambda: nodes)
    monkeypatch.setattr(placement.time, "monotonic", lambda: now[0])
    one_each = Placement({"CPU": 1}, {})
    free, limited = concurrency(one_each, None, may_wait=True), concurrency(one_each, 6, may_wait=False)
    assert (free(), limited()) == (4, 4)
    nodes.append(LARGE)
    assert (free(), limited()) == (4, 4)
    now[0] = 6.0
    assert (free(), limited()) == (12, 6)
    nodes.clear()
    now[0] = 12.0
    assert free() == 1  # a node may come back
    assert concurrency(one_each, 3, may_wait=True)() == 3


def test_a_trial_that_fits_no_node_is_refused_with_what_there_is(monkeypatch):
    monkeypatch.setattr(placement, "nodes_now", lambda: [PLAIN])
    with pytest.raises(UserError, match=r"needs 5 CPU and plain has 4 CPU, 0 GPU; lower --cpus-per-trial .*--max-concurrent 8"):
        concurrency(Placement({"CPU": 5}, {}), 2, may_wait=False)


@pytest.mark.parametrize(
    ("fields", "law"),
    [
        ({"gpu_memory_gib": 8}, "gpu_memory_gib must be at least 0, and needs num_gpus above 0"),
        ({"gpu_memory_gib": -1, "num_gpus": 1}, "gpu_memory_gib must be at least 0"),
        ({"resources": {"GPU": 1}}, "positive amounts of Ray's custom resources"),
        ({"resources": {"rare": 0}}, "positive amounts of Ray's custom resources"),
    ],
)
def test_a_space_says_what_its_trials_need_in_amounts_that_make_sense(fields, law):
    with pytest.raises(ValueError, match=law):
        StudySpace(experiment="cmsp_curriculum", suggest=lambda trial: {}, objectives=("x",), **fields)
