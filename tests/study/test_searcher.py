"""The searcher without Ray's workers: what it hears of a trial's candidates, and whom it tells."""

import dataclasses
import sqlite3

import pytest
from optuna.trial import TrialState
from test_spec import spec

from search_spaces import cmsp_curriculum
from study.home import Home
from study.recording.outbox import Outbox
from study.running.record import STOPPED, TrialRecord
from study.running.searcher import StudySearcher
from trainables.protocol import Failure, Measurement, Report


class Watcher:
    """Remembers how trials finished."""

    def __init__(self):
        self.finished, self.failed, self.stopped = [], [], []

    def trial_finished(self, draw, metrics, candidate):
        self.finished.append((draw.number, metrics, candidate))

    def trial_failed(self, draw, failure):
        self.failed.append(draw.number)

    def trial_stopped(self, draw, why):
        self.stopped.append((draw.number, why))

    def trial_started(self, *_): ...
    def trial_measured(self, *_): ...


@pytest.fixture
def session(home):
    """Begin a session of the study, as a launch or a resume does: (searcher, watcher, record)."""
    Home().prepare()
    folder = Home().study("s")
    folder.path.mkdir(parents=True)
    boxes = []

    def begin(max_concurrent=1, early_stopping="none", **changes):
        space = dataclasses.replace(cmsp_curriculum.tiny(), **changes)
        own = dataclasses.replace(spec(space), early_stopping=early_stopping)
        record, watcher = TrialRecord(folder, own, space), Watcher()
        boxes.append(Outbox(folder.outbox_file))
        return StudySearcher(own, record, boxes[-1], watcher, max_concurrent=lambda: max_concurrent), watcher, record

    yield begin
    for box in boxes:
        box.close()


def metrics(samples, parameters, converged=1.0):
    return {"samples_to_convergence": samples, "parameters": parameters, "fraction_converged": converged}


def offer(number, *values):
    return {"number": number, "metrics": metrics(*values), "folder": f"candidates/{number:05d}-1"}


CURVE = [offer(0, 900.0, 5.0), offer(1, 300.0, 30.0), offer(2, 200.0, 20.0, 0.25)]
STEPS = [
    Measurement(step=1, metrics=metrics(1.0, 1.0), progress=0.5, candidates=CURVE[:2]),
    Measurement(step=2, metrics=metrics(1.0, 1.0), progress=1.0, candidates=CURVE[2:]),
]


def report(trial, measurements, *, finished, failure=None, attempt=1, **fields):
    """What Tune hands on."""
    fields |= {"attempt": attempt, "failure": failure, "host": "h", "pid": 1}
    return {"reports": [Report(trial=trial, measurements=measurements, finished=finished, **fields).to_json()]}


def events(kind):
    with sqlite3.connect(Home().study("s").outbox_file) as connection:
        keys = [key for (key,) in connection.execute("SELECT key FROM event ORDER BY seq")]
    return [key for key in keys if f"/{kind}/" in key]


def test_a_candidate_is_an_event_with_its_metrics_and_its_files(session, home):
    searcher, _, _ = session()
    searcher.suggest("t")
    searcher.hear("t", report(0, STEPS[:1], finished=False))
    box = Outbox(Home().study("s").outbox_file)
    start, measured, first, second = box.pending(10)
    box.close()
    assert [event.kind for event in (measured, first, second)] == ["measurement", "candidate", "candidate"]
    assert first.data == {
        "number": 0, "metrics": CURVE[0]["metrics"], "step": 1, "params": start.data["params"],
        "model": "/s/s/trials/00000/candidates/00000-1",
    }  # fmt: skip
    assert second.trial == 0


@pytest.mark.parametrize(("representative", "candidate"), [(None, 1), ("parameters", 0)])
def test_the_best_feasible_candidate_stands_for_its_trial(session, representative, candidate):
    searcher, watcher, _ = session(representative=representative)
    searcher.suggest("t")
    searcher.hear("t", report(0, STEPS[:1], finished=False))
    searcher.on_trial_complete("t", report(0, STEPS[1:], finished=True))
    assert searcher.error is None
    chosen = CURVE[candidate]["metrics"]
    assert watcher.finished == [(0, chosen, candidate)]
    (past,) = session(representative=representative)[2].past
    assert (past.candidate, past.values, past.feasible) == (
        candidate, [chosen["samples_to_convergence"], chosen["parameters"]], True,
    )  # fmt: skip


