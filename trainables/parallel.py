"""Several processes that train one experiment together: rank 0, where the attempt is, and followers that do what it does.

Every rank makes the same experiment and the same steps of it. What the ranks tell each other on the way, such as gradients,
is the experiment's own affair, by `torch.distributed`. Rank 0 alone reports and writes; followers print to nowhere.
"""

import contextlib
import dataclasses
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Self

import torch
from torch import distributed

from trainables.experiment import Experiment
from trainables.failures import LostRankError, may_be_an_echo
from trainables.laws import require
from trainables.parallel_followers import GRACE_S, Answers, Follower
from trainables.parallel_seat import Seat
from trainables.protocol import Assignment

_READING_S = 1800.0  # to come up, and to read what rank 0 has read already, perhaps from far away

logger = logging.getLogger(__name__)


class World:
    """All ranks that train one experiment, seen from rank 0. With one rank it starts nothing and joins nothing.

    No rank waits for another for ever: what breaks or ends a follower is known within seconds, silence after `timeout_s`.

    Args:
        size: ranks, >= 1.
        kind: "cpu", or "cuda": of several ranks, rank r has cuda:r.
        timeout_s: > 0; how long one exchange among ranks may take, and how much later than rank 0 a follower may be done.
    """

    def __init__(self, size: int, kind: Literal["cpu", "cuda"], *, timeout_s: float = 600.0) -> None:
        require(size >= 1, "a world must have at least 1 rank", size, "use 1 for this process alone")
        self.seat = Seat(rank=0, size=size, kind=kind, folder="", timeout_s=timeout_s)
        self._followers: list[Follower] = []
        self._answers: Answers | None = None
        self._is_sound = True  # all have done what they were told
        self._is_joined = False

    @classmethod
    def of(cls, num_gpus: float) -> Self:
        """A rank for each GPU of a trial; one for a share of a GPU, or for none."""
        return cls(max(1, int(num_gpus)), "cuda" if num_gpus > 0 else "cpu")

    def start(self) -> None:
        """Start the followers. They take seconds to come up; nobody waits for it here."""
        if self.seat.size == 1:
            return
        self.seat = dataclasses.replace(self.seat, folder=tempfile.mkdtemp(prefix="narrow-study-"))
        for rank in range(1, self.seat.size):
            self._followers.append(Follower(dataclasses.replace(self.seat, rank=rank)))
        logger.info("%d processes train together; these follow: %s", self.seat.size, [f.process.pid for f in self._followers])

    def build(self, assignment: Assignment, make: Callable[[], Experiment]) -> Experiment:
        """Make the experiment in every rank.

        Args:
            make: makes it here, of what is there already: the others wait for it.
        """
        with self._all_ranks("plan", timeout_s=_READING_S, assignment=assignment.to_json()):
            pass  # whoever fails at this is known before anybody waits to be joined
        with self._all_ranks("build"):
            if self._followers:
                self._is_joined = True
                self.seat.join()
            return make()

    def load(self, experiment: Experiment, state: Mapping[str, Any], *, step: int) -> None:
        """Go back to a state in every rank; the others read it from the trial's newest checkpoint, which is of this step."""
        with self._all_ranks("load", timeout_s=_READING_S, step=step):
            experiment.load_state_dict(state)

    def step(self, experiment: Experiment) -> Mapping[str, float]:
        """Make a step in every rank, and return what it is in this one."""
        with self._all_ranks("step"):
            return experiment.step()

    def close(self) -> None:
        """End the followers and the process group, whatever has happened; the world may be started again."""
        if self._is_joined and self._is_sound:
            with contextlib.suppress(Exception), self._all_ranks("leave", timeout_s=GRACE_S):
                distributed.destroy_process_group()
        for follower in self._followers:
            follower.kill()
        if self._answers is not None:
            self._answers.wait(GRACE_S)
        for follower in self._followers:
            follower.connection.close()
        if self._is_joined and distributed.is_initialized():
            distributed.distributed_c10d._abort_process_group()  # to destroy it might be to wait for the others
        if self._followers:
            shutil.rmtree(self.seat.folder, ignore_errors=True)
        self._followers, self._answers, self._is_sound, self._is_joined = [], None, True, False

    @contextlib.contextmanager
    def _all_ranks(self, command: str, *, timeout_s: float | None = None, **arguments: str | int) -> Iterator[None]:
        """Have the followers do what is done inside, and wait until they have.

        Raises:
            RankError, LostRankError, StorageError: what broke a follower (`Answers.raise_failure`).
        """
        if self.seat.size == 1:
            yield
            return
        require(bool(self._followers), "a world must be started before it trains", "no followers", "start it")
        timeout_s = self.seat.timeout_s if timeout_s is None else timeout_s
        start_s, self._is_sound = time.monotonic(), False
        for follower in self._followers:
            follower.tell({"command": command, **arguments})
        answers = self._answers = Answers(self._followers)
        try:
            yield
        except torch.AcceleratorError:
            raise
        except Exception as error:
            if may_be_an_echo(error):
                answers.wait(GRACE_S)
                if answers.silent and time.monotonic() - start_s > timeout_s:
                    raise _silence(answers.silent, timeout_s) from error
            answers.raise_failure(error)
            raise
        answers.wait(timeout_s)
        answers.raise_failure()
        if answers.silent:
            raise _silence(answers.silent, timeout_s)
        self._is_sound = True


def _silence(ranks: list[int], timeout_s: float) -> LostRankError:
    return LostRankError(
        f"every rank must do its part within {timeout_s:g} s of the others, but nothing is heard of rank "
        f"{', '.join(map(str, ranks))}; see whether all ranks exchange the same things in the same order"
    )
