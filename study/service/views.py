"""What is told of studies, trials and fronts, as plain values."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

from study.asking.query import Study
from study.asking.trials import TrialRow, Trials, as_json
from study.fronts.front import Front
from study.home import model_label
from study.service.desk import Look

_ENDED = ("finished", "failed", "stopped")
_MAX_DOMINATED = 500
_MAX_FAILURES = 50
_MAX_ERROR = 2000


def study_line(name: str, look: Look | None) -> dict[str, Any]:
    """A study in short; of one that was not read yet no more than its name."""
    if look is None:
        told = {"space": None, "state": "unknown", "sentence": None, "num_trials": None, "counts": None, "progress": None}
        return {"study": name} | told
    study, spec = look.study, look.spec
    counts = None if study is None else dict(sorted(Counter(study.trials().column("state")).items()))
    num_trials = _budget(look)
    return {
        "study": name,
        "space": spec.space if spec else study.tags.get("space") if study else None,
        "state": look.standing.state,
        "sentence": look.standing.sentence or look.complaint,
        "num_trials": num_trials,
        "counts": counts,
        "progress": _progress(study, num_trials),
    }


def _budget(look: Look) -> int | None:
    """The spec knows of an extension before MLflow does."""
    if look.spec is not None:
        return look.spec.num_trials
    told = look.study.tags.get("num_trials") if look.study else None
    return int(told) if told and told.isdecimal() else None


def _progress(study: Study | None, num_trials: int | None) -> float | None:
    """Share of the budget: a trial that ended counts whole, one that runs by its own progress."""
    if study is None or not num_trials:
        return None
    trials = study.trials()
    own = trials.metric("progress").tolist()
    done = [
        1.0 if state in _ENDED else share if share == share else 0.0
        for state, share in zip(trials.column("state"), own, strict=True)
    ]
    return round(min(1.0, sum(done) / num_trials), 4)


def study_page(look: Look, metrics: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """A study.

    Args:
        metrics: of its experiment, those with a goal; empty where nobody knows them.
    """
    study = look.study
    tags = dict(study.tags) if study else {}
    return study_line(look.name, look) | {
        "experiment": tags.get("experiment"),
        "sampler": tags.get("sampler"),
        "seed": tags.get("seed"),
        "spec_hash": tags.get("spec_hash"),
        "objectives": [_objective(o.metric, o.goal, o.unit) for o in study.objectives] if study else [],
        "metrics": _choices(study, metrics) if study else [],
        "constraints": json.loads(tags.get("constraints", "[]")),
        "log_scale": list(study.log_scale) if study else [],
        "parents": [dataclasses.asdict(parent) for parent in study.parents] if study else [],
        "failures": _failures(study.trials()) if study else [],
        "run_url": _run_url(study, study.run_id) if study else None,
    }


def _objective(metric: str, goal: str, unit: str) -> dict[str, str]:
    return {"metric": metric, "goal": goal, "unit": unit}


def _choices(study: Study, declared: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The objectives, then all other metrics of its models that have a goal."""
    chosen = {o.metric: _objective(o.metric, o.goal, o.unit) for o in study.objectives}
    exact = {metric["name"]: metric for metric in declared}
    for name in dict.fromkeys([*study.all_trials.metric_names, *study.all_candidates.metric_names]):
        found = exact.get(name) or exact.get(f"{name.partition('/')[0]}/*")  # one of several: `loss_nats/*`
        if found is not None and name not in chosen:
            chosen[name] = _objective(name, found["goal"], found["unit"])
    return list(chosen.values())


def _failures(trials: Trials) -> list[dict[str, Any]]:
    """Equal failures together, those of most trials first."""
    alike: dict[tuple[str, str], list[int]] = {}
    for number, text in zip(trials.column("trial"), trials.column("failure"), strict=True):
        if text:
            found = json.loads(text)
            alike.setdefault((found["cause"], found["error"][:_MAX_ERROR]), []).append(number)
    ordered = sorted(alike.items(), key=lambda item: -len(item[1]))[:_MAX_FAILURES]
    return [{"cause": cause, "error": error, "trials": numbers} for (cause, error), numbers in ordered]


def trial_lines(study: Study, *, state: str | None, offset: int, limit: int) -> dict[str, Any]:
    """Some trials, by number."""
    trials = study.trials()
    if state is not None:
        trials = trials.take([place for place, own in enumerate(trials.column("state")) if own == state])
    rows = [trial_line(study, row) for row in trials[offset : offset + limit]]
    return {"total": len(trials), "offset": offset, "trials": rows}


def trial_line(study: Study, row: TrialRow) -> dict[str, Any]:
    """A trial."""
    return {
        "trial": row.number,
        "state": row.state,
        "progress": row.metrics.get("progress", 0.0),
        "params": row.params,
        "metrics": row.metrics,
        "attempts": row.attempts,
        "repeated_steps": row.repeated_steps,
        "repeated_seconds": row.repeated_seconds,
        "ledger": row.ledger and dataclasses.asdict(row.ledger),
        "host": row.host,
        "start_ms": row.start_ms,
        "end_ms": row.end_ms,
        "failure": None if row.failure is None else dataclasses.asdict(row.failure),
        "charts": list(row.charts),
        "run_id": row.run_id,
        "run_url": _run_url(study, row.run_id),
    }


def trial_page(study: Study, number: int) -> dict[str, Any]:
    """A trial with its candidates."""
    row = study.trial(number)
    candidates = [
        {
            "label": found.label,
            "candidate": found.candidate,
            "metrics": found.metrics,
            "model_id": found.model_id,
            "model_url": _model_url(study, found),
        }
        for found in study.candidates(number)
    ]
    has_model = row.state == "finished"
    return trial_line(study, row) | {"candidates": candidates, "model_url": _model_url(study, row) if has_model else None}


def front_page(study: Study, front: Front) -> dict[str, Any]:
    """A front, as `study pareto --json` has it, with where its models are, and some of those that it beats."""
    fields = front.to_json()
    for told, row in zip(fields["front"], front.rows, strict=True):
        told |= {"run_url": _run_url(study, row.run_id), "model_url": _model_url(study, row)}
    beaten = [front.row_to_json(row) for row in front.dominated[:_MAX_DOMINATED]]
    dominated = [{key: row[key] for key in ("label", "params", "values")} for row in beaten]
    return fields | {"log_scale": list(front.log_scale), "dominated": dominated}


def _model_url(study: Study, row: TrialRow) -> str:
    return f"/api/v1/studies/{quote(study.name)}/models/{model_label(row.number, row.candidate)}/download"


def _run_url(study: Study, run_id: str) -> str | None:
    """A run's page in MLflow; None where MLflow is no server. Whoever follows it needs no name and password of ours."""
    parts = urlsplit(study.tracking_uri)
    source = study.all_trials.sources.get(study.name)
    if parts.scheme not in ("http", "https") or source is None:
        return None
    place = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl().rstrip("/")
    return f"{place}/#/experiments/{quote(source.experiment_id)}/runs/{quote(run_id)}"


def to_bytes(value: Any) -> bytes:
    """As JSON; NaN and infinities in words."""
    return json.dumps(as_json(value), separators=(",", ":"), allow_nan=False, default=str).encode()
