"""Which events go to MLflow together."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from study.recording.outbox import Event

Whole = dict[int, list[Event]]
"""All events of trials, by trial."""


def chunks(events: Sequence[Event], is_new: Callable[[int], bool]) -> Iterator[tuple[Sequence[Event], Whole]]:
    """Divide events, in their order, into what may be applied trial by trial, and once more if that was cut short.

    What concerns the study comes alone. So does what takes a trial's files away, since all before it must be known to be applied
    first, unless the whole trial is in the chunk.

    Args:
        is_new: whether MLflow has nothing of a trial.

    Yields:
        a chunk, and what is whole in it: new trials that end by their first attempt and have no candidates.
    """
    start = 0
    while start < len(events):
        num_events, whole = _first_chunk(events[start:], is_new)
        yield events[start : start + num_events], whole
        start += num_events


def _first_chunk(events: Sequence[Event], is_new: Callable[[int], bool]) -> tuple[int, Whole]:
    if events[0].trial is None or events[0].kind == "trial_settled":
        return 1, {}
    stop = next((place for place, event in enumerate(events) if event.trial is None), len(events))
    while True:
        whole = {trial: own for trial, own in _by_trial(events[:stop]).items() if _is_whole(own) and is_new(trial)}
        parted = (
            place for place, event in enumerate(events[:stop]) if event.kind == "trial_settled" and event.trial not in whole
        )
        if (first := next(parted, stop)) == stop:
            return stop, whole
        stop = first


def _is_whole(events: Sequence[Event]) -> bool:
    kinds = [event.kind for event in events]
    begins = kinds[0] == "trial_start" and events[0].data.get("attempt") == 1
    return begins and kinds.count("trial_start") == kinds.count("trial_end") == 1 and "candidate" not in kinds


def by_trial(events: Iterable[Event]) -> list[list[Event]]:
    """The events of each trial, in their order, or of the study."""
    found: dict[int | None, list[Event]] = {}
    for event in events:
        found.setdefault(event.trial, []).append(event)
    return list(found.values())


def _by_trial(events: Iterable[Event]) -> Whole:
    return {own[0].trial: own for own in by_trial(events) if own[0].trial is not None}
