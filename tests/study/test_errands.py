"""What workers are sent for: how many trials, whose turn it is, and when things happened that are heard of late."""

import dataclasses
import json
import sqlite3
import time

import pytest
from test_searcher import Watcher
from test_spec import spec

from search_spaces import cmsp_curriculum
from study.home import Home
from study.recording.outbox import Outbox
from study.running.errands import ErrandSize
from study.running.record import TrialRecord
from study.running.searcher import StudySearcher
from trainables.protocol import Failure, Measurement, Report

METRICS = {"samples_to_convergence": 10.0, "parameters": 5.0, "fraction_converged": 1.0}


def size(*seconds, sampler="random", **changes):
    found = ErrandSize(dataclasses.replace(spec(cmsp_curriculum.tiny()), sampler=sampler, **changes))
    for each in seconds:
        found.hear(each)
    return found


def test_nobody_knows_at_first_and_a_worker_takes_one_trial():
    assert size().num_trials(1000, 2) == 1


def test_an_errand_of_tiny_trials_takes_a_second():
    assert size(0.02, 0.05).num_trials(1000, 2) == 20


def test_the_others_are_left_something_to_do():
    assert [size(0.02).num_trials(left, 4) for left in (400, 40, 8, 1)] == [50, 5, 1, 1]


@pytest.mark.parametrize(
    "changes",
    [{"sampler": "tpe"}, {"early_stopping": "moasha"}, {"lookahead": 2}],
    ids=["learns", "stops", "deterministic"],
)
def test_where_knowing_more_would_change_something_trials_go_one_by_one(changes):
    assert size(0.02, **changes).num_trials(1000, 2) == 1


def test_trials_that_are_not_tiny_go_one_by_one_and_what_is_long_ago_is_forgotten():
    assert size(0.02, 0.5).num_trials(1000, 2) == 1
    assert size(0.5, *[0.02] * 8).num_trials(1000, 2) == 50


def test_only_early_stopping_decides_upon_every_step():
    assert size(early_stopping="moasha").slice_s == 0.0 < size().slice_s


@pytest.fixture
def session(home):
    """A study of 40 trials with two workers, whose trials take 20 ms: (searcher, watcher)."""
    Home().prepare()
    folder = Home().study("s")
    folder.path.mkdir(parents=True)
    space = cmsp_curriculum.tiny()
    own = dataclasses.replace(spec(space), sampler="random", num_trials=40)
    box, watcher = Outbox(folder.outbox_file), Watcher()
    searcher = StudySearcher(own, TrialRecord(folder, own, space), box, watcher, max_concurrent=lambda: 2)
    watcher.lost = []
    watcher.trial_lost = lambda draw, failure: watcher.lost.append(draw.number)
    searcher.suggest("first")
    searcher.on_trial_complete("first", told(0))
    yield searcher, watcher
    box.close()


def told(*trials, unfinished=(), attempt=1, seconds=0.02):
    """A worker's result: its trials in their order, one step each, all but some of them finished."""
    reports = []
    for age, trial in zip(range(len(trials) - 1, -1, -1), trials, strict=True):
        is_finished = trial not in unfinished
        step = Measurement(step=1, metrics=METRICS, progress=1.0 if is_finished else 0.5, seconds=seconds)
        fields = {"host": "h", "pid": 1, "seconds": seconds, "age_seconds": age * seconds}
        report = Report(trial=trial, attempt=attempt, measurements=[step], finished=is_finished, failure=None, **fields)
        reports.append(report.to_json())
    return {"reports": reports}


def numbers(config):
    return [json.loads(text)["trial"] for parcel in config["parcels"] for text in parcel]


def events():
    with sqlite3.connect(Home().study("s").outbox_file) as connection:
        rows = connection.execute("SELECT key, json_extract(payload, '$.time_ms') FROM event ORDER BY seq").fetchall()
    return dict(rows)


def test_a_worker_gets_several_tiny_trials_of_which_one_has_begun(session):
    searcher, _ = session
    assert numbers(searcher.suggest("a")) == list(range(1, 11))
    assert [key for key in events() if "/start/" in key] == ["trial/0/start/1", "trial/1/start/1"]
    assert searcher.num_unfinished == 10
    assert numbers(searcher.suggest("b")) == list(range(11, 19))
    assert searcher.suggest("c") is None


def test_trials_that_are_heard_of_at_once_have_followed_each_other(session):
    searcher, watcher = session
    searcher.suggest("a")
    time.sleep(0.1)
    assert not searcher.hear("a", told(1, 2, 3, 4, unfinished=[4]))
    assert [number for number, *_ in watcher.finished] == [0, 1, 2, 3]
    times = events()
    assert times["trial/2/end/1"] - times["trial/1/end/1"] == 20
    for before, after in [(1, 2), (2, 3), (3, 4)]:
        assert times[f"trial/{after}/start/1"] == times[f"trial/{before}/end/1"]


def test_an_errand_is_over_with_its_last_trial(session):
    searcher, watcher = session
    ours = numbers(searcher.suggest("a"))
    searcher.on_trial_complete("a", told(*ours))
    assert len(watcher.finished) == 1 + len(ours)
    assert searcher.num_unfinished == 0
    assert searcher.suggest("a again") is not None


def test_those_of_a_lost_worker_go_out_again_alone_and_only_who_had_begun_is_lost(session):
    searcher, watcher = session
    ours = numbers(searcher.suggest("a"))
    searcher.hear("a", told(1, 2, unfinished=[2]))
    searcher.lost("a", RuntimeError("gone"))
    assert watcher.lost + watcher.failed == [2]
    again = [searcher.suggest(f"again {place}") for place in range(2)]
    assert [numbers(config) for config in again] == [[ours[2]], [ours[3]]]  # trial 3 may have begun, unheard of
    assert json.loads(again[0]["parcels"][0][0])["attempt"] == 2


def test_one_whose_config_cannot_be_made_ends_when_its_turn_comes(session, monkeypatch):
    searcher, watcher = session
    whole, failure = searcher._record.draw, Failure(cause="invalid_config", error="odd", traceback="")

    def draw():
        drawn = whole()
        return dataclasses.replace(drawn, failure=failure) if drawn.number in (1, 4) else drawn

    monkeypatch.setattr(searcher._record, "draw", draw)
    assert numbers(searcher.suggest("a")) == [2, 3, 5, 6, 7, 8, 9, 10]
    assert watcher.failed == [1]
    searcher.on_trial_complete("a", told(2, 3, 5, 6, 7, 8, 9, 10))
    assert watcher.failed == [1, 4]
    assert searcher.error is None
    assert searcher.num_unfinished == 0


def test_who_stays_in_a_pack_holds_what_those_who_left_held(session, monkeypatch):
    searcher, _ = session
    monkeypatch.setattr(searcher._packer, "parcels", lambda drawn, *_: [[drawn.popleft() for _ in range(3)]])
    searcher.suggest("a")
    searcher.hear("a", told(1, 2, 3, unfinished=[1, 2, 3]))
    assert not [key for key in events() if "/share/" in key]
    searcher.hear("a", told(1, 2, 3, unfinished=[2, 3]))
    searcher.hear("a", told(2, 3, unfinished=[3]))
    assert [key for key in events() if "/share/" in key] == ["trial/2/share/1/2", "trial/3/share/1/2", "trial/3/share/1/1"]
    assert searcher.spent._begun[3][1] == 1.0
