"""The files of one run: its model and its charts, from the study's storage into MLflow's artifacts."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from study.keeping import artifacts
from study.reporting.charts import draw_chart
from trainables.charts import Chart
from trainables.storage import Folder

if TYPE_CHECKING:
    import mlflow

UPLOAD = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "120"}
"""For `requests`: of big files, which a server may take on to an object store before it answers."""

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def requests(settings: Mapping[str, str]) -> Iterator[None]:
    """Inside, MLflow makes its requests otherwise; it looks at the environment before each."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


class RunFiles:
    """Puts files into a run.

    Args:
        place: of the run's artifacts; None to have MLflow look it up.
    """

    def __init__(self, client: "mlflow.MlflowClient", tracking_uri: str, run_id: str, place: str | None) -> None:
        self._client, self._tracking_uri = client, tracking_uri
        self._run_id, self._place = run_id, place

    def put_model(self, address: str | None) -> None:
        """Copy what is at an address of the storage, if there is one."""
        if address is None:
            return
        with tempfile.TemporaryDirectory() as staging:
            Folder(address).download(Path(staging))  # not what a killed worker left half-written there
            self._put(staging, "model")

    def put_charts(self, address: str | None) -> list[str]:
        """Put every chart as data and picture; return their names. One that cannot be drawn is there as data.

        A page, which holds all of plotly, is drawn for who asks: it would be most of the store.
        """
        if address is None:
            return []
        with tempfile.TemporaryDirectory() as staging:
            folder = Path(staging)
            Folder(address).download(folder)
            names = sorted(file.stem for file in folder.iterdir())
            for name in names:
                try:
                    draw_chart(Chart.from_json((folder / f"{name}.json").read_text()), folder / f"{name}.png")
                except Exception:  # no later event may wait for a picture
                    logger.exception("could not draw the chart %s of run %s", name, self._run_id)
            if names:
                self._put(staging, "charts")
        return names

    def _put(self, folder: str, kind: str) -> None:
        with requests(UPLOAD):
            if self._place is None:
                self._client.log_artifacts(self._run_id, folder, kind)
            else:
                artifacts.log(self._place, folder, kind, self._tracking_uri)
