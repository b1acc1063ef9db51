"""Texts of a trial that some database of MLflow's refuses: with NUL, as bytes of a file, or half characters, as of its name."""

import contextlib

import mlflow

from study.home import Home
from study.recording.outbox import Outbox
from study.recording.tracking_writer import StudyWriter

NASTY = "caf\udce9 is \0 no text"
SHOWN = r"caf\udce9 is \x00 no text"


def test_an_error_that_quotes_bytes_is_told_with_them_escaped_and_what_follows_arrives(store, home):
    Home().prepare()
    folder = Home().study("texts")
    folder.path.mkdir(parents=True)
    with contextlib.closing(Outbox(folder.outbox_file)) as outbox:
        outbox.start_session({"space": "m:f"})
        for trial in (0, 1):
            start = {"params": {"file": NASTY}, "tags": {"params": {"file": NASTY}}}
            outbox.put("trial_start", f"trial/{trial}/start/1", start, trial=trial)
            end = {"state": "failed", "tags": {"failure.error": NASTY}, "model": None, "charts": None}
            outbox.put("trial_end", f"trial/{trial}/end/1", end, trial=trial)
        StudyWriter(outbox, name="texts", study_id="id", tracking_uri=store, artifacts=None).deliver()
        assert outbox.num_pending() == 0
    client = mlflow.MlflowClient(store)
    runs = client.search_runs([client.get_experiment_by_name("texts").experiment_id], "attributes.status = 'FAILED'")
    assert len(runs) == 2
    for run in runs:
        assert run.data.tags["narrow_study.failure.error"] == SHOWN
        assert run.data.params["file"] == SHOWN
