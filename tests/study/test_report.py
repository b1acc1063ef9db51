"""Tables of a front, of spaces with few parameters and with many."""

from study.query import Front, Objective, TrialRow
from study.report import front_table


def row(number, **params):
    empty = {"run_id": "r", "state": "finished", "attempts": 1, "host": None, "failure": None, "start_ms": 0, "end_ms": 1}
    return TrialRow(number=number, params=params, metrics={"loss": float(number)}, charts=(), **empty)


def table(*rows):
    objective = Objective(metric="loss", goal="min", unit="nats")
    made = front_table(Front(study="s", objectives=(objective,), rows=rows, dominated=(), infeasible=(), left_out={}))
    return [column.header for column in made.columns], list(zip(*(column.cells for column in made.columns), strict=True))


def test_few_parameters_have_a_column_each():
    assert table(row(0, a=1, b=2), row(1, a=3)) == (["trial", "loss ↓", "a", "b"], [("0", "0", "1", "2"), ("1", "1", "3", "-")])


def test_of_many_parameters_those_that_only_some_rows_have_share_a_column():
    shared = {f"p{number}": number for number in range(9)}
    headers, cells = table(row(0, **shared, x=0.12345, y="way"), row(1, **shared))
    assert headers == ["trial", "loss ↓", *shared, "of its own"]
    assert [line[-1] for line in cells] == ["x 0.1235, y way", ""]


def test_many_parameters_that_all_rows_have_keep_their_columns():
    shared = {f"p{number}": number for number in range(12)}
    assert table(row(0, **shared))[0] == ["trial", "loss ↓", *shared]
