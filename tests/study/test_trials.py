"""Trials as a sequence, as columns and as files."""

import json
import math

import numpy as np
import pandas
import pyarrow.csv
import pyarrow.parquet
import pytest
from made_trials import candidate, record, trials_of

from study.asking.trials import Failure, TrialRow, Trials, join_tables, table_of
from study.fronts.front import models_of

BUG = {"cause": "bug", "error": "boom", "traceback": "line 1\nline 2"}
MIXED = (
    record(0, {"loss": 1.0}, params={"width": 64, "way": "lasso", "share": 1, "size": 3, "deep": True, "shape": [1, 2]}),
    record(1, {"loss": math.nan}, params={"width": 32, "way": "random", "share": 0.5, "size": "auto", "strength": 0.1}),
    record(2, params={"width": 16}, state="failed", failure=json.dumps(BUG), end_ms=None),
)


def numbers(trials):
    return [row.number for row in trials]


def test_rows_come_by_place_slice_mask_and_places():
    trials = trials_of(*(record(number) for number in range(5)))
    assert (trials[0].number, trials[-1].number, trials[np.int64(2)].number) == (0, 4, 2)
    assert [numbers(trials[1:3]), numbers(trials[::-2]), numbers(trials[9:])] == [[1, 2], [4, 2, 0], []]
    assert isinstance(trials[1:3], Trials)
    assert numbers(trials.take([3, 3, 0])) == [3, 3, 0]
    assert numbers(trials.take(np.array([True, False, False, True, False]))) == [0, 3]
    assert numbers(trials.take([])) == numbers(trials.take(np.zeros(5, dtype=bool))) == []
    with pytest.raises(IndexError):
        trials[5]


def test_they_are_true_if_there_are_any_and_equal_their_rows():
    trials = trials_of(record(0), record(1))
    assert trials and not trials[:0]
    assert trials == list(trials) == trials_of(record(0), record(1))
    assert trials != trials[::-1]
    assert (repr(trials), repr(trials[:1])) == ("<2 trials>", "<1 trial>")


def test_iterating_over_more_than_a_batch_gives_each_once():
    trials = trials_of(*(record(number) for number in range(2500)))
    assert numbers(trials) == list(range(2500))
    assert numbers(trials.take(np.arange(2499, -1, -1))) == list(range(2499, -1, -1))


def test_a_row_has_what_its_record_says():
    row = trials_of(record(3, {"loss": 2.0}, params={"width": 4}, host="h", charts="a, b", failure=json.dumps(BUG)))[0]
    assert row == TrialRow(
        number=3, run_id="run-s-3", state="finished", params={"width": 4}, metrics={"progress": 1.0, "loss": 2.0}, attempts=1,
        host="h", failure=Failure(**BUG), start_ms=3000, end_ms=3500, charts=("a", "b"),
    )  # fmt: skip


def test_a_metric_that_is_nan_is_there_and_one_that_is_missing_is_not():
    trials = trials_of(record(0, {"loss": math.nan}), record(1), record(2, {"loss": math.inf}))
    assert trials.has_metric("loss").tolist() == [True, False, True]
    assert np.isnan(trials.metric("loss")).tolist() == [True, True, False]
    assert ["loss" in row.metrics for row in trials] == [True, False, True]
    assert not trials.has_metric("lost").any() and np.isnan(trials.metric("lost")).all()
    assert len(trials[:0].metric("loss")) == len(trials[:0].has_metric("lost")) == 0


def test_a_name_that_several_studies_share_is_told_by_the_study():
    records = [record(3, study="a"), record(3, study="b")]
    assert [row.label for row in trials_of(*records, is_merged=True)] == ["a/3", "b/3"]
    assert [row.label for row in trials_of(*records)] == ["3", "3"]


def test_a_candidate_is_called_by_its_trial_and_number():
    models = models_of(trials_of(record(3), is_merged=True), trials_of(candidate(3, 4, {"loss": 1.0})))
    assert models[0].label == "s/3.4"


def test_a_row_that_was_made_by_hand_has_no_model():
    with pytest.raises(RuntimeError, match="open_study"):
        trials_of(record(0))[0].load_model()


