"""Where trials go: what one asks of Ray, which nodes can have it, how many run at once. Imports Ray only when called."""

import math
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from study.errors import UserError
from study.spec import StudySpec

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory

GPU_MEMORY_LABEL = "narrow-study.io/gpu-memory-gib"
"""A node's label that says how much memory each of its GPUs has, where `nvidia-smi` cannot."""
_ACCELERATOR_LABEL = "ray.io/accelerator-type"
_NODE_LABEL = "ray.io/node-id"
_GRAIN = 1e-4
"""The smallest part of a resource that Ray knows."""
_LOOK_SECONDS = 5.0
_ASK_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is alive.

    Attributes:
        resources: all that it has, by Ray's names.
        gpu_memory_gib: of its smallest GPU; None where nobody knows.
    """

    node_id: str
    host: str
    resources: dict[str, float]
    accelerator: str | None = None
    gpu_memory_gib: float | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """What a trial asks of Ray.

    Attributes:
        bundle: amounts by Ray's names; Ray finds one node that has them all.
        selector: labels that its node must have.
    """

    bundle: dict[str, float]
    selector: dict[str, str]

    def request(self) -> "PlacementGroupFactory":
        """As Ray Tune takes it."""
        from ray.tune import PlacementGroupFactory

        labels: dict[str, Any] = {"bundle_label_selector": [self.selector]} if self.selector else {}
        return PlacementGroupFactory([self.bundle], **labels)

    def num_slots(self, nodes: Iterable[Node]) -> int:
        """How many trials fit, each on one node."""
        return sum(self._slots_of(node) for node in nodes if self._may_have(node))

    def _slots_of(self, node: Node) -> int:
        """A share of a GPU is of one GPU: two of 0.6 need two."""
        slots = math.inf
        for kind, need in self.bundle.items():
            has = node.resources.get(kind, 0.0) + _GRAIN / 2
            slots = min(slots, has // 1 * ((1 + _GRAIN / 2) // need) if kind == "GPU" and need < 1 else has // need)
        return int(slots) if slots < math.inf else 1

    def _may_have(self, node: Node) -> bool:
        labels = {_ACCELERATOR_LABEL: node.accelerator, _NODE_LABEL: node.node_id}
        return all(labels[label] in wanted.removeprefix("in(").rstrip(")").split(",") for label, wanted in self.selector.items())

    def __str__(self) -> str:
        needs = ", ".join(f"{amount:g} {kind}" for kind, amount in self.bundle.items()) or "nothing"
        return needs + "".join(f", {label} {wanted}" for label, wanted in self.selector.items())


def place(spec: StudySpec, nodes: Iterable[Node]) -> Placement:
    """Find what a study's trials ask for, on these nodes.

    A trial of one GPU that says how much of its memory it needs takes that share of the smallest GPU that has so much. Where no
    GPU is there yet, as on a cluster that grows when trials wait, it takes a whole one.

    Raises:
        UserError: if every GPU is too small.
    """
    bundle = {"CPU": spec.num_cpus, "GPU": spec.num_gpus, **spec.resources}
    selector: dict[str, str] = {}
    if spec.gpu_memory_gib > 0 and (known := [node for node in nodes if node.gpu_memory_gib is not None]):
        need = spec.gpu_memory_gib / (spec.num_gpus if spec.num_gpus < 1 else 1)
        fitting = [node for node in known if (node.gpu_memory_gib or 0) >= need]
        if not fitting:
            largest = max(node.gpu_memory_gib or 0 for node in known)
            raise UserError(
                f"a trial must fit a GPU, but it needs one of {need:g} GiB and the largest has {largest:g}; use a smaller "
                "model or batch, or a cluster with larger GPUs"
            )
        if spec.num_gpus == 1:
            bundle["GPU"] = _share(need, min(node.gpu_memory_gib or 0 for node in fitting))
        selector = _selector(fitting, [node for node in known if node not in fitting])
    return Placement({kind: amount for kind, amount in bundle.items() if amount > 0}, selector)


def _share(need_gib: float, gpu_gib: float) -> float:
    """The part of a GPU that a trial takes: as many fit as its memory holds, though Ray's grain is coarse: thirds are 0.3333."""
    num_fitting, num_grains = int(gpu_gib / need_gib + 1e-9), round(1 / _GRAIN)
    grains = math.ceil(need_gib / gpu_gib * num_grains - 1e-9)
    if num_grains // grains == num_fitting - 1:  # rounded up, the last one would not fit
        grains = num_grains // num_fitting
    return grains * _GRAIN


