"""Many deaths, of everything that can die. A failing seed is printed with the command that runs it again."""

import os

import pytest

from study.chaos.chaos import run_chaos

pytestmark = pytest.mark.faults
KILLS = int(os.environ.get("STUDY_CHAOS_KILLS", "20"))


def torment(*options, kills, seed, trials):
    command = ("cmsp_curriculum:tiny", "--trials", str(trials), *options)
    report = run_chaos(command, num_trials=trials, kills=kills, seed=seed)
    failed = [check for check in report.checks if not check.holds]
    assert not failed, f"once more: study chaos cmsp_curriculum:tiny --kills {kills} --seed {seed}; in {report.folder}: {failed}"


def test_a_study_that_is_killed_twenty_times_comes_to_what_it_comes_to_in_peace():
    torment("--max-concurrent", "1", kills=KILLS, seed=7, trials=2 * KILLS)


def test_two_workers_in_the_deterministic_mode_come_to_the_same_however_often_they_are_killed():
    torment("--max-concurrent", "2", "--deterministic", kills=6, seed=11, trials=12)