def test_a_trial_without_candidates_stands_for_itself(session):
    searcher, watcher, _ = session(representative="parameters")
    searcher.suggest("t")
    searcher.on_trial_complete("t", report(0, [dataclasses.replace(step, candidates=[]) for step in STEPS], finished=True))
    assert watcher.finished == [(0, metrics(1.0, 1.0), None)]


def test_a_trial_that_is_handed_out_again_after_its_last_step_tells_nothing_twice(session, monkeypatch):
    searcher, _, record = session()
    searcher.suggest("t")

    def die(*_):
        raise OSError("the driver dies between the outbox and the record")

    monkeypatch.setattr(record, "finish", die)
    searcher.on_trial_complete("t", report(0, STEPS, finished=True))
    assert searcher.error is not None
    before = events("candidate")
    assert before == [f"trial/0/candidate/{number}" for number in range(3)]
    again, watcher, _ = session()
    again.suggest("t")
    again.on_trial_complete("t", report(0, STEPS, finished=True, attempt=2, resumed_step=2))
    assert events("candidate") == before
    assert events("step") == ["trial/0/step/1", "trial/0/step/2"]
    assert watcher.finished == [(0, CURVE[1]["metrics"], 1)]


def test_what_a_worker_says_that_was_given_up_is_not_heard(session):
    session()[0].suggest("t")
    again, watcher, _ = session()
    again.suggest("t")
    again.on_trial_complete("t", report(0, STEPS, finished=True, attempt=1))
    assert events("step") == []
    assert watcher.finished == []


def test_steps_that_are_made_again_are_counted_with_their_seconds(session):
    first, *_ = session()
    first.suggest("t")
    first.hear("t", report(0, STEPS[:1], finished=False))
    again, *_ = session()
    again.suggest("t")
    again.hear("t", report(0, STEPS[:1], finished=False, attempt=2, seconds=1.5))
    again.on_trial_complete("t", report(0, STEPS[1:], finished=True, attempt=2, seconds=4.0))
    box = Outbox(Home().study("s").outbox_file)
    ends = [event.data["tags"] for event in box.pending(100) if event.kind == "trial_end"]
    box.close()
    told = [{name: text for name, text in tags.items() if name != "ledger"} for tags in ends]
    assert told == [{"hostname": "h", "pid": "1", "repeated_steps": "1", "repeated_seconds": "1.500"}]


def fail(searcher, trial, error, cause="bug"):
    searcher.suggest(f"t{trial}")
    failure = Failure(cause=cause, error=error, traceback="Traceback: the place")
    searcher.on_trial_complete(f"t{trial}", report(trial, [], finished=False, failure=failure))


def test_trials_that_all_end_by_one_bug_end_the_session_and_show_it_once(session):
    searcher, watcher, record = session()
    for trial in range(4):
        fail(searcher, trial, "KeyError: 'width'")
    assert searcher.error is None
    fail(searcher, 4, "KeyError: 'width'")
    assert searcher.interrupted
    told = str(searcher.error)
    assert "must not all end by one bug, but 5 did (KeyError: 'width'); mend it, then: study resume s" in told
    assert told.count("the place") == 1
    assert watcher.failed == [0, 1, 2, 3, 4]
    assert record.num_failed == 5


@pytest.mark.parametrize("cause", ["diverged", "out_of_memory", "invalid_config"])
def test_other_ends_are_no_bug(session, cause):
    searcher, *_ = session()
    for trial in range(6):
        fail(searcher, trial, "the same", cause)
    assert searcher.error is None


def test_bugs_that_differ_do_not_end_the_session(session):
    searcher, *_ = session()
    for trial in range(6):
        fail(searcher, trial, f"KeyError: {trial}")
    assert searcher.error is None


