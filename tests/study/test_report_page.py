"""The page of a study: what is on it, whatever the study is like; in a browser without a network."""

import html
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from made_study import COST, LOSS, SIZE, line, study_of
from made_trials import candidate, record, trials_of

from study.asking.query import Studies
from study.errors import UserError
from study.reporting.figures_importance import importances
from study.reporting.figures_parameters import value_axis
from study.reporting.report_page import make_report, report_text

ODD = '<script>alert("x")</script>&amp;'
RANGES = {"rate": "0.001 .. 1 (log)", "way": "lasso | none", "strength": "0 .. 1"}


class _Page(HTMLParser):
    """The words of a page by section, and how often each element occurs."""

    def __init__(self, text):
        super().__init__()
        self.section, self.words, self.elements, self.inside = "", {}, [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.inside = tag
        self.section = dict(attributes)["id"] if tag == "section" else self.section

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.words[self.section] = f"{self.words.get(self.section, '')} {data}"


def told(study):
    """What the page says, by section."""
    return _Page(report_text(study, study.front())).words


def figures(study):
    """The figures that the page draws, by name."""
    text = report_text(study, study.front())
    return json.JSONDecoder().raw_decode(text[text.index("const FIGURES = ") + 16 :])[0]


def rich_study(num=40, **changes):
    """Three objectives, candidates, a parameter that some trials lack, failures, one infeasible trial."""
    records, candidates = [], []
    for i in range(num):
        way = ("lasso", "none")[i % 2]
        params = {"rate": 10 ** (-3 * i / num), "way": way} | ({"strength": i / num} if way == "lasso" else {})
        metrics = {"loss": (i * 7) % num + 1.0, "size": (i * 11) % num + 1.0, "cost": (i * 3) % num + 1.0}
        records.append(record(i, metrics, params=params))
        if i % 4 == 0:
            shrunk = [{**metrics, "size": metrics["size"] / (k + 1), "loss": metrics["loss"] + k} for k in range(3)]
            candidates += [candidate(i, k, found) for k, found in enumerate(shrunk)]
    failure = {"cause": "diverged", "error": "a loss must be finite, but got nan. More words", "traceback": ""}
    records += [record(num + k, state="failed", failure=json.dumps(failure)) for k in range(3)]
    records.append(record(num + 3, {"loss": 1000.0, "size": 1.0, "cost": 1.0}))
    given = {"objectives": (LOSS, SIZE, COST), "constraints": ("loss <= 500",), "log_scale": ("size",), "color_by": "way"}
    return study_of(*records, candidates=candidates, tags={"parameters": json.dumps(RANGES)}, **given | changes)


def test_a_page_tells_front_knee_failures_spec_and_environment():
    study = rich_study()
    words, front = told(study), study.front()
    assert (
        f"{len(front.rows)} of {len(front.compared)} compared models are on the front; left out: 3 failed, 1 infeasible"
        in words[""]
    )
    assert f"Model {front.knee.label} gives up least" in words[""]
    assert "measured from loss" in words[""]
    assert "a loss must be finite, but got nan " in words["part-failures"] + " "
    assert "More words" not in words["part-failures"]
    assert all(text in words["part-spec"] for text in ("m:f", "mnist", "loss <= 500", "0.001 .. 1 (log)", "tokens"))
    assert all(text in words["part-environment"] for text in ("c0ffee", "3.11.7"))


def test_the_table_has_the_front_and_marks_the_knee():
    study = rich_study()
    text = report_text(study, study.front())
    table = text[text.index('id="part-table"') : text.index('id="part-close"')]
    assert table.count("<tr") == 1 + len(study.front().rows)
    assert re.findall(r'<tr class="knee"><td>([\d.]+)</td>', table) == [study.front().knee.label]


def test_those_close_to_the_front_are_told_with_what_beats_them_and_by_how_much():
    study = study_of(
        *line(3),
        record(3, {"loss": 1.5, "size": 1.0}),
        record(4, {"loss": 9.0, "size": 9.0}),
        record(5, {"loss": 1.0, "size": 1.25}),
    )
    text = report_text(study, study.front())
    close = text[text.index('id="part-close"') :]
    rows = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", close)[1:4]]
    assert rows == [
        ["5", "1", "1.25", "1", "0", "0.25"],
        ["3", "1.5", "1", "1", "0.5", "0"],
        ["4", "9", "9", "0", "9", "7"],
    ]


def test_every_figure_is_drawn_once_and_plotly_is_in_the_page_once():
    text = report_text(rich_study(), rich_study().front())
    places = {found["id"] for tag, found in _Page(text).elements if found.get("class") == "plot"}
    drawn = set(figures(rich_study()))
    assert places == drawn | {"plot-explore"}
    names = {"front-0", "front-1", "front-2", "curve-0", "curve-1", "parallel", "importance", "hypervolume"}
    assert drawn == {f"plot-{name}" for name in names}
    assert text.count("plotly.js v") == 1
    assert not [found for tag, found in _Page(text).elements if "src" in found or tag in ("link", "img")]


def test_the_same_trials_give_the_same_page(tmp_path):
    first, second = (make_report(rich_study(), tmp_path / folder / "r.html") for folder in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_whatever_a_user_calls_things_is_text():
    rows = [
        record(i, {"loss": float(i), "size": float(25 - i)}, params={ODD: ODD if i % 2 else "plain", "x": i / 9}, host=ODD)
        for i in range(25)
    ]
    failure = {"cause": ODD, "error": ODD, "traceback": ""}
    study = study_of(*rows, record(25, state="failed", failure=json.dumps(failure)), color_by=ODD, tags={"space": ODD})
    text = report_text(study, study.front())
    assert "<script>alert" not in text
    assert sum(tag == "script" for tag, _ in _Page(text).elements) == 3
    assert ODD in _Page(text).words["part-failures"]


@pytest.mark.parametrize(
    ("study", "sentence"),
    [
        (study_of(), "0 of 0 compared trials are on the front"),
        (study_of(record(0, state="failed"), record(1, state="running")), "left out: 1 failed, 1 running"),
        (study_of(*line(1)), "1 of 1 compared trials"),
        (study_of(*line(5), objectives=(LOSS,)), "Model 0 gives up least"),
        (study_of(*line(5), constraints=("loss >= 90",)), "left out: 5 infeasible"),
        (study_of(*line(5), constraints=("absent >= 90",)), "left out: 5 infeasible"),
        (study_of(record(0, {"loss": math.inf, "size": 1.0}), record(1, {"loss": math.inf, "size": 1.0})), "has no finite value"),
        (study_of(record(0, {"loss": -math.inf, "size": 1.0}), *line(3)), "inf, measured from"),
        (study_of(*line(3), log_scale=("loss", "size")), "3 of 3 compared trials"),
        (study_of(record(0, {"loss": 0.0, "size": 0.0}), log_scale=("loss", "size")), "1 of 1 compared trials"),
        (study_of(*(record(i, {"loss": 1.0, "size": 1.0}, params={"a": True}) for i in range(30))), "30 of 30"),
    ],
    ids=["empty", "failed", "one trial", "one objective", "infeasible", "without the metric", "infinite", "endless", "zeros",
         "only zeros", "equal"],
)  # fmt: skip
def test_whatever_a_study_is_like_it_has_a_page(study, sentence, tmp_path):
    page = make_report(study, tmp_path / "r.html").read_text()
    assert sentence in _Page(page).words[""]


def test_several_studies_have_a_page_too():
    rows = [record(i, {"loss": float(i), "size": float(9 - i)}, study="ab"[i % 2], params={"x": i}) for i in range(9)]
    failure = {"cause": "bug", "error": "no", "traceback": ""}
    rows.append(record(9, study="b", state="failed", failure=json.dumps(failure)))
    several = Studies(
        name="a+b", all_trials=trials_of(*rows, is_merged=True), all_candidates=trials_of(), objectives=(LOSS, SIZE),
        constraints={}, log_scale=(), color_by=None,
    )  # fmt: skip
    page = _Page(report_text(several, several.front()))
    assert "b/9" in page.words["part-failures"]
    assert "Several studies, asked as one: a+b" in page.words["part-spec"]
    assert [found["data-group"] for _, found in page.elements if found.get("class") == "chip"][:2] == ["study = a", "study = b"]


def test_a_page_that_cannot_be_written_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="must go where it can be written"):
        make_report(study_of(), tmp_path / "file" / "r.html")


def test_an_axis_is_logarithmic_where_the_range_says_so_or_the_values_do():
    assert value_axis("x", [1, 10, 100], "1 .. 100 (log)").places == [0.0, 0.5, 1.0]
    assert value_axis("x", [1.0, 100.0, 10000.0], None).places == [0.0, 0.5, 1.0]
    assert value_axis("x", [0.0, 50.0, 100.0], "0 .. 100").places == [0.0, 0.5, 1.0]
    assert value_axis("x", [0.0, None, math.inf, 4.0, -math.inf], None).places == [0.0, None, 1.0, 1.0, 0.0]
    assert value_axis("x", ["b", None, "a", True]).places == [1.0, None, 0.5, 0.0]
    assert value_axis("x", ["b", None, "a", True]).ticks == [(0.0, "True"), (0.5, "a"), (1.0, "b")]


def test_lines_have_a_gap_where_a_parameter_is_missing_and_better_is_higher():
    parallel = figures(rich_study())["plot-parallel"]
    heads = parallel["layout"]["xaxis"]["ticktext"]
    assert heads == ["strength", "way", "rate", "loss", "size", "cost"]
    knee = parallel["data"][-1]
    assert knee["legendgroup"] == "knee"
    assert len(knee["x"]) in (6 + 1, 7 + 1)
    lowest = min(rich_study().front().compared.metric("size"))
    best = next(row for row in rich_study().front().rows if row.metrics["size"] == lowest)
    places = [
        trace["y"][place]
        for trace in parallel["data"]
        for place, text in enumerate(trace.get("text", ()))
        if text == f"trial {best.label}" and trace["x"][place] == heads.index("size")
    ]
    assert places and set(places) == {1}


def test_a_trial_with_candidates_is_a_line_over_their_size_and_those_on_the_front_have_dots():
    shrinking = [candidate(0, 0, {"loss": 1.0, "size": 9.0}), candidate(0, 1, {"loss": 4.0, "size": 1.0})]
    beaten = [candidate(1, 0, {"loss": 8.0, "size": 9.0}), candidate(1, 1, {"loss": 5.0, "size": 5.0})]
    middle = [candidate(0, 2, {"loss": 6.0, "size": 4.0})]
    study = study_of(record(0), record(1), candidates=[*shrinking, *beaten, *middle])
    grey, line, dots = figures(study)["plot-curve-0"]["data"]
    assert (grey["x"], grey["y"]) == ([5, 9, None], [5, 8, None])
    assert (line["x"], line["y"]) == ([1, 4, 9, None], [4, 6, 1, None])
    assert sorted(zip(dots["x"], dots["y"], strict=True)) == [(1, 4), (9, 1)]
    assert "trial 0.1" in dots["text"][dots["x"].index(1)]


def test_what_decides_is_important_and_what_does_not_is_not():
    rows = [
        record(i, {"loss": abs(i / 200 - 0.3), "size": 1.0}, params={"rate": i / 200, "noise": (i * 37 % 200) / 200})
        for i in range(200)
    ]
    models = study_of(*rows).front().compared
    shares = importances(models, LOSS, {})
    assert shares["rate"] > 0.9 > 0.1 > shares["noise"]
    assert importances(models, SIZE, {}) == "All trials have the same size, so that no parameter matters to it."
    assert "need 20 finished trials, but there are 7" in importances(models[:7], LOSS, {})


def test_a_parameter_that_only_some_trials_have_has_its_share():
    rows = [
        record(i, {"loss": abs(i / 200 - 0.3) if i % 2 else 5.0}, params={"strength": i / 200} if i % 2 else {"way": "none"})
        for i in range(200)
    ]
    shares = importances(study_of(*rows, objectives=(LOSS,)).front().compared, LOSS, {})
    assert shares == {"strength": 1.0}


def test_a_trial_with_candidates_counts_once_for_what_matters():
    study = rich_study()
    models = study.front().compared
    assert len(models) == 60
    assert importances(models[:0], LOSS, {}).endswith("there are 0.")
    assert isinstance(importances(models, LOSS, RANGES), dict)


needs_browser = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser, chromium")


def shown(page, folder):
    """The page as a browser without a network has it after a while, without its scripts; it must not complain."""
    result = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--dump-dom",
         "--virtual-time-budget=20000", "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}",
         "--window-size=900,900", page.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert not [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    return result.stdout[: result.stdout.index("</main>")]


CLICKS = """<script>
const wait = setInterval(() => {
  if (!document.body.dataset.drawn) return;
  clearInterval(wait);
  const chip = document.querySelector(".chip"), plot = document.getElementById("plot-front-0");
  chip.click();
  const state = () => plot.data.filter(trace => trace.legendgroup === chip.dataset.group).map(trace => trace.visible ?? true);
  const hidden = state();
  chip.click();
  const head = document.querySelector("#part-table th:nth-child(3) button");
  const column = () => [...document.querySelectorAll("#part-table tbody tr")].map(row => Number(row.cells[2].dataset.value));
  head.click();
  const up = column();
  head.click();
  const chosen = document.getElementById("explore-x");
  chosen.value = "rate";
  chosen.dispatchEvent(new Event("change", {bubbles: true}));
  const axis = document.getElementById("plot-explore").layout.xaxis;
  document.body.dataset.found = JSON.stringify({hidden, again: state(), up, down: column(), axis: [axis.title.text, axis.type]});
}, 20);
</script>"""


def without_figure(page, drawn):
    """Places that a browser drew nothing into."""
    places = re.split(r'class="plot(?: [^"]*)?" id=', drawn)[1:]
    assert len(places) == page.read_text().count('class="plot" id=')
    return [place[:20] for place in places if 'class="main-svg"' not in place]


@needs_browser
@pytest.mark.parametrize("study", [study_of(), study_of(*line(5))], ids=["empty", "five trials"])
def test_a_browser_without_network_draws_every_figure_and_complains_of_nothing(study, tmp_path):
    page = make_report(study, tmp_path / "r.html")
    drawn = shown(page, tmp_path)
    assert 'data-drawn="all"' in drawn
    assert without_figure(page, drawn) == []


@needs_browser
def test_clicks_hide_a_colour_sort_the_table_and_choose_axes(tmp_path):
    page = make_report(rich_study(), tmp_path / "r.html")
    page.write_text(page.read_text().replace("</body>", f"{CLICKS}</body>"))
    drawn = shown(page, tmp_path)
    assert without_figure(page, drawn) == []
    found = json.loads(html.unescape(re.search(r'data-found="([^"]*)"', drawn)[1]))
    assert set(found["hidden"]) == {False}
    assert set(found["again"]) == {True}
    assert found["up"] == sorted(found["up"])
    assert found["down"] == found["up"][::-1]
    assert len(set(found["up"])) > 2
    assert found["axis"] == ["rate", "log"]
