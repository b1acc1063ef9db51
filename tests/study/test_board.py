"""The live view, without a study behind it."""

import io
import random

from rich.console import Console
from test_spec import spec

from study.running.board import Board
from study.running.record import Draw, PastTrial


def shown(board):
    """The rows of its front: the trials' labels, from top to bottom."""
    out = io.StringIO()
    Console(file=out, width=120).print(board._front_table())
    return [line.split()[0] for line in out.getvalue().splitlines()[2:]]


def make_board(past=()):
    return Board(spec(), past, Console(file=io.StringIO()))


def test_the_front_is_the_same_whether_its_trials_finished_now_or_in_earlier_sessions():
    draws = random.Random(0)
    metrics = [
        {
            "samples_to_convergence": float(draws.randrange(20)),
            "parameters": float(draws.randrange(20)),
            "fraction_converged": 1.0,
        }
        for _ in range(60)
    ]
    past = [PastTrial(number, None, {"width": 8}, list(row.values())[:2], True) for number, row in enumerate(metrics)]
    board = make_board(past[:30])
    for number, row in list(enumerate(metrics))[30:]:
        board.trial_finished(Draw(number, {"width": 8}, {}, 1), row, None)
    assert shown(board) == shown(make_board(past))
    assert len(shown(board)) > 2


def test_an_infeasible_trial_is_on_no_front():
    board = make_board([PastTrial(0, None, {"width": 8}, [1.0, 1.0], False)])
    metrics = {"samples_to_convergence": 1.0, "parameters": 1.0, "fraction_converged": 0.0}
    board.trial_finished(Draw(1, {"width": 8}, {}, 1), metrics, None)
    assert shown(board) == []


def test_that_a_space_seems_spent_is_said_once():
    said = io.StringIO()
    board = Board(spec(), [], Console(file=said, width=200))
    board.trial_started(Draw(4, {"width": 8}, {}, 1, repeats=1))
    board.trial_started(Draw(5, {"width": 8}, {}, 1, repeats=2))
    assert said.getvalue() == "the space seems spent: trial 4 repeats trial 1, and others may follow\n"
