"""A study of trials that no MLflow has."""

import json

from made_trials import record, trials_of

from search_spaces.space import Constraint
from study.asking.query import Study
from study.asking.trials import Trials, table_of
from study.fronts.front import Objective

LOSS, SIZE, COST = (
    Objective(metric="loss", goal="min", unit="nats"),
    Objective(metric="size", goal="min", unit="neurons"),
    Objective(metric="cost", goal="min", unit="tokens"),
)


def study_of(*records, candidates=(), objectives=(LOSS, SIZE), constraints=(), name="s", **fields):
    """One study; its tags are those that a launch writes."""
    tags = {
        "space": "m:f", "experiment": "e", "num_trials": "9", "sampler": "tpe", "seed": "3", "storage": "/nowhere",
        "constraints": json.dumps(constraints), "parameters": "{}", "space_arguments": '{"data_dir": "mnist"}',
        "commit": "c0ffee", "hostname": "h", "version.python": "3.11.7",
    }  # fmt: skip
    given = {"tags": tags | fields.pop("tags", {}), "log_scale": (), "color_by": None} | fields
    return Study(
        name=name, all_trials=trials_of(*records), all_candidates=Trials(table_of(candidates)), objectives=objectives,
        constraints={name: tuple(Constraint.parse(text) for text in constraints)}, tracking_uri="", run_id="r" * 32,
        is_running=False, **given,
    )  # fmt: skip


def line(num, **params):
    """Trials along a front of two objectives, (0, num - 1) to (num - 1, 0)."""
    return [record(i, {"loss": float(i), "size": float(num - 1 - i)}, params=params) for i in range(num)]


def drawing(page):
    """What a page tells plotly to draw: (traces, layout)."""
    text = page.read_text()
    start = text.index("[", text.rindex("Plotly.newPlot("))
    traces, end = json.JSONDecoder().raw_decode(text[start:])
    return traces, json.JSONDecoder().raw_decode(text[start + end :].lstrip(", \n"))[0]
