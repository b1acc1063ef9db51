"""Trials that no MLflow has."""

import json

from study.asking.trials import Trials, table_of


def record(trial, metrics=None, *, state="finished", params=None, study="s", **fields):
    """A trial as a record; `progress` is 1 where it has finished."""
    done = {"progress": 1.0} if state == "finished" else {}
    return {
        "study": study, "trial": trial, "state": state, "params": json.dumps(params or {}), "attempts": 1, "charts": "",
        "start_ms": 1000 * trial, "end_ms": 1000 * trial + 500, "repeated_steps": 0, "repeated_seconds": 0.0,
        "run_id": f"run-{study}-{trial}", "metrics": done | (metrics or {}), **fields,
    }  # fmt: skip


def candidate(trial, number, metrics, *, study="s"):
    """A candidate as MLflow has it: without what its trial knows."""
    return {"study": study, "trial": trial, "candidate": number, "model_id": f"m-{trial}-{number}", "metrics": metrics}


def trials_of(*records, is_merged=False):
    return Trials(table_of(records), is_merged=is_merged)
