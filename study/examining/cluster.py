"""The cluster that trials would run on, and the token that it asks for.

    python -m study.examining.cluster ADDRESS

joins a cluster, in a process that can be ended, and prints what its nodes say, as JSON.
"""

import contextlib
import importlib.metadata
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from study.errors import UserError
from study.examining.findings import BROKEN, OK, WARNING, Finding, Places
from study.examining.services import clock
from study.keeping.disk import shown

_JOIN_SECONDS = 55.0
_NODE_SECONDS = 20.0
_FULL = 0.95
_TOKEN_FILE = Path(".ray") / "auth_token"
"""In the user's home; Ray's default."""


def look_at_token(places: Places) -> list[Finding]:
    """Whether there is a token, and nobody else can read it."""
    if places.address is None:
        return [Finding("token", OK, "none is needed on this machine alone")]
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named) if named else Path.home() / _TOKEN_FILE
    is_set = bool(os.environ.get("RAY_AUTH_TOKEN"))
    if not is_set and not file.is_file():
        remedy = "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, and RAY_AUTH_MODE=token, as the cluster's nodes have them"
        return [Finding("token", WARNING, "none is set: whoever reaches such a cluster may run anything there", remedy)]
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return [Finding("token", WARNING, "there is one, but Ray is not told to use it", "export RAY_AUTH_MODE=token")]
    if not is_set and stat.S_IMODE(file.stat().st_mode) & 0o077:
        return [Finding("token", WARNING, f"others on this machine can read {file}", f"chmod 600 {file}")]
    return [Finding("token", OK, "set by RAY_AUTH_TOKEN" if is_set else f"in {file}, for its owner alone")]


def look_at_cluster(places: Places) -> list[Finding]:
    """Whether the cluster takes us, with the same Ray; its nodes, their clocks and disks."""
    if places.address is None:
        return [Finding("cluster", OK, "none is named: trials run on this machine")]
    if places.address.startswith(("http://", "https://")):
        return _look_from_outside(places.address)
    from study.running.cluster import check_address

    check_address(places.address)
    return _look_from_inside(places.address)


def _look_from_outside(address: str) -> list[Finding]:
    import requests
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    from study.remote.job_server import JobServer

    server = JobServer(address)
    server.jobs()  # the token is taken
    headers = get_auth_headers_if_auth_enabled({})
    told = requests.get(f"{address.rstrip('/')}/api/version", headers=headers, timeout=_NODE_SECONDS).json()
    found = f"{address} answers and takes our token; its nodes are examined with --address auto on one of them"
    return [Finding("cluster", OK, found), _same_ray(str(told["ray_version"]))]


def _look_from_inside(address: str) -> list[Finding]:
    """Ask in a process of its own: Ray may take minutes to give up, and prints what it likes."""
    command = [sys.executable, "-P", "-m", "study.examining.cluster", address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_JOIN_SECONDS)
    except subprocess.TimeoutExpired:
        return [Finding("cluster", BROKEN, f"{address} does not let us in within {_JOIN_SECONDS:g} s", "see the head's logs")]
    last_words = (done.stderr.strip() or "without a word").splitlines()[-1]
    broken = {"refusal": f"Ray must join a cluster, but broke down ({last_words}); see its logs in /tmp/ray"}
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else broken
    if "refusal" in told:
        raise UserError(told["refusal"])
    return _findings_of(told["nodes"], address)


def _findings_of(nodes: list[dict[str, Any]], address: str) -> list[Finding]:
    amounts = [f"{sum(node['resources'].get(kind, 0) for node in nodes):g} {kind}s" for kind in ("CPU", "GPU")]
    findings = [Finding("cluster", OK, f"{address}: {len(nodes)} nodes, {', '.join(amounts)}")]
    for node in nodes:
        findings += _findings_of_node(f"node {node['host']}", node["answer"])
    return findings


def _findings_of_node(what: str, answer: dict[str, Any] | None) -> list[Finding]:
    if answer is None:
        return [Finding(what, BROKEN, "it does not answer", "see its logs in /tmp/ray there")]
    skew_s = answer["time"] - (answer["asked"] + answer["heard"]) / 2
    late_s = (answer["heard"] - answer["asked"]) / 2  # what the clocks may differ by without anybody knowing
    clocks = clock(f"{what}, clock", skew_s if abs(skew_s) > late_s else 0.0)
    room = Finding(what, OK, f"{shown(answer['free'])} free for Ray's temporary files")
    if answer["free"] < (1 - _FULL) * answer["total"]:
        room = Finding(what, WARNING, room.found, "make room in /tmp there, or start its Ray with a larger --temp-dir")
    return [room, clocks, _same_python(f"{what}, python", answer["python"])]


def _same_ray(theirs: str) -> Finding:
    ours = importlib.metadata.version("ray")
    if theirs == ours:
        return Finding("Ray's version", OK, f"{ours}, as on the cluster")
    return Finding("Ray's version", BROKEN, f"{ours} here, {theirs} on the cluster", f"pip install 'ray[default,tune]=={theirs}'")


def _same_python(what: str, theirs: str) -> Finding:
    ours = ".".join(map(str, sys.version_info[:2]))
    if theirs == ours:
        return Finding(what, OK, ours)
    return Finding(what, BROKEN, f"{theirs} there, {ours} here", "use one version of Python everywhere")


def _look_around() -> dict[str, Any]:
    """Runs on a node."""
    usage = shutil.disk_usage(tempfile.gettempdir())
    python = ".".join(map(str, sys.version_info[:2]))
    return {"time": time.time(), "free": usage.free, "total": usage.total, "python": python}


def _ask_nodes(address: str) -> dict[str, Any]:
    from study.running.cluster import ray_session
    from study.running.placement import ask_nodes, nodes_now

    with ray_session(address):
        nodes = nodes_now()
        ask_nodes(_look_around, nodes, timeout_s=_NODE_SECONDS)  # which starts a worker: the answer after it is quick
        asked = time.time()
        answers = ask_nodes(_look_around, nodes, timeout_s=_NODE_SECONDS)
        heard = time.time()
    both = zip(nodes, answers, strict=True)
    return {
        "nodes": [
            {"host": node.host, "resources": node.resources, "answer": answer and answer | {"asked": asked, "heard": heard}}
            for node, answer in both
        ]
    }


def main(address: str) -> None:
    """Print one line of JSON: what the nodes say, or why the cluster refuses us."""
    with contextlib.redirect_stdout(sys.stderr):
        try:
            told = _ask_nodes(address)
        except UserError as error:
            told = {"refusal": str(error)}
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1])
