"""What a study tells of its trials, as events on their way to MLflow, and what they spend."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from study.recording.outbox import Outbox
from study.running.ledger import Spent
from study.running.record import Draw
from study.spec import StudySpec
from trainables.protocol import Measurement, Offer, Report


@dataclass(slots=True)
class LiveTrial:
    """A trial that a worker is at.

    Attributes:
        last_step, last_metrics: of what was heard of it.
        candidates: metrics of each, by number.
        cpu_seconds: that its worker has reported, and that no event has.
        seconds: that it has kept its worker busy.
    """

    draw: Draw
    last_step: int = 0
    last_metrics: dict[str, float] = field(default_factory=dict)
    candidates: dict[int, dict[str, float]] = field(default_factory=dict)
    worker_tags: dict[str, str] = field(default_factory=dict)
    cpu_seconds: float = 0.0
    seconds: float = 0.0

    def hear(self, report: Report) -> None:
        """Note who reports, and for how long it worked."""
        self.worker_tags = {"hostname": report.host, "pid": str(report.pid)}
        self.cpu_seconds += report.cpu_seconds
        self.seconds += report.seconds


class TrialEvents:
    """Puts into the outbox what happens to trials, each thing once.

    Attributes:
        at_ms: when that happened which is being heard of, milliseconds since 1970; None for now.
        spent: what trials spend meanwhile.
    """

    def __init__(self, spec: StudySpec, outbox: Outbox) -> None:
        self._spec, self._outbox = spec, outbox
        self._versions = {f"version.{package}": version for package, version in spec.versions.items()}
        self.at_ms: int | None = None
        self.spent = Spent(num_cpus=spec.num_cpus, num_gpus=spec.num_gpus, past=outbox.ledgers().values())

    def begin(self, draw: Draw, *, share: float) -> None:
        """A worker comes to a trial, which holds a share of its slot."""
        self.spent.start(draw.number, share)
        data = {"params": draw.params, "attempt": draw.attempt, "tags": self._start_tags(draw), "share": share}
        self._put("trial_start", f"start/{draw.attempt}", data, draw.number)

    def share(self, live: LiveTrial, num_together: int) -> None:
        """Others have left a trial's slot: so many are left who share it."""
        number, share = live.draw.number, 1 / num_together
        self.spent.share(number, share)
        self._put("share", f"share/{live.draw.attempt}/{num_together}", {"share": share}, number)

    def _start_tags(self, draw: Draw) -> dict[str, Any]:
        return self._versions | {
            "attempts": str(draw.attempt),
            "params": draw.params,
            "config": draw.config,
            "experiment": self._spec.description.experiment,
            "spec_hash": self._spec.hash,
            "commit": self._spec.commit or "none",
            "seed": str(self._spec.seed),
        }

    def measure(self, live: LiveTrial, measurement: Measurement, report: Report) -> None:
        """A step was made, and candidates were found by it; of a step that was heard of before, that it was made again."""
        number, step = live.draw.number, measurement.step
        is_brought = step <= report.resumed_step
        cost: dict[str, Any] = {"took": measurement.took}
        if is_brought:
            cost["is_brought"] = True
        else:
            cost["cpu_seconds"], live.cpu_seconds = live.cpu_seconds, 0.0
        if measurement.flops is not None:
            cost["flops"] = measurement.flops
        data = {"step": step, "metrics": measurement.metrics, "progress": measurement.progress}
        is_new = self._put("measurement", f"step/{step}", data | cost, number)
        if not is_new and not is_brought:
            self._put("repeat", f"repeat/{live.draw.attempt}/{step}", {"seconds": report.seconds, "step": step} | cost, number)
        self.spent.hear(number, measurement.flops, is_known=is_brought and not is_new)
        live.last_step, live.last_metrics = step, measurement.metrics
        for offer in measurement.candidates:
            self._offer(live, step, offer)

    def _offer(self, live: LiveTrial, step: int, offer: Offer) -> None:
        number, candidate = live.draw.number, offer["number"]
        live.candidates[candidate] = offer["metrics"]
        model = self._spec.trial_folder(number).child(offer["folder"]).address
        data = {"step": step, "params": live.draw.params, "model": model, "number": candidate, "metrics": offer["metrics"]}
        self._put("candidate", f"candidate/{candidate}", data, number)

    def end(self, live: LiveTrial, data: dict[str, Any]) -> None:
        """A trial has ended; `data` says how, with `tags`."""
        steps, seconds = self._outbox.repeats(live.draw.number)
        data["tags"] |= {"repeated_steps": str(steps), "repeated_seconds": f"{seconds:.3f}"} if steps else {}
        self._close("trial_end", live, data)

    def interrupt(self, live: LiveTrial, data: dict[str, Any]) -> None:
        """An attempt was lost, and its trial goes on in another."""
        self._close("trial_interrupted", live, data)

    def _close(self, kind: str, live: LiveTrial, data: dict[str, Any]) -> None:
        number, cost = live.draw.number, {"cpu_seconds": live.cpu_seconds}
        self._outbox.close_attempt(kind, number, live.draw.attempt, data | cost, time_ms=self.at_ms)
        self.spent.end(number)

    def _put(self, kind: str, key: str, data: Mapping[str, Any], number: int) -> bool:
        """Put an event of a trial into the outbox; return whether it was new."""
        return self._outbox.put(kind, f"trial/{number}/{key}", data, trial=number, time_ms=self.at_ms)
