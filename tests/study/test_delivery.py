"""The writer process and the driver's end of it, with an MLflow that is away."""

import contextlib
import io
import socket

import commands
import pytest
from mlflow.store.db import utils as database
from rich.console import Console
from test_spec import spec

from study.errors import UserError
from study.home import Home
from study.recording import writer
from study.recording.delivery import Delivery
from study.recording.outbox import Outbox
from study.recording.tracking import NoAnswerError, connect, reason_of
from study.recording.tracking_writer import StudyWriter


@pytest.fixture
def nowhere():
    """The address of a server that is down."""
    with socket.socket() as bound:  # taken, and nobody listens
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def desk(home):
    """(folder, outbox, console's text) of a study that somebody is about to run."""
    Home().prepare()
    folder = Home().study("s")
    folder.path.mkdir(parents=True)
    with contextlib.closing(Outbox(folder.outbox_file)) as outbox:
        yield folder, outbox, io.StringIO()


def deliver(desk, tracking_uri):
    """What a launch or resume opens."""
    folder, outbox, text = desk
    spec(tracking_uri=tracking_uri).save(folder.spec_file)
    return Delivery(folder, outbox, outbox.start_session({"space": "x"}), Console(file=text, width=500))


def test_a_study_that_mlflow_cannot_know_yet_is_refused_where_mlflow_does_not_answer(desk, nowhere):
    with deliver(desk, nowhere) as delivery, pytest.raises(UserError, match=r"that answers, but .* Connection refused.*; start"):
        delivery.require_ready()


def test_a_study_that_mlflow_knows_goes_on_without_it_and_arrives_when_it_is_back(desk, tmp_path):
    _, outbox, text = desk
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    uri = f"sqlite:///{shelf}/mlflow.db"
    first = outbox.start_session({"space": "x"})
    StudyWriter(outbox, name="s", study_id="id", tracking_uri=uri, artifacts=(tmp_path / "artifacts").as_uri()).deliver()
    shelf.rename(tmp_path / "away")
    shelf.touch()  # MLflow would make the folder anew
    with deliver(desk, uri) as delivery:
        delivery.require_ready()
        assert "MLflow takes nothing (" in text.getvalue()
        assert outbox.num_pending() > 0
        shelf.unlink()
        (tmp_path / "away").rename(shelf)
        commands.wait_until(lambda: outbox.num_pending() == 0, "the events")
        commands.wait_until(lambda: "MLflow takes events again" in text.getvalue(), "the good news")
        delivery.final_status = "FINISHED"
    assert first == 1
    assert outbox.num_pending() == 0
    assert "resume" not in text.getvalue()
    assert connect(uri).get_run(outbox.runs()[-1]).info.status == "FINISHED"


def test_of_an_mlflow_that_is_away_at_the_end_the_user_hears_why_and_that_nothing_is_lost(desk, nowhere, monkeypatch):
    _, outbox, text = desk
    outbox.remember_run(-1, "of an earlier session")
    monkeypatch.setattr("study.recording.delivery._FAILING_END_SECONDS", 0.5)
    with deliver(desk, nowhere) as delivery:
        delivery.require_ready()
    delivery._process.kill()
    delivery._keeper.join(10)
    _, waiting, result = text.getvalue().splitlines()
    assert "Connection refused" in waiting
    assert "waiting up to 0.5 s with 2 events; Ctrl-C is safe, the next resume delivers them" in waiting
    assert "2 events are still on their way to MLflow (" in result
    assert "Connection refused" in result


@pytest.fixture
def told(monkeypatch):
    """What a writer tells its driver."""
    facts = []
    monkeypatch.setattr(writer, "_tell", lambda **fact: facts.append(fact))
    return facts


def test_an_mlflow_that_takes_something_now_and_then_is_tried_again_at_once_and_is_no_news(desk, told):
    _, outbox, _ = desk
    for step in range(6):
        outbox.put("measurement", f"trial/0/step/{step}", {}, trial=0)

    class Lossy:
        def deliver(self):
            event = outbox.pending(1)[0]
            outbox.mark_delivered(event.seq)
            raise ConnectionError("500")

    carrier = writer._Carrier(outbox, Lossy)
    waits = [carrier.carry() and carrier.wait for _ in range(6)]
    assert len(set(waits)) == 1
    assert waits[0] <= 0.1
    assert told == []


def test_an_mlflow_that_takes_nothing_is_tried_every_few_seconds_and_told_once(desk, told):
    _, outbox, _ = desk
    outbox.start_session({})

    def connect():
        raise ConnectionError("down")

    carrier = writer._Carrier(outbox, connect)
    carrier.patience = 0
    for _ in range(20):
        assert carrier.carry()
    assert carrier.wait == 3
    assert told == [{"failing": "down", "pending": 1}]
    carrier.hurry()
    assert carrier.wait < 0.1


def test_a_store_that_lost_a_study_is_not_given_another_of_its_name(desk, store):
    _, outbox, _ = desk
    outbox.remember_run(-1, "of an earlier session")
    with pytest.raises(NoAnswerError, match="no experiment 'lost' now; put its store back"):
        StudyWriter(outbox, name="lost", study_id="id", tracking_uri=store, artifacts=None)
    assert connect(store).get_experiment_by_name("lost") is None


def test_a_reason_is_one_short_line_that_names_the_cause():
    refused = NoAnswerError("a long sentence for a first launch")
    refused.__cause__ = Exception(
        "Max retries exceeded (Caused by NewConnectionError('x: [Errno 111] Connection refused'))\nmore"
    )
    assert reason_of(refused) == "x: [Errno 111] Connection refused"
    long = reason_of(OSError(28, "No space left on device", "/" + 300 * "a"))
    assert len(long) == 200
    assert long.startswith("[Errno 28] No space left on device")
    assert reason_of(ValueError()) == "ValueError"
    assert reason_of(Exception("(raised as a result of Query-invoked autoflush; ...)\n(sqlite3.OperationalError) full")).endswith(
        "full"
    )


def test_a_store_whose_making_was_cut_short_is_made_anew(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"

    def die_in_the_middle(engine):
        database.InitialBase.metadata.create_all(engine)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(database, "_initialize_tables", die_in_the_middle)
        connect(uri)
    assert not (tmp_path / "new" / "mlflow.db").exists()
    connect(uri).create_experiment("x")
    assert [file.name for file in (tmp_path / "new").iterdir() if "draft" in file.name] == []