def _selector(fitting: list[Node], others: list[Node]) -> dict[str, str]:
    """Labels that all the fitting nodes have and none of the others."""
    if not others:
        return {}
    types = {node.accelerator for node in fitting}
    if None not in types and types.isdisjoint(node.accelerator for node in others):
        return {_ACCELERATOR_LABEL: f"in({','.join(sorted(map(str, types)))})"}
    return {_NODE_LABEL: f"in({','.join(node.node_id for node in fitting)})"}


def nodes_now(*, gpu_memory: bool = False) -> list[Node]:
    """The nodes that are alive.

    Args:
        gpu_memory: ask those with GPUs how large these are, which takes a moment.
    """
    import ray

    nodes = []
    for found in ray.nodes():
        if found["Alive"]:
            labels = found.get("Labels") or {}
            memory = _labelled_gib(labels.get(GPU_MEMORY_LABEL))
            nodes.append(
                Node(
                    found["NodeID"],
                    found["NodeManagerHostname"],
                    dict(found["Resources"]),
                    labels.get(_ACCELERATOR_LABEL) or None,
                    memory,
                )
            )
    return _with_gpu_memory(nodes) if gpu_memory else nodes


def _labelled_gib(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise UserError(
            f"a node's label {GPU_MEMORY_LABEL} must be a number of GiB, but got {text!r}; use {GPU_MEMORY_LABEL}=80"
        ) from None


def _with_gpu_memory(nodes: list[Node]) -> list[Node]:
    unknown = [node for node in nodes if node.gpu_memory_gib is None and node.resources.get("GPU", 0) > 0]
    answers = dict(zip((node.node_id for node in unknown), ask_nodes(_smallest_gpu_gib, unknown), strict=True))
    return [
        node
        if node.node_id not in answers
        else Node(node.node_id, node.host, node.resources, node.accelerator, answers[node.node_id])
        for node in nodes
    ]


def _smallest_gpu_gib() -> float | None:
    """Runs on a node: memory of its smallest GPU in GiB, as its driver says; None without `nvidia-smi`."""
    try:
        command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        told = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_SECONDS / 2, check=True).stdout
        return min(float(line) for line in told.split()) / 1024
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def ask_nodes(question: Callable[..., Any], nodes: list[Node], *arguments: Any, timeout_s: float = _ASK_SECONDS) -> list[Any]:
    """Call a function on each of these nodes, at once; None for a node that does not answer in time, or fails."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(question)
    asked = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False)).remote(*arguments)
        for node in nodes
    ]
    ready, late = ray.wait(asked, num_returns=len(asked), timeout=timeout_s) if asked else ([], [])
    for one in late:
        ray.cancel(one, force=True)
    answers = []
    for one in asked:
        try:
            answers.append(ray.get(one) if one in ready else None)
        except Exception:  # of a node that is lost meanwhile, or cannot import the function
            answers.append(None)
    return answers


def free_slots(placement: Placement) -> int:
    """How many trials find room now beside whatever else is running, if it lies well over the nodes."""
    import ray

    free = ray.available_resources()
    return min((int(free.get(kind, 0.0) / amount + 1e-9) for kind, amount in placement.bundle.items()), default=0)


def concurrency(placement: Placement, limit: int | None, *, may_wait: bool) -> Callable[[], int]:
    """How many trials are handed out at once: counted anew every few seconds, since a cluster may grow.

    Args:
        limit: `--max-concurrent`; None for as many as fit.
        may_wait: trials up to the limit are handed out though they do not fit now: as demand, by which a cluster grows.

    Raises:
        UserError: if not even one trial fits, and none may wait.
    """
    if may_wait and limit is not None:
        return lambda: limit
    known, until = placement.num_slots(nodes_now()), time.monotonic() + _LOOK_SECONDS
    if known < 1:
        has = "; ".join(f"{node.host} has {_shown(node, placement)}" for node in nodes_now()) or "there is no node"
        raise UserError(
            f"a trial must fit a node, but it needs {placement} and {has}; lower --cpus-per-trial or --gpus-per-trial, or, on a "
            "cluster that grows when trials wait, say how many may run at once: --max-concurrent 8"
        )

    def allowed() -> int:
        nonlocal known, until
        if time.monotonic() > until:
            known, until = max(1, placement.num_slots(nodes_now())), time.monotonic() + _LOOK_SECONDS
        return known if limit is None else min(known, limit)

    return allowed


def _shown(node: Node, placement: Placement) -> str:
    kinds = dict.fromkeys(["CPU", "GPU", *placement.bundle])
    amounts = ", ".join(f"{node.resources.get(kind, 0):g} {kind}" for kind in kinds)
    return amounts + (f" of {node.gpu_memory_gib:g} GiB" if node.gpu_memory_gib is not None else "")
