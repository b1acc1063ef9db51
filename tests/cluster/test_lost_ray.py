"""The embedded Ray dies under a study: one of its two servers, which it cannot do without."""

import re

import commands
import psutil
import pytest

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize(("server", "name"), [("raylet", "raylet on this machine"), ("gcs_server", "head (gcs_server)")])
def test_a_study_whose_ray_died_ends_with_one_sentence_and_can_go_on(home, desk, server, name):
    process = commands.start("launch", "user_space:slow", "--name", "r1", "--max-concurrent", "2", home=home, cwd=desk)
    commands.wait_until(lambda: any(home.glob("mlartifacts/r1/*/artifacts/model")), "a trial to end", 120)
    (victim,) = [child for child in psutil.Process(process.pid).children(recursive=True) if child.name() == server]
    victim.kill()
    _, err = process.communicate(timeout=50)
    assert process.returncode == 2
    assert re.sub(r"\s+", " ", err.strip()) == (
        f"study: Ray must live as long as it runs a study, but its {name} is gone; go on with: study resume r1"
    )
    result = commands.run("resume", "r1", home=home, cwd=desk)
    assert result.returncode == 0, result.stderr
    assert {row["state"] for row in commands.run_json("status", "r1", home=home)["trials"]} == {"finished"}
