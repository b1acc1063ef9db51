"""Charts of a finished trial: drawn, kept in MLflow, drawn again from there."""

import json
import re
import struct

import mlflow
import pytest

from study.asking.query import open_study
from study.cli import main
from study.errors import UserError
from study.recording.outbox import Outbox
from study.recording.tracking_writer import StudyWriter
from study.reporting.charts import draw_chart, draw_into
from trainables.charts import Chart, Panel, Series
from trainables.storage import Folder

FILES = ["charts/pruning.json", "charts/pruning.png"]


def series(label, **changes):
    return Series(**{"label": label, "x": (0.0, 1.0, 2.0), "y": (1.0, 0.9, 0.5), "color": "#3b528b"} | changes)


def panel(title, *members, **changes):
    return Panel(**{"title": title, "x_label": "sparsity", "y_label": "accuracy", "series": members} | changes)


def chart(*panels, name="pruning"):
    lines = (series("A, recovered"), series("A, no recovery", dashed=True), series("B", color="#d1495b"))
    ticks = {"x_ticks": ((0.0, "0"), (1.0, "0.9"), (2.0, "0.99")), "y_range": (0.4, 1.02)}
    return Chart(
        name=name, title="Pruned & whole", panels=panels or (panel("before", *lines, **ticks), panel("after", *lines, **ticks))
    )


ODD = [
    chart(panel("")),
    chart(panel("no positive value", series("A", y=(0.0, -1.0, 0.0)), y_log=True, x_log=True)),
    chart(panel("log", series("A", x=(1e-4, 1.0, 2e6), y=(1e-9, 1.0, 2.0)), x_log=True, y_log=True, y_range=(1e-9, 5.0))),
    chart(panel("ticks on a logarithmic axis", series("A", x=(1.0, 2.0, 3.0)), x_log=True, x_ticks=((2.0, "two"),))),
    chart(panel("one point", series("A", x=(1.0,), y=(1.0,), mode="points"), series("none", x=(), y=()))),
    chart(panel("many", *(series(f"seed {i}", y=(float(i), 1.0, 2.0)) for i in range(40)))),
    chart(panel("own axis", series("A")), panel("another", series("A"), y_label="loss", y_log=True), panel("third", series("B"))),
    chart(panel("long " * 60, series("a label that goes on and on and does not end where the legend would like it to"))),
]


def png_size(path):
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", data[16:24])


def drawing(page):
    """What a page tells plotly to draw: (traces, layout)."""
    text = page.read_text()
    start = text.index("[", text.rindex("Plotly.newPlot("))
    traces, end = json.JSONDecoder().raw_decode(text[start:])
    layout, _ = json.JSONDecoder().raw_decode(text[start + end :].lstrip(", \n"))
    return traces, layout


def test_a_picture_has_a_width_that_fits_its_panels(tmp_path):
    draw_chart(chart(), tmp_path / "two.png")
    draw_chart(chart(panel("alone", series("A"))), tmp_path / "one.png")
    (two, height), (one, same_height) = png_size(tmp_path / "two.png"), png_size(tmp_path / "one.png")
    assert height == same_height > 600
    assert two > 1.5 * one > 900


def test_a_page_shows_every_point_and_says_each_series_once(tmp_path):
    draw_chart(chart(), tmp_path / "c.html")
    traces, layout = drawing(tmp_path / "c.html")
    assert [trace["name"] for trace in traces] == 2 * ["A, recovered", "A, no recovery", "B"]
    assert [trace["name"] for trace in traces if trace["showlegend"]] == ["A, recovered", "A, no recovery", "B"]
    assert all((trace["x"], trace["y"]) == ([0, 1, 2], [1, 0.9, 0.5]) for trace in traces)
    assert [trace["line"]["dash"] for trace in traces[:3]] == ["solid", "dash", "solid"]
    assert traces[0]["text"][1] == "<b>A, recovered</b><br>sparsity: 0.9<br>accuracy: 0.9"
    assert layout["title"]["text"] == "<b>Pruned & whole</b>"
    assert [note["text"] for note in layout["annotations"]] == ["before", "after"]
    assert layout["xaxis2"]["ticktext"] == ["0", "0.9", "0.99"]
    assert layout["yaxis"]["range"] == [0.4, 1.02]


def test_a_page_needs_no_network(tmp_path):
    draw_chart(chart(), tmp_path / "c.html")
    text = (tmp_path / "c.html").read_text()
    assert "<script src=" not in text
    assert len(text) > 1_000_000  # plotly itself is in it


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd.panels[0].title[:20] or "empty")
def test_whatever_the_laws_allow_can_be_drawn(tmp_path, odd):
    assert draw_into(odd, tmp_path) == [tmp_path / "pruning.png", tmp_path / "pruning.html"]
    assert min(png_size(tmp_path / "pruning.png")) > 600
    assert len(drawing(tmp_path / "pruning.html")[0]) == sum(len(panel.series) for panel in odd.panels)


def test_points_that_a_logarithmic_axis_cannot_show_are_gaps(tmp_path):
    draw_chart(chart(panel("", series("A", y=(1.0, 0.0, 2.0)), y_log=True)), tmp_path / "c.html")
    assert drawing(tmp_path / "c.html")[0][0]["y"] == [1, None, 2]


def test_drawing_again_gives_the_same_files(tmp_path):
    for first, second in zip(draw_into(chart(), tmp_path / "a"), draw_into(chart(), tmp_path / "b"), strict=True):
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("ending", ["svg", "pdf"])
def test_other_formats(tmp_path, ending):
    draw_chart(chart(), tmp_path / f"c.{ending}")
    assert (tmp_path / f"c.{ending}").stat().st_size > 5_000


