"""A study ends when what it may spend is spent, and says how to go on."""

import dataclasses

import pytest
from test_spec import spec

from search_spaces import cmsp_curriculum
from study.errors import UserError
from study.launch_checks import check_limits
from study.running.ledger import Ledger, Spent
from study.running.session import limit_spent
from study.spec import Limits


def limited(**limits):
    return dataclasses.replace(spec(cmsp_curriculum.tiny()), limits=Limits(**limits))


def test_the_first_limit_that_is_spent_is_named_with_the_command_that_goes_on():
    spent = Spent(num_cpus=2, num_gpus=0, past=[Ledger(seconds={"useful": 3000.0, "idle": 600.0}, flops={"useful": 5e9})])
    assert limit_spent(limited(), spent) is None
    assert limit_spent(limited(cpu_hours=2.5, flops=6e9), spent) is None
    assert limit_spent(limited(cpu_hours=2.0), spent) == ("its 2 CPU-hours are spent; give it more: study resume s --cpu-hours 4")
    assert limit_spent(limited(cpu_hours=9.0, flops=5e9), spent).startswith("its 5e+09 FLOP are spent")


def test_a_limit_that_nothing_would_count_towards_is_refused():
    check_limits(limited(cpu_hours=1.0, flops=1.0))
    with pytest.raises(UserError, match="--gpu-hours needs trials that hold a GPU"):
        check_limits(limited(gpu_hours=1.0))