def test_equal_bugs_after_a_success_do_not_end_the_session(session):
    searcher, *_ = session()
    searcher.suggest("t")
    searcher.on_trial_complete("t", report(0, [dataclasses.replace(step, candidates=[]) for step in STEPS], finished=True))
    for trial in range(1, 6):
        fail(searcher, trial, "KeyError: 'width'")
    assert searcher.error is None


def rung_values(loss, parameters):
    return metrics(1000.0, parameters) | {"composite_loss_bits": loss}


def at_rung(trial, loss, *, parameters=100.0, attempt=1):
    """A report at half of the way."""
    return report(
        trial, [Measurement(step=1, metrics=rung_values(loss, parameters), progress=0.5)], finished=False, attempt=attempt
    )


STOPPING = {"at_rungs": {"samples_to_convergence": "composite_loss_bits"}}
RULE = "moasha:reduction=2,first=0.5,num_before=2"


def stop_the_third(searcher):
    """Three trials reach the only rung; the last and worst is stopped. Returns what the searcher said of each."""
    said = []
    for number, loss in enumerate((0.2, 0.3, 0.9)):
        searcher.suggest(f"t{number}")
        said.append(searcher.hear(f"t{number}", at_rung(number, loss)))
    return said


def test_a_trial_that_is_worse_at_a_rung_stops_and_everybody_hears_why(session, home):
    searcher, watcher, record = session(early_stopping=RULE, max_concurrent=3, **STOPPING)
    assert stop_the_third(searcher) == [False, False, True]
    ((number, why),) = watcher.stopped
    assert number == 2 and why
    assert (record.num_stopped, record.num_finished, searcher.num_unfinished) == (1, 0, 2)
    trial = record._study.get_trials()[2]
    assert trial.state == TrialState.PRUNED and trial.values is None
    assert trial.user_attrs[STOPPED]["values"] == {"composite_loss_bits": 0.9, "parameters": 100.0}
    assert trial.constraints == {"fraction_converged >= 0.5": -0.5}
    assert searcher.hear("t2", at_rung(2, 0.9)) is False  # too late: it is nobody's trial any more


def test_a_trial_that_was_stopped_stays_so_though_the_driver_died_before_it_told(session, home):
    searcher, _, record = session(early_stopping=RULE, max_concurrent=3, **STOPPING)
    record.stop = None  # dies in telling
    stop_the_third(searcher)
    assert isinstance(searcher.error, TypeError)
    again, _, record = session(early_stopping=RULE, max_concurrent=3, **STOPPING)
    assert (record.num_stopped, again.num_unfinished) == (1, 2)
    assert record._study.get_trials()[2].state == TrialState.PRUNED


def test_a_resumed_study_judges_by_what_earlier_sessions_saw(session, home):
    searcher, _, _ = session(early_stopping=RULE, max_concurrent=3, **STOPPING)
    for number, loss in enumerate((0.2, 0.3)):
        searcher.suggest(f"t{number}")
        searcher.hear(f"t{number}", at_rung(number, loss))
    again, _, _ = session(early_stopping=RULE, max_concurrent=3, num_trials=3, **STOPPING)
    for number in (0, 1):
        again.suggest(f"a{number}")
        assert not again.hear(f"a{number}", at_rung(number, 0.2 + number / 10, attempt=2))
    again.suggest("a2")
    assert again.hear("a2", at_rung(2, 0.9))


def test_a_verdict_that_a_dying_driver_did_not_note_is_given_again(session, home):
    searcher, _, _ = session(early_stopping=RULE, max_concurrent=3, **STOPPING)
    searcher._events.end = None  # dies between the rung and the stop
    stop_the_third(searcher)
    assert isinstance(searcher.error, TypeError)
    again, watcher, _ = session(early_stopping=RULE, max_concurrent=3, num_trials=3, **STOPPING)
    said = []
    for number, loss in enumerate((0.2, 0.3, 0.9)):
        again.suggest(f"a{number}")
        said.append(again.hear(f"a{number}", at_rung(number, loss, attempt=2)))
    assert said == [False, False, True]
    assert [number for number, _ in watcher.stopped] == [2]
