"""Records of trials in memory, for tests of what is drawn: opened as often as one likes."""

import contextlib
import dataclasses
from types import SimpleNamespace

import optuna
from test_spec import spec

from search_spaces import cmsp_curriculum
from study.running import record
from study.running.record import TrialRecord

METRICS = {"samples_to_convergence": 100.0, "parameters": 5.0, "fraction_converged": 1.0}


class Records:
    """Opens the record of the study of a name, as a session finds it that begins anew."""

    def __init__(self, monkeypatch):
        memory = optuna.storages.InMemoryStorage()
        self._specs = {}

        def of(spec, folder):
            def open(directions):
                study = optuna.create_study(study_name=spec.name, storage=memory, directions=directions, load_if_exists=True)
                return study, SimpleNamespace(together=contextlib.nullcontext)

            return SimpleNamespace(open=open)

        monkeypatch.setattr(record, "RecordPlace", SimpleNamespace(of=of))

    def __call__(self, name="s", suggest=None, *, objectives=2, first_trials=(), **changes):
        if name not in self._specs:
            tiny = cmsp_curriculum.tiny()
            suggest = suggest or tiny.suggest
            space = dataclasses.replace(tiny, suggest=suggest, objectives=tiny.objectives[:objectives], first_trials=first_trials)
            self._specs[name] = spec(space, name=name, **changes), space
        return TrialRecord(None, *self._specs[name])


def drive(record, num_trials, *, stop=()):
    """Draw trials and end them, some of them early; returns parameters, config, and which trial each repeats."""
    drawn = []
    for _ in range(num_trials):
        draw = record.draw()
        drawn.append((draw.params, draw.config, draw.repeats))
        metrics = METRICS | {"samples_to_convergence": float(draw.config["width"] + draw.number)}
        if draw.number in stop:
            values = dict.fromkeys(record._spec.description.at_rungs, float(draw.number))
            record.stop(draw.number, {"rung": draw.number % 2, "values": values}, metrics)
        else:
            record.finish(draw.number, metrics)
    return drawn
