"""MLflow: a study is a parent run, a trial a child run, a candidate a logged model. What they are called, how they are read."""

import contextlib
import fcntl
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ASYNC_LOGGING", "false")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import mlflow
from mlflow.entities import Experiment, LoggedModel, Run, ViewType
from mlflow.store.entities import PagedList

from study.errors import UserError
from study.home import make_wal
from study.keeping.retention import refuse_dropped

PREFIX = "narrow_study."
STUDY_TAG = PREFIX + "study"
STUDY_ID_TAG = PREFIX + "study_id"
TRIAL_TAG = PREFIX + "trial"
STATE_TAG = PREFIX + "state"
CHARTS_TAG = PREFIX + "charts"
CANDIDATE_TAG = PREFIX + "candidate"
CANDIDATE_PREFIX = "candidate/"
"""Of a candidate's metrics: MLflow puts them into the history of the trial's run, too, where they must hide none of its own."""
PARENT = -1
MAX_TAG = 7900
"""Characters of a tag's text that every MLflow takes."""
_SQLITE = "sqlite:///"
_MAX_REASON = 200
_FIRST_TO_KNOW = re.compile(r"""\(Caused by \w+\(["'](?:.*\): )?(.*)["']\)+$""")
"""What the innermost of a chain of HTTP libraries says, without the connection that it says it of."""
_RUNS_PAGE = 5000
_MODELS_PAGE = 1000

T = TypeVar("T")

logging.getLogger("mlflow").setLevel(logging.ERROR)
logging.getLogger("alembic").setLevel(logging.ERROR)


class NoAnswerError(UserError):
    """The tracking URI is wrong, or MLflow is down or lacks its store: who knows that it was right may wait."""


def connect(tracking_uri: str) -> mlflow.MlflowClient:
    """A client of a tracking server or database, quiet and quick to give up.

    Raises:
        NoAnswerError: if it does not answer.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    with answering(tracking_uri):
        if tracking_uri.startswith(_SQLITE) and "?" not in tracking_uri:
            make_database(Path(tracking_uri.removeprefix(_SQLITE)))
        client = mlflow.MlflowClient(tracking_uri)
        client.search_experiments(max_results=1)
    return client


def make_database(file: Path) -> None:
    """Make MLflow's tables, unless the file is there: beside its place, so that it is there with all of them or not at all.

    MLflow itself makes them one by one, and would never start again on a database whose making was cut short.
    """
    if file.exists() and file.stat().st_size:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(f"{file.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if file.exists() and file.stat().st_size:  # somebody else was quicker
            return
        from mlflow.store.db import utils as database  # half a second that only the first launch of a home needs

        draft = file.with_name(f"{file.name}.draft")
        for left in file.parent.glob(f"{draft.name}*"):
            left.unlink()
        engine = database.create_sqlalchemy_engine_with_retry(f"{_SQLITE}{draft}")
        database._initialize_tables(engine)
        engine.dispose()
        make_wal(draft)
        draft.rename(file)


@contextlib.contextmanager
def answering(tracking_uri: str) -> Iterator[None]:
    """Inside, any error but the user's is taken for a store that does not answer.

    Raises:
        NoAnswerError: for it.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise NoAnswerError(
            f"the tracking URI must name an MLflow server or database that answers, but {tracking_uri} does not "
            f"({reason_of(error)}); start the server, or leave --tracking-uri out"
        ) from error


def reason_of(error: Exception) -> str:
    """Why MLflow did not take or give something, in one short line."""
    if isinstance(error, NoAnswerError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line and not line.startswith("(raised as a result of")]  # SQLAlchemy's
    text = lines[0] if lines else type(error).__name__
    if cause := _FIRST_TO_KNOW.search(text):
        text = cause[1]
    return text if len(text) <= _MAX_REASON else f"{text[:40]} ... {text[45 - _MAX_REASON :]}"


