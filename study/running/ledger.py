"""What trials have spent: their time by what became of it, and how much of a study's limits is gone."""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Self

KINDS = ("useful", "stopped", "failed", "repeated", "evaluation", "idle")
"""`useful`, `stopped` and `failed` are training by how its trial ended, useful while it goes on; `repeated` is what was lost, or
made once more after a loss; `evaluation` is measuring (`trainables.clock`); `idle` is the rest: starting workers, making what
trials share, saving, waiting."""
WORDS = {"stopped": "stopped early"}
"""Of kinds, for people; of the others the word is the kind."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """The books of one trial, or of several together, by kind; a kind that is missing has nothing in it.

    Attributes:
        seconds: wall time that slots were held, each from the start of an attempt to its end or loss.
        cpu_seconds: CPU time of workers, as they reported it. What a worker that died had not reported is estimated: as long as
            it went on unheard, at the attempt's rate until then.
        flops: as experiments count them (`Experiment.flops`); what was lost unheard is not among them, and measuring never is.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    cpu_seconds: Mapping[str, float] = field(default_factory=dict)
    flops: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def sum(cls, ledgers: Iterable["Ledger"]) -> Self:
        """All together."""
        parts = [asdict(ledger) for ledger in ledgers]
        totals = {name: {kind: sum(part[name].get(kind, 0.0) for part in parts) for kind in KINDS} for name in cls.__slots__}
        return cls(**{name: {kind: value for kind, value in total.items() if value} for name, total in totals.items()})

    @property
    def held_seconds(self) -> float:
        """Wall time that slots were held, of all kinds."""
        return sum(self.seconds.values())

    def shares(self) -> dict[str, float]:
        """Of each kind in the time that slots were held, 0..1, adding up to 1; none where none was held."""
        held = self.held_seconds
        return {kind: self.seconds[kind] / held for kind in KINDS if kind in self.seconds} if held > 0 else {}

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))


def spent_line(ledger: Ledger, *, num_cpus: float, num_gpus: float) -> str | None:
    """One line of what was spent, for people; None where nothing was.

    Args:
        num_cpus, num_gpus: that a trial holds.
    """
    hours = ledger.held_seconds / 3600
    if not hours:
        return None
    amounts = {"CPU-h": hours * num_cpus, "GPU-h": hours * num_gpus, "FLOP": sum(ledger.flops.values())}
    spent = ", ".join(f"{amount:.3g} {unit}" for unit, amount in amounts.items() if amount)
    return f"spent {spent}: {', '.join(f'{share:.0%} {WORDS.get(kind, kind)}' for kind, share in ledger.shares().items())}"


class Spent:
    """How much of its limits a study has spent, at any moment; asking costs microseconds.

    Args:
        num_cpus, num_gpus: that a trial holds.
        past: the books of all trials, as they are when a session begins.
    """

    def __init__(self, *, num_cpus: float, num_gpus: float, past: Iterable[Ledger] = ()) -> None:
        self._num_cpus, self._num_gpus = num_cpus, num_gpus
        total = Ledger.sum(past)
        self._closed_seconds, self._flops = total.held_seconds, sum(total.flops.values())
        self._begun: dict[int, tuple[float, float]] = {}  # of attempts that are out: since when, what share
        self._flops_so_far: dict[int, float] = {}  # of each of these, as it was heard last

    def start(self, trial: int, share: float = 1.0) -> None:
        """A slot, or a share of one, is held for a trial from now on."""
        self._begun[trial], self._flops_so_far[trial] = (time.monotonic(), share), 0.0

    def share(self, trial: int, share: float) -> None:
        """From now on it is another share."""
        self._close(trial)
        self._begun[trial] = time.monotonic(), share

    def end(self, trial: int) -> None:
        """It no longer is."""
        self._close(trial)
        del self._flops_so_far[trial]

    def _close(self, trial: int) -> None:
        begun_s, share = self._begun.pop(trial)
        self._closed_seconds += share * (time.monotonic() - begun_s)

    def hear(self, trial: int, flops: float | None, *, is_known: bool) -> None:
        """An attempt has come to this many operations, in all of the trial.

        Args:
            is_known: they are counted already: it only went on from there.
        """
        if flops is not None:
            self._flops += 0.0 if is_known else max(0.0, flops - self._flops_so_far[trial])
            self._flops_so_far[trial] = flops

    @property
    def cpu_hours(self) -> float:
        """CPUs that trials have held, times hours that they held them."""
        return self._held_hours * self._num_cpus

    @property
    def gpu_hours(self) -> float:
        """The same of GPUs."""
        return self._held_hours * self._num_gpus

    @property
    def flops(self) -> float:
        """Floating-point operations that were heard of."""
        return self._flops

    @property
    def _held_hours(self) -> float:
        now_s = time.monotonic()
        return (self._closed_seconds + sum(share * (now_s - begun_s) for begun_s, share in self._begun.values())) / 3600
