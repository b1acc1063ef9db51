"""The picture of a front: its knee, what is thinned, what has no place, colours."""

import math

import pytest
from made_study import COST, LOSS, SIZE, drawing, line, study_of
from made_trials import record, trials_of

from study.asking.query import Studies
from study.errors import UserError
from study.fronts.front import Objective
from study.reporting.front_colors import colors_of
from study.reporting.pictures import front_picture, plot_front

BULGE = [record(0, {"loss": 0.0, "size": 10.0}), record(1, {"loss": 1.0, "size": 1.0}), record(2, {"loss": 10.0, "size": 0.0})]


def page(study, tmp_path):
    plot_front(study, study.front(), tmp_path / "front.html")
    return drawing(tmp_path / "front.html")


def rings(traces):
    return [
        (trace["x"], trace["y"]) for trace in traces if trace.get("marker", {}).get("symbol") == "circle-open" and trace["x"][0]
    ]


def test_the_knee_has_a_ring_in_every_panel_and_a_word_in_the_legend(tmp_path):
    traces, _ = page(study_of(*BULGE), tmp_path)
    assert rings(traces) == [([1], [1])]
    assert [trace["name"] for trace in traces if trace.get("name")] == ["front", "knee: 1"]
    three = study_of(
        *(record(i, {"loss": 1.0 + i, "size": 3.0 - i, "cost": 2.0}) for i in range(3)), objectives=(LOSS, SIZE, COST)
    )
    assert len(rings(page(three, tmp_path)[0])) == 3


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_pictures_are_drawn_of_one_objective_of_two_and_of_three(tmp_path, ending):
    for objectives in ((LOSS,), (LOSS, SIZE), (LOSS, SIZE, COST)):
        study = study_of(*(record(i, {"loss": 1.0 + i, "size": 3.0 - i, "cost": 2.0}) for i in range(3)), objectives=objectives)
        plot_front(study, study.front(), tmp_path / f"f.{ending}")
        assert (tmp_path / f"f.{ending}").stat().st_size > 5_000


def test_of_very_many_dominated_models_some_are_drawn_and_the_title_says_so(tmp_path):
    rows = [record(i, {"loss": 1.0 + i, "size": 1.0 + i}) for i in range(4000)]
    traces, layout = page(study_of(record(4000, {"loss": 0.0, "size": 0.0}), *rows), tmp_path)
    dominated = next(trace for trace in traces if trace.get("legendgroup") == "dominated" and trace.get("text"))
    assert len(dominated["x"]) == 1500
    assert (dominated["y"][0], dominated["y"][-1]) == (1, 4000)
    assert "of 4000 dominated ones 1500 are drawn" in layout["title"]["text"].replace("<br>", " ")


def test_the_front_and_the_infeasible_are_drawn_in_full():
    broken = [record(5000 + i, {"loss": 99.0, "size": float(i)}) for i in range(1600)]
    study = study_of(*line(1700), *broken, constraints=("loss <= 98",))
    picture = front_picture(study, study.front())
    assert len(picture.kinds["front"]) == 99
    assert len(picture.kinds["infeasible"]) == 1600 + 1601


def test_stairs_are_what_was_reached_whichever_way_is_better(tmp_path):
    down = study_of(*line(3))
    up = study_of(
        *(record(i, {"size": float(i), "accuracy": float(i)}) for i in range(3)),
        objectives=(SIZE, Objective(metric="accuracy", goal="max")),
    )
    shapes = [
        next(t["line"]["shape"] for t in page(study, tmp_path)[0] if t.get("line", {}).get("shape")) for study in (down, up)
    ]
    assert shapes == ["hv", "vh"]


def test_infinite_values_stand_at_the_edge_and_a_zero_has_no_place_on_a_logarithmic_axis(tmp_path):
    rows = [*line(4), record(9, {"loss": -math.inf, "size": 9.0})]
    traces, _ = page(study_of(*rows), tmp_path)
    front = next(trace for trace in traces if trace.get("legendgroup") == "front" and trace.get("text"))
    assert len(front["y"]) == 5
    assert -1 < min(front["y"]) < 0
    traces, layout = page(study_of(*rows[:4], log_scale=("size",)), tmp_path)
    assert "1 trial at 0 is not drawn" in layout["title"]["text"]
    assert {"1", "2", "5"} <= set(layout["xaxis"]["ticktext"])


def test_a_front_of_nothing_but_one_infinite_value_can_be_drawn(tmp_path):
    study = study_of(record(0, {"loss": math.inf, "size": math.inf}))
    plot_front(study, study.front(), tmp_path / "f.png")
    assert page(study, tmp_path)


def test_several_studies_are_told_apart_by_their_names():
    rows = [record(0, {"loss": 1.0, "size": 2.0}, study="a"), record(0, {"loss": 2.0, "size": 1.0}, study="b")]
    several = Studies(
        name="a+b", all_trials=trials_of(*rows, is_merged=True), all_candidates=trials_of(), objectives=(LOSS, SIZE),
        constraints={}, log_scale=(), color_by=None,
    )  # fmt: skip
    picture = front_picture(several, several.front())
    assert list(picture.colors.groups) == ["study = a", "study = b"]
    assert sorted(picture.captions(SIZE, LOSS).values()) == ["a/0", "b/0"]


def test_many_numbers_share_colours_by_ranges_and_rare_names_share_one():
    numbers = study_of(*line(100), color_by="loss")
    assert next(iter(colors_of(numbers, numbers.front()).groups)) == "loss 0 to 11"
    assert len(colors_of(numbers, numbers.front()).groups) == 8
    named = [record(i, {"loss": 1.0, "size": 1.0}, params={"way": f"w{i % 30:02d}"}) for i in range(60)]
    named = study_of(*named, *line(2), color_by="way")
    groups = colors_of(named, named.front()).groups
    assert len(groups) == 9
    assert list(groups)[-1] == "another way"


def test_text_of_a_user_is_no_markup_and_no_formula(tmp_path):
    odd = "<script>alert(1)</script>$\\frac$"
    study = study_of(*line(3, **{odd: odd}), color_by=odd)
    plot_front(study, study.front(), tmp_path / "f.png")
    traces, _ = page(study, tmp_path)
    assert "<script>alert" not in (tmp_path / "front.html").read_text()
    assert all("<script" not in text for trace in traces for text in (trace.get("name", ""), *trace.get("text", ())))


def test_drawing_again_gives_the_same_page(tmp_path):
    study = study_of(*BULGE)
    for name in ("a.html", "b.html"):
        plot_front(study, study.front(), tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_plot_of_nothing_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="needs a finished trial"):
        plot_front(study_of(), study_of().front(), tmp_path / "f.png")
