"""Which trials go to a worker together, to make their steps as one program (`trainables.packing`)."""

from collections import deque
from collections.abc import Collection, Hashable

from study.running.record import Draw
from study.spec import StudySpec
from trainables.registry import load_experiment


class Packer:
    """Chooses among trials that are drawn and wait for a worker.

    Args:
        spec: its `pack` says how many may go together.
    """

    def __init__(self, spec: StudySpec) -> None:
        self._spec = spec
        self._experiment = load_experiment(spec.description.experiment)

    def parcels(self, drawn: deque[Draw], alone: Collection[int], max_parcels: int) -> list[list[Draw]]:
        """Take the first parcels out: of trials that run together, one parcel after the other.

        Args:
            alone: trials that go alone: they were lost once, and whom that was due to nobody knows.
        """
        found = [self._take(drawn, alone)]
        while drawn and len(found) < max_parcels and {found[0][0].number, drawn[0].number}.isdisjoint(alone):
            found.append(self._take(drawn, alone))
        return found

    def _take(self, drawn: deque[Draw], alone: Collection[int]) -> list[Draw]:
        """Take the first out, and of the others those that it pays to run with it."""
        first = drawn.popleft()
        key, size = self._kind(first) if first.number not in alone else (None, 1)
        if key is None or size == 1:
            return [first]
        mates = [other for other in drawn if other.number not in alone and self._kind(other) == (key, size)][: size - 1]
        for mate in mates:
            drawn.remove(mate)
        return [first, *mates]

    def _kind(self, draw: Draw) -> tuple[Hashable, int]:
        """What two trials must have in common, None for one that goes alone, and how many of them pay."""
        if self._spec.pack == 1 or draw.failure is not None:
            return None, 1
        try:
            config = self._experiment.Config(**draw.config)
        except (TypeError, ValueError):  # its worker will say what is wrong
            return None, 1
        size = self._experiment.pack_size(config, num_cpus=self._spec.num_cpus, num_gpus=self._spec.num_gpus)
        return self._experiment.pack_key(config), min(size, self._spec.pack)
