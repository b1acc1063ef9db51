import pytest

from study.recording.outbox import Outbox


@pytest.fixture
def outbox(tmp_path):
    box = Outbox(tmp_path / "outbox.db")
    yield box
    box.close()


def start(outbox, trial, attempt=1):
    return outbox.put("trial_start", f"trial/{trial}/start/{attempt}", {"attempt": attempt}, trial=trial)


def kinds(outbox):
    return [(event.kind, event.trial) for event in outbox.pending(100)]


def test_events_come_out_in_their_order_until_they_are_delivered(outbox):
    outbox.start_session({"space": "x"})
    start(outbox, 0)
    outbox.put("measurement", "trial/0/step/1", {"step": 1}, trial=0)
    first, *rest = outbox.pending(100)
    assert (first.kind, first.data) == ("session_start", {"tags": {"space": "x"}})
    outbox.mark_delivered(first.seq)
    assert outbox.pending(100) == rest
    assert outbox.num_pending() == 2


def test_an_event_that_is_seen_again_changes_nothing(outbox):
    assert start(outbox, 0)
    assert not start(outbox, 0)
    assert outbox.num_pending() == 1


def test_events_outlive_the_process(tmp_path):
    first = Outbox(tmp_path / "outbox.db")
    start(first, 4)
    first.remember_run(4, "run-id")
    first.close()
    second = Outbox(tmp_path / "outbox.db")
    assert kinds(second) == [("trial_start", 4)]
    assert second.runs() == {4: "run-id"}
    second.close()


def test_closing_a_session_interrupts_exactly_the_trials_that_are_open(outbox):
    session = outbox.start_session({})
    for trial in range(3):
        start(outbox, trial)
    outbox.put("trial_end", "trial/0/end/1", {}, trial=0)
    outbox.put("trial_interrupted", "trial/1/interrupted/1", {"tags": {}}, trial=1)
    start(outbox, 1, attempt=2)
    outbox.put("measurement", "trial/1/step/1", {"step": 1}, trial=1)
    outbox.put("candidate", "trial/2/candidate/0", {"number": 0}, trial=2)
    outbox.close_session(session)
    assert kinds(outbox)[-3:] == [("trial_interrupted", 2), ("trial_interrupted", 1), ("session_end", None)]


def test_a_session_closes_once_and_a_late_writer_cannot_close_the_next_one(outbox):
    first = outbox.start_session({})
    outbox.close_session(first, "FINISHED")
    outbox.close_session(first, "KILLED")
    assert [event.data["status"] for event in outbox.pending(100) if event.kind == "session_end"] == ["FINISHED"]
    second = outbox.start_session({})
    start(outbox, 0)
    outbox.close_session(first)
    assert ("trial_interrupted", 0) not in kinds(outbox)
    outbox.close_session(second)
    assert ("trial_interrupted", 0) in kinds(outbox)


def test_a_new_session_closes_what_a_killed_one_left_open(outbox):
    outbox.start_session({})
    start(outbox, 7)
    outbox.start_session({})
    assert kinds(outbox) == [
        ("session_start", None), ("trial_start", 7), ("trial_interrupted", 7), ("session_end", None), ("session_start", None),
    ]  # fmt: skip


def test_a_trial_whose_end_was_told_but_not_recorded_ends_again_with_its_next_attempt(outbox):
    """The driver died between the outbox and the record: the trial is handed out again, already finished."""
    outbox.start_session({})
    start(outbox, 0)
    outbox.put("trial_end", "trial/0/end/1", {}, trial=0)
    session = outbox.start_session({})
    start(outbox, 0, attempt=2)
    outbox.put("trial_end", "trial/0/end/2", {}, trial=0)
    outbox.close_session(session, "FINISHED")
    assert kinds(outbox)[-2:] == [("trial_end", 0), ("session_end", None)]
