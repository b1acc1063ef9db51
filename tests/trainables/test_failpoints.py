import subprocess
import sys
from pathlib import Path

import pytest

from trainables.failpoints import VARIABLE, arm, disarm, failpoint

ROOT = Path(__file__).parents[2]
PASS = "from trainables.failpoints import failpoint; failpoint('trial told', 'a.pt'); print('lives')"


def pass_by(folder):
    return subprocess.run(
        [sys.executable, "-c", PASS], env={VARIABLE: str(folder), "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )


def test_one_arming_is_one_death(tmp_path):
    fired = arm(tmp_path, "trial told", "*.pt")
    assert pass_by(tmp_path).returncode == -9
    assert fired.exists()
    assert pass_by(tmp_path).stdout == "lives\n"


@pytest.mark.parametrize("pattern", ["*.json", None])
def test_what_is_not_meant_lives(tmp_path, pattern):
    arm(tmp_path, "trial told", pattern or "*")
    if pattern is None:
        disarm(tmp_path, "trial told")
    assert pass_by(tmp_path).stdout == "lives\n"


def test_nothing_is_looked_up_unless_asked_for(tmp_path, monkeypatch):
    arm(tmp_path, "trial told")
    monkeypatch.delenv(VARIABLE, raising=False)
    failpoint("trial told")
