"""An errand: parcels one after the other, reported of in slices."""

import pytest
from test_parcel import assign, heard, run_alone

from trainables import errand as errand_module
from trainables.attempt import Attempt
from trainables.errand import Errand
from trainables.failures import LostRankError
from trainables.storage import Folder, StorageError


class Clock:
    """Goes on by a tenth of a second whenever it is asked."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        self.now += 0.1
        return self.now


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(errand_module, "time", Clock())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    place = tmp_path_factory.mktemp("alone")
    return {trial: run_alone(assign(place, trial)) for trial in range(3)}


def run(errand):
    """All reports, by call."""
    calls = []
    while not errand.is_over:
        calls.append(errand.advance())
    return calls


def test_trials_come_one_after_the_other_and_report_what_they_would_alone(tmp_path, alone):
    errand = Errand([[assign(tmp_path, trial)] for trial in range(3)], slice_s=60.0)
    assert errand.trials == [0]
    (reports,) = run(errand)
    assert heard(reports) == alone
    assert [report.trial for report in reports if report.finished] == [0, 1, 2]


def test_without_a_slice_every_step_is_a_report_of_its_own(tmp_path, alone):
    calls = run(Errand([[assign(tmp_path, 0)], [assign(tmp_path, 1)]]))
    assert [len(reports) for reports in calls] == [1] * (len(alone[0]) + len(alone[1]))


def test_a_slice_ends_when_its_time_is_up_and_says_how_old_each_report_is(tmp_path, alone, clock):
    calls = run(Errand([[assign(tmp_path, 0)]], slice_s=0.15))
    assert [len(reports) for reports in calls] == [2] * (len(alone[0]) // 2) + [1] * (len(alone[0]) % 2)
    older, newer = calls[0]
    assert older.age_seconds == pytest.approx(newer.age_seconds + 0.1)


def test_a_trial_that_fails_leaves_its_place_to_the_next(tmp_path, alone):
    (reports,) = run(Errand([[assign(tmp_path, 0, width=-1)], [assign(tmp_path, 1)]], slice_s=60.0))
    assert [report.failure and report.failure.cause for report in reports][:2] == ["invalid_config", None]
    assert heard(reports)[1] == alone[1]


@pytest.mark.parametrize("error", [StorageError("full"), LostRankError("gone")])
def test_what_was_made_before_the_worker_breaks_down_is_reported_first(tmp_path, alone, monkeypatch, error):
    whole = Attempt.advance

    def advance(self, made=None):
        if self.assignment.trial == 1:
            raise error
        return whole(self, made)

    monkeypatch.setattr(Attempt, "advance", advance)
    errand = Errand([[assign(tmp_path, trial)] for trial in range(3)], slice_s=60.0)
    assert heard(errand.advance()) == {0: alone[0]}
    assert not errand.is_over
    with pytest.raises(type(error)):
        errand.advance()


def test_closed_it_keeps_what_is_under_way_and_leaves_the_rest_alone(tmp_path):
    errand = Errand([[assign(tmp_path, trial)] for trial in range(2)])
    errand.advance()
    errand.close()
    assert "checkpoints" in {name.partition("/")[0] for name in Folder(tmp_path / "trials/00000").sizes()}
    assert not Folder(tmp_path / "trials/00001").sizes()
    again = Errand([[assign(tmp_path, 0, attempt=2)]])
    assert again.advance()[0].resumed_step == 1
