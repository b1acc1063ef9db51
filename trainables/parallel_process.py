"""What a follower runs: it makes the experiment that rank 0 makes, and its steps; see `trainables.parallel`.

Arguments: the descriptor of its end of the pipe, and its seat as JSON. It answers each command with null, or with what broke
it, and then ends.
"""

import dataclasses
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from torch import distributed

from trainables.attempt import Blueprint, checkpoints_of, plan
from trainables.experiment import Experiment
from trainables.failures import failure_of, may_be_an_echo
from trainables.parallel_seat import Seat
from trainables.protocol import Assignment
from trainables.storage import StorageError


class Rank:
    """Does what it is told."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._assignment: Assignment
        self._blueprint: Blueprint | None = None
        self._experiment: Experiment

    def plan(self, assignment: str) -> None:
        """Get all that the experiment needs."""
        self._assignment = Assignment.from_json(assignment)
        self._blueprint = plan(self._assignment, self._seat)

    def build(self) -> None:
        """Join the others and make it."""
        assert self._blueprint is not None
        self._seat.join()
        self._experiment = self._blueprint.make()
        self._blueprint = None

    def load(self, step: int) -> None:
        """Go back to the state that rank 0 goes back to."""
        state = checkpoints_of(self._assignment).load()
        found = None if state is None else len(state["measurements"])
        if state is None or found != step:
            raise StorageError(
                f"every rank must go on from the same checkpoint, but rank 0 does from step {step} and rank {self._seat.rank} "
                f"finds {found}; resume the study when nobody else writes to the trial's folder"
            )
        self._experiment.load_state_dict(state["experiment"])

    def step(self) -> None:
        """Make a step."""
        self._experiment.step()

    def leave(self) -> None:
        """Part from the others."""
        distributed.destroy_process_group()


def main() -> None:
    """Obey until rank 0 has gone, or something breaks."""
    connection, seat = Connection(int(sys.argv[1])), Seat(**json.loads(sys.argv[2]))
    commands: SimpleQueue[dict[str, Any]] = SimpleQueue()
    threading.Thread(target=_hear, args=(connection, commands, seat.folder), daemon=True).start()
    rank = Rank(seat)
    obey: dict[str, Callable[..., None]] = {
        "plan": rank.plan,
        "build": rank.build,
        "load": rank.load,
        "step": rank.step,
        "leave": rank.leave,
    }
    while True:
        command = commands.get()
        try:
            obey[command.pop("command")](**command)
        except Exception as error:
            answer = {"failure": dataclasses.asdict(failure_of(error)), "is_echo": may_be_an_echo(error)}
            connection.send_bytes(json.dumps(answer).encode())
            os._exit(1)  # at once, so that whoever waits for this rank knows
        connection.send_bytes(b"null")


def _hear(connection: Connection, commands: "SimpleQueue[dict[str, Any]]", folder: str) -> None:
    """Pass commands on; in a thread, as the end of rank 0 must be heard in the middle of a step."""
    try:
        while True:
            commands.put(json.loads(connection.recv_bytes()))
    except (EOFError, OSError):
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)


if __name__ == "__main__":
    main()
