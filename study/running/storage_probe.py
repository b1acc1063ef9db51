"""Whether every node sees the same storage: a folder on one node's disk would scatter a study over many."""

import uuid

from study.errors import UserError
from study.running.placement import Node, Placement, ask_nodes, nodes_now
from study.spec import StudySpec
from trainables.storage import Folder

_PREFIX = "probe-"


def check_nodes_see_storage(spec: StudySpec, nodes: list[Node], placement: Placement) -> None:
    """Have each node that trials may go to read a file of ours, and write one that we read.

    A storage that is an object store is asked, too: keys and network are each node's own.

    Raises:
        UserError: naming the nodes that do not see it.
    """
    nodes = [node for node in nodes if placement.num_slots([node]) > 0]
    if not nodes:
        return
    folder, ours = spec.study_folder, f"{_PREFIX}{uuid.uuid4().hex}"
    folder.write(ours, b"driver")
    try:
        answers = ask_nodes(_answer, nodes, folder.address, ours)
        blind = []
        for node, answer in zip(nodes, answers, strict=True):
            trouble = _trouble_of(node, answer, folder, f"{ours}-{node.node_id}")
            if trouble:
                blind.append(f"{node.host} ({trouble})")
    finally:
        for name in folder.names():
            if name.startswith(_PREFIX):  # those of a launch that was killed, too: a study has one driver
                folder.delete(name)
    if blind:
        raise UserError(
            f"a storage must be the same for every node, but {spec.storage} is not for {', '.join(blind)}; name a shared folder, "
            "or s3://bucket/prefix, with --storage or STUDY_STORAGE"
        )


def _trouble_of(node: Node, answer: str | None, folder: Folder, theirs: str) -> str:
    """What is wrong with a node's view of the storage, by what it answered, and by what it wrote; empty for nothing."""
    if answer is None:
        is_here = node.node_id in {other.node_id for other in nodes_now()}  # else it left while it was asked
        return "it does not answer, or has not our packages" if is_here else ""
    return answer or _trouble_here(folder, theirs)


def _answer(address: str, name: str) -> str:
    """Runs on a node: read the driver's file and write one of its own; returns what is wrong, or nothing."""
    import ray

    folder = Folder(address)
    try:
        if folder.read(name) != b"driver":
            return "it reads something else"
        folder.write(f"{name}-{ray.get_runtime_context().get_node_id()}", b"node")
    except FileNotFoundError:
        return "it does not see a file that is there"
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def _trouble_here(folder: Folder, name: str) -> str:
    try:
        return "" if folder.read(name) == b"node" else "it wrote something else"
    except FileNotFoundError:
        return "what it writes is not seen here"