def find_experiment(client: mlflow.MlflowClient, name: str) -> tuple[Experiment, Run | None]:
    """MLflow's experiment of a name, and of a study its parent run; of an experiment of somebody else's None.

    Raises:
        UserError: if MLflow has no such experiment, or the study has no parent run yet.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        known = ", ".join(sorted(found.name for found in study_experiments(client))) or "none yet"
        raise UserError(
            f"a study must be in MLflow's store, but {client.tracking_uri} has no {name!r} (there: {known}); see `study list`"
        )
    if STUDY_TAG not in experiment.tags:
        return experiment, None
    found = client.search_runs([experiment.experiment_id], f"tags.`{TRIAL_TAG}` = '{PARENT}'")
    if not found:
        raise UserError(f"a study must have its parent run in MLflow, but {name!r} has none yet; wait for its first trial")
    return experiment, found[0]


def every(search: Callable[[str | None], PagedList[T]]) -> Iterator[T]:
    """All that a search of MLflow finds, page by page.

    Args:
        search: asks for the page after a token, None for the first.
    """
    token: str | None = None
    while True:
        page = search(token)
        yield from page
        token = page.token
        if not token:
            return


def study_experiments(client: mlflow.MlflowClient, condition: str | None = None) -> list[Experiment]:
    """The experiments that are studies of ours, and meet a condition in MLflow's filter syntax."""
    found = every(lambda token: client.search_experiments(filter_string=condition, max_results=_MODELS_PAGE, page_token=token))
    return [experiment for experiment in found if STUDY_TAG in experiment.tags]


def all_runs(
    client: mlflow.MlflowClient,
    experiment_id: str,
    condition: str = "",
    *,
    view: int = ViewType.ACTIVE_ONLY,
    order: Sequence[str] = (),
) -> Iterator[Run]:
    """Every run of an experiment that meets a condition in MLflow's filter syntax, active ones unless others are asked for."""
    return every(lambda token: client.search_runs([experiment_id], condition, view, _RUNS_PAGE, list(order), token))


def all_models(client: mlflow.MlflowClient, experiment_id: str, condition: str | None = None) -> list[LoggedModel]:
    """Every logged model of an experiment that meets a condition in MLflow's filter syntax."""
    return list(
        every(lambda token: client.search_logged_models([experiment_id], condition, max_results=_MODELS_PAGE, page_token=token))
    )


def metric_history(tracking_uri: str, run_id: str, metric: str) -> list[tuple[int, float]]:
    """(step, value) of one metric of one run, by step."""
    history = mlflow.MlflowClient(tracking_uri).get_metric_history(run_id, metric)
    return sorted((row.step, row.value) for row in history)


def download_model(tracking_uri: str, run_id: str, destination: Path) -> Path:
    """Copy a trial's model folder out of MLflow.

    Raises:
        UserError: if the run has none, or it was dropped.
    """
    client = mlflow.MlflowClient(tracking_uri)
    require_model(client, run_id)
    destination.mkdir(parents=True, exist_ok=True)
    try:
        return Path(client.download_artifacts(run_id, "model", str(destination)))
    finally:
        require_model(client, run_id)  # whose files may have gone meanwhile


def require_model(client: mlflow.MlflowClient, run_id: str) -> str:
    """Return where a trial's model folder is.

    Raises:
        UserError: if the run has none, or it was dropped.
    """
    run = client.get_run(run_id)
    refuse_dropped(run.data.tags, f"trial {run.data.tags.get(TRIAL_TAG, run_id)}")
    if not client.list_artifacts(run_id, "model"):
        raise UserError(f"a trial must have finished to have a model, but run {run_id} has none; see `study status`")
    return f"{run.info.artifact_uri}/model"


def download_candidate(tracking_uri: str, model_id: str, destination: Path) -> Path:
    """Copy the model folder of a candidate out of MLflow.

    Raises:
        UserError: if it was dropped.
    """
    client = mlflow.MlflowClient(tracking_uri)
    place = require_candidate(client, model_id)
    try:
        copied = mlflow.artifacts.download_artifacts(artifact_uri=place, dst_path=str(destination), tracking_uri=tracking_uri)
    finally:
        require_candidate(client, model_id)  # whose files may have gone meanwhile
    return Path(copied)


def require_candidate(client: mlflow.MlflowClient, model_id: str) -> str:
    """Return where the model folder of a candidate is.

    Raises:
        UserError: if it was dropped.
    """
    model = client.get_logged_model(model_id)
    refuse_dropped(model.tags, f"candidate {model.tags.get(TRIAL_TAG)}.{model.tags.get(CANDIDATE_TAG)}")
    return str(model.artifact_location)


def read_charts(tracking_uri: str, run_id: str, names: Sequence[str]) -> list[str]:
    """The data of a trial's charts as JSON, copied out of MLflow."""
    client = mlflow.MlflowClient(tracking_uri)
    with tempfile.TemporaryDirectory() as folder:
        return [Path(client.download_artifacts(run_id, f"charts/{name}.json", folder)).read_text() for name in names]