def test_a_place_where_nothing_can_be_drawn_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match=r"must end in .png, .svg, .pdf, .html, but got 'c.gif'; try c.png"):
        draw_chart(chart(), tmp_path / "c.gif")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="must go where it can be written"):
        draw_chart(chart(), tmp_path / "file" / "c.png")


@pytest.fixture
def told(store, tmp_path, request):
    """Tell MLflow, twice, that trial 0 of a study ended; return the study as it is there, and the trial's artifacts."""
    name = re.sub(r"[^\w-]+", "-", request.node.name).strip("-")

    def tell(end):
        outbox = Outbox(tmp_path / "outbox.db")
        study = {"objectives": [], "constraints": [], "log_scale": [], "color_by": "null", "storage": str(tmp_path)}
        outbox.put("session_start", "session/1/start", {"tags": study})
        outbox.put("trial_start", "trial/0/start/1", {"params": {}, "tags": {"params": {}}}, trial=0)
        outbox.put("trial_end", "trial/0/end/1", {"state": "finished", "tags": {}, "model": None} | end, trial=0)
        for _ in range(2):
            outbox.mark_delivered(0)
            writer = StudyWriter(outbox, name=name, study_id="id", tracking_uri=store, artifacts=(tmp_path / "mlflow").as_uri())
            assert writer.deliver() == 3
            assert outbox.num_pending() == 0
        outbox.close()
        study = open_study(name, tracking_uri=store, home=tmp_path)
        client = mlflow.MlflowClient(store)
        return study, [file.path for file in client.list_artifacts(study.trial(0).run_id, "charts")]

    return tell


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_charts_are_artifacts_once_however_often_they_are_delivered(told, tmp_path, scheme):
    (tmp_path / "trial").mkdir()
    folder = Folder(f"{scheme}{tmp_path}/trial/charts")
    (tmp_path / "trial" / "charts").mkdir()
    folder.write("pruning.json", chart().to_json().encode())
    study, artifacts = told({"charts": folder.address})
    assert artifacts == FILES
    assert study.trial(0).charts == ("pruning",)
    assert study.charts(0) == [chart()]
    assert folder.names() == ["pruning.json"]  # drawings are made elsewhere


def test_a_chart_that_cannot_be_drawn_holds_up_nothing(told, tmp_path, monkeypatch, caplog):
    def draw(drawn, path):
        if drawn.name == "bad":
            raise ZeroDivisionError("no ink")
        draw_chart(drawn, path)

    monkeypatch.setattr("study.recording.run_files.draw_chart", draw)
    for name in ("bad", "pruning"):
        Folder(tmp_path / "charts").write(f"{name}.json", chart(name=name).to_json().encode())
    study, artifacts = told({"charts": str(tmp_path / "charts")})
    assert artifacts == ["charts/bad.json", *FILES]
    assert study.trial(0).state == "finished"
    assert [found.name for found in study.charts(0)] == ["bad", "pruning"]
    assert "could not draw the chart bad" in caplog.text
    assert "no ink" in caplog.text


@pytest.mark.parametrize("end", [{}, {"charts": None}, {"charts": "/nowhere/charts"}], ids=["older", "failed", "none"])
def test_an_end_without_charts_is_delivered(told, end):
    study, artifacts = told(end)
    assert artifacts == []
    assert (study.trial(0).state, study.trial(0).charts, study.charts(0)) == ("finished", (), [])


def test_a_trial_that_is_not_finished_has_no_charts_to_ask_for(told):
    study, _ = told({"state": "failed", "charts": None})
    with pytest.raises(UserError, match=r"must have finished to have charts, but trial 0 of .* is failed; see `study status"):
        study.charts(0)


@pytest.fixture
def ask(home, store, monkeypatch, capsys):
    """Run `study trial STUDY 0 ...`; return its exit status and lines."""

    def run(study, *options):
        monkeypatch.setattr("sys.argv", ["study", "trial", study.name, "0", "--tracking-uri", store, *options])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        return end.value.code, (printed.out + printed.err).splitlines()

    return run


def test_the_command_names_the_charts_and_draws_them(told, ask, tmp_path, monkeypatch):
    Folder(tmp_path / "charts").write("pruning.json", chart().to_json().encode())
    study, _ = told({"charts": str(tmp_path / "charts")})
    assert ask(study)[1][-1] == f"charts: pruning; draw them with: study trial {study.name} 0 --charts FOLDER"
    assert json.loads("".join(ask(study, "--json")[1]))["charts"] == ["pruning"]
    monkeypatch.chdir(tmp_path)
    code, lines = ask(study, "--charts", "new/folder")
    assert (code, lines[-2:]) == (0, ["chart: new/folder/pruning.png", "chart: new/folder/pruning.html"])
    assert min(png_size(tmp_path / "new/folder/pruning.png")) > 600
    assert drawing(tmp_path / "new/folder/pruning.html")[1]["title"]["text"] == "<b>Pruned & whole</b>"


def test_the_command_says_that_there_are_no_charts(told, ask, tmp_path):
    study, _ = told({})
    code, lines = ask(study, "--charts", str(tmp_path / "new"))
    assert (code, lines[-1]) == (0, f"trial 0 of {study.name} has no charts: its experiment offers none")
    assert not (tmp_path / "new").exists()
    assert "chart" not in ask(study)[1][-1]


def test_the_command_refuses_to_draw_what_is_not_finished(told, ask, tmp_path):
    study, _ = told({"state": "failed", "charts": None})
    code, lines = ask(study, "--charts", str(tmp_path / "new"))
    assert code == 2
    assert lines[-1].startswith("study: a trial must have finished to have charts")