def test_each_parameter_and_metric_is_a_column_of_its_own_kind():
    table = trials_of(*MIXED).to_arrow()
    found = {name: table[name].to_pylist() for name in table.column_names if name.startswith(("params.", "metrics.loss"))}
    loss = found.pop("metrics.loss")
    assert loss[0] == 1.0 and math.isnan(loss[1]) and loss[2] is None
    assert found == {
        "params.width": [64, 32, 16],
        "params.way": ["lasso", "random", None],
        "params.share": [1.0, 0.5, None],
        "params.size": ["3", "auto", None],
        "params.deep": [True, None, None],
        "params.shape": ["[1, 2]", None, None],
        "params.strength": [None, 0.1, None],
    }
    assert table["failure"].to_pylist() == [None, None, "bug"]
    assert table.column_names[:3] == ["study", "trial", "state"]


def test_a_number_too_long_for_a_column_of_numbers_is_text():
    seeds = [2**70, 3]
    table = trials_of(*(record(number, params={"seed": seed}) for number, seed in enumerate(seeds))).to_arrow()
    assert table["params.seed"].to_pylist() == [str(seed) for seed in seeds]


def test_candidates_have_a_column_where_there_are_any():
    trials = trials_of(record(0), record(1))
    assert "candidate" not in trials.to_arrow().column_names
    models = models_of(trials, trials_of(candidate(1, 0, {"loss": 1.0}), candidate(1, 1, {"loss": 2.0})))
    frame = models.to_pandas()
    assert frame["trial"].tolist() == [0, 1, 1]
    assert frame["candidate"].isna().tolist() == [True, False, False]
    assert models.to_arrow()["model_id"].to_pylist() == [None, "m-1-0", "m-1-1"]


def test_no_trials_are_a_table_without_rows():
    table = trials_of().to_arrow()
    assert table.num_rows == 0 and {"study", "trial", "state", "run_id"} <= set(table.column_names)
    assert trials_of().to_pandas().empty and trials_of().to_json() == []


def test_a_parquet_file_gives_back_the_table(tmp_path):
    trials = trials_of(*MIXED)
    trials.to_parquet(tmp_path / "t.parquet")
    back = pyarrow.parquet.read_table(tmp_path / "t.parquet")
    assert back.schema == trials.to_arrow().schema
    pandas.testing.assert_frame_equal(back.to_pandas(), trials.to_pandas())


def test_a_csv_file_gives_back_the_values(tmp_path):
    trials = trials_of(*MIXED, record(3, params={"way": 'with "quotes",\na comma and a line'}))
    trials.to_csv(tmp_path / "t.csv")
    back = pandas.read_csv(tmp_path / "t.csv")
    assert back["params.width"].tolist()[:3] == [64.0, 32.0, 16.0]
    assert back["params.way"].tolist()[3] == 'with "quotes",\na comma and a line'
    assert back["metrics.loss"].isna().tolist() == [False, True, True, True]


def test_json_has_plain_values_and_failures():
    rows = json.loads(json.dumps(trials_of(*MIXED).to_json()))
    assert rows[0]["params"] == json.loads(MIXED[0]["params"])
    assert rows[0]["metrics"] == {"progress": 1.0, "loss": 1.0}
    assert [row["failure"] for row in rows] == [None, None, BUG]
    assert [row["number"] for row in rows] == [0, 1, 2] and "source" not in rows[0]


def test_tables_with_other_columns_are_joined_and_values_that_are_not_there_are_missing():
    table = join_tables([table_of([record(0, {"a": 1.0})]), table_of([]), table_of([record(1, {"b": 2.0})])])
    assert table["metrics.a"].to_pylist() == [1.0, None]
    assert table["metrics.b"].to_pylist() == [None, 2.0]
    assert join_tables([]).num_rows == 0


def test_trials_followed_by_others_keep_the_metrics_of_both():
    joined = trials_of(record(0, {"a": 1.0})).followed_by(trials_of(record(1, {"b": 2.0})))
    assert [row.metrics for row in joined] == [{"progress": 1.0, "a": 1.0}, {"progress": 1.0, "b": 2.0}]
