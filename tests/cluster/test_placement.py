"""Where trials go on real clusters: nodes with other GPUs, nodes with something rare, clusters that grow by demand."""

import json
import subprocess
import sys
from contextlib import contextmanager

import commands
import pytest
from clusters import RAY, free_port, temporary_cluster

pytestmark = pytest.mark.cluster
COMMON = ["--disable-usage-stats", "--object-store-memory=80000000"]
GPUS = """
import json, sys
import ray, ray.util
from study.running.placement import concurrency, nodes_now, place

class Spec:
    num_cpus, num_gpus, gpu_memory_gib, resources = 1, 1, float(sys.argv[2]), {}

ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
nodes = nodes_now(gpu_memory=True)
placement = place(Spec, nodes)
groups = [placement.request().to_placement_group() for _ in range(placement.num_slots(nodes))]
assert ray.wait([group.ready() for group in groups], num_returns=len(groups), timeout=60)[1] == []
one_more = placement.request().to_placement_group()
assert ray.wait([one_more.ready()], timeout=3)[0] == []
table = ray.util.placement_group_table()
labels = {node["NodeID"]: node["Labels"].get("size", "head") for node in ray.nodes()}
on = [labels[table[group.id.hex()]["bundles_to_node_id"][0]] for group in groups]
print(json.dumps({"on": sorted(on), "gpu": placement.bundle["GPU"], "allowed": concurrency(placement, None, may_wait=True)()}))
"""


def ray_start(*options):
    subprocess.run([*RAY, "start", *options, *COMMON], check=True, capture_output=True, text=True, timeout=120)


@contextmanager
def head():
    """The address of a cluster that has a head and no CPUs."""
    port = free_port()
    with temporary_cluster() as folder:
        ray_start("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}", "--num-cpus=0")
        yield f"127.0.0.1:{port}"


def test_trials_share_gpus_by_memory_and_leave_small_ones_alone():
    with head() as address:
        for size, memory, num_gpus in (("small", 16, 1), ("large", 80, 2)):
            labels = f"size={size},ray.io/accelerator-type={size},narrow-study.io/gpu-memory-gib={memory}"
            ray_start(f"--address={address}", "--num-cpus=8", f"--num-gpus={num_gpus}", f"--labels={labels}")
        asked = [subprocess.run([sys.executable, "-c", GPUS, address, str(gib)], capture_output=True, text=True, timeout=200)
                 for gib in (30, 8)]  # fmt: skip
        assert [result.returncode for result in asked] == [0, 0], [result.stderr for result in asked]
        large, all_gpus = [json.loads(result.stdout.splitlines()[-1]) for result in asked]
    assert large == {"on": ["large"] * 4, "gpu": 0.375, "allowed": 4}
    assert all_gpus == {"on": ["large"] * 4 + ["small"] * 2, "gpu": 0.5, "allowed": 6}


def test_a_cluster_without_room_is_the_users_mistake_unless_trials_may_wait_as_demand_for_it_to_grow(home, desk):
    (desk / "rare.py").write_text(
        "import dataclasses\nimport user_space\n\n\n"
        "def rare():\n    return dataclasses.replace(user_space.slow(), resources={'rare': 1})\n"
    )
    launch = ("launch", "rare:rare", "--name", "g", "--trials", "4")
    with head() as address:
        refused = commands.run(*launch, "--address", address, home=home, cwd=desk)
        assert refused.returncode == 2
        assert "a trial must fit a node, but it needs 1 CPU, 1 rare" in refused.stderr
        assert commands.run_json("list", home=home) == []

        process = commands.start(*launch, "--address", address, "--max-concurrent", "2", home=home, cwd=desk)
        commands.wait_until(lambda: "2+ pending placement groups" in ray_status(address), "demand", 120)
        ray_start(f"--address={address}", "--num-cpus=1")  # not what it waits for
        ray_start(f"--address={address}", "--num-cpus=2", '--resources={"rare": 2}')
        out, err = process.communicate(timeout=180)
    assert (process.returncode, err) == (0, "")
    assert "trials wait for the cluster to grow" in out
    assert "4 finished, 0 failed of 4" in out


def ray_status(address):
    return subprocess.run([*RAY, "status", f"--address={address}"], capture_output=True, text=True, timeout=60).stdout


def test_a_folder_that_not_every_node_sees_is_refused_as_storage(home, desk):
    hidden = desk / "only-here"
    hidden.mkdir()
    with head() as address:
        ray_start(f"--address={address}", "--num-cpus=1")
        in_a_room_of_its_own(f"--address={address}", "--num-cpus=1", hides=hidden)
        launch = ("launch", "user_space:slow", "--name", "p", "--trials", "2", "--address", address)
        refused = commands.run(*launch, "--storage", str(hidden), home=home, cwd=desk)
        assert refused.returncode == 2
        assert "a storage must be the same for every node" in refused.stderr
        assert "does not see a file that is there" in refused.stderr
        assert list(hidden.rglob("probe-*")) == []
        seen = commands.run(*launch, "--storage", str(desk / "seen"), home=home, cwd=desk)
        assert (seen.returncode, seen.stderr) == (0, "")


def in_a_room_of_its_own(*options, hides):
    """Start a node that sees another, empty folder in one's place."""
    words = " ".join(f"'{word}'" for word in [*RAY, "start", *options, *COMMON])
    script = f"mount --make-rprivate / && mount -t tmpfs none '{hides}' && exec {words}"
    subprocess.run(["unshare", "--mount", "bash", "-c", script], check=True, capture_output=True, text=True, timeout=120)
