"""Packs: experiments of one shape that make their steps together, as one program in one process.

Where a trial is small, most of its time goes into calls and not into arithmetic, and many such trials cost little more than
one. Packing changes no number: a pack is a way to run trials, and nothing of it is in their results.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from trainables.clock import Moment

if TYPE_CHECKING:
    from trainables.experiment import Experiment

Member = TypeVar("Member", bound="Experiment")
Outcome = Mapping[str, float] | Exception
"""What came of one member's step: its metrics, or what it raised."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A step that is made.

    Attributes:
        outcome: what came of it.
        took: the time that it took; of a step that several made together, an equal part.
        measuring: what of that went into measuring (`trainables.clock.evaluating`).
    """

    outcome: Outcome
    took: Moment
    measuring: Moment


class Pack(abc.ABC, Generic[Member]):
    """Experiments that make their steps together; each remains an experiment of its own.

    Between steps, all that a member tells and returns is what it would be alone, its state included, exactly on the CPU. A
    member makes its steps in its pack only and loads no state there; when it has left, it is free again.

    Args:
        members: one or more, of one class and device, whose configs have equal `Experiment.pack_key`. All have made as many
            steps, and have one more to make.

    Attributes:
        members: those that have a step to make.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = list(members)

    def step(self) -> dict[Member, Outcome]:
        """Make one step of every member. Who fails, fails alone, and leaves; so does who is finished.

        Raises:
            Exception: what concerns no single member, such as a lack of memory; no member can go on after it.
        """
        outcomes = dict(zip(self.members, self._step(), strict=True))
        for member, outcome in outcomes.items():
            if isinstance(outcome, Exception) or member.progress == 1.0:
                self.drop(member)
        return outcomes

    @abc.abstractmethod
    def _step(self) -> list[Outcome]:
        """Make one step of every member, and return what came of each, in order."""

    def drop(self, member: Member) -> None:
        """Go on without a member."""
        self.members.remove(member)
