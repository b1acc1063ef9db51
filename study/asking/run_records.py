"""A run or a logged model of MLflow as a record: the values of one row of a table of trials."""

import json
import math
import sys
from typing import TYPE_CHECKING, Any

from study.recording.tracking import CANDIDATE_PREFIX, CANDIDATE_TAG, PARENT, PREFIX, STATE_TAG, STUDY_TAG, TRIAL_TAG

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run

FINAL = ("FINISHED", "FAILED")
_STATES = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted", "RUNNING": "running", "SCHEDULED": "running"}

Record = dict[str, Any]


def run_record(run: "Run", *, is_ours: bool) -> Record | None:
    """A trial's run, or one of an experiment of somebody else's; None for what is no trial of a study.

    A run of somebody else's has no number yet, and its parameters are numbers where their text is one.
    """
    tags = run.data.tags
    if not is_ours:
        return _foreign_record(run)
    if int(tags.get(TRIAL_TAG, PARENT)) == PARENT:
        return None
    own = {key.removeprefix(PREFIX): value for key, value in tags.items() if key.startswith(PREFIX)}
    failure = {key: own.get(f"failure.{key}", "") for key in ("cause", "error", "traceback")}
    return _common(run) | {
        "study": tags[STUDY_TAG],
        "trial": int(tags[TRIAL_TAG]),
        "state": tags.get(STATE_TAG, "running"),
        "params": _params(own.get("params", ""), run.data.params),
        "metrics": {name: _value(v) for name, v in run.data.metrics.items() if not name.startswith(CANDIDATE_PREFIX)},
        "attempts": int(own.get("attempts", 1)),
        "host": own.get("hostname"),
        "failure": json.dumps(failure) if "failure.cause" in own else None,
        "stopped": own.get("stopped.why"),
        "charts": own.get("charts", ""),
        "repeated_steps": int(own.get("repeated_steps", 0)),
        "repeated_seconds": float(own.get("repeated_seconds", 0.0)),
        "ledger": own.get("ledger"),
    }


def _common(run: "Run") -> Record:
    info = run.info
    return {
        "run_id": info.run_id,
        "lifecycle": info.lifecycle_stage,
        "status": info.status,
        "start_ms": info.start_time,
        "end_ms": info.end_time,
    }


def _foreign_record(run: "Run") -> Record:
    return _common(run) | {
        "state": _STATES.get(run.info.status, "running"),
        "params": json.dumps({key: _number(text) for key, text in run.data.params.items()}),
        "metrics": {name: _value(value) for name, value in run.data.metrics.items()},
        "attempts": 1,
        "charts": "",
        "repeated_steps": 0,
        "repeated_seconds": 0.0,
    }


def _value(stored: float) -> float:
    """A metric as it was logged: MLflow's databases keep an infinite one as the largest number there is."""
    return math.copysign(math.inf, stored) if abs(stored) == sys.float_info.max else stored


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _params(as_json: str, as_text: dict[str, str]) -> str:
    """Parameters with their types, from the tag that holds them as JSON; as MLflow's text where they were too many for it."""
    try:
        return json.dumps(dict(json.loads(as_json)))
    except ValueError:
        return json.dumps(as_text)


def candidate_record(model: "LoggedModel") -> Record | None:
    """A candidate that is ready; None for a logged model that is none. What its trial knows is not in it."""
    if model.status != "READY" or CANDIDATE_TAG not in model.tags:
        return None
    return {
        "study": model.tags[STUDY_TAG],
        "trial": int(model.tags[TRIAL_TAG]),
        "candidate": int(model.tags[CANDIDATE_TAG]),
        "model_id": model.model_id,
        "metrics": {metric.key.removeprefix(CANDIDATE_PREFIX): _value(metric.value) for metric in model.metrics or ()},
    }
