"""Put a study's page into MLflow, and tag the runs and models of the front, so that MLflow's own UI can filter them."""

import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from study.asking.query import Study
from study.asking.trials import TrialRow
from study.fronts.front import Front

if TYPE_CHECKING:
    import mlflow

ARTIFACT = "report/report.html"


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """What MLflow was told.

    Attributes:
        artifact: of the study's parent run.
        num_tagged, num_untagged: runs and models that a tag was set on, or taken from.
    """

    run_id: str
    artifact: str
    num_tagged: int
    num_untagged: int


def publish_report(study: Study, front: Front, path: Path) -> Published:
    """Log a page as `report/report.html` of the study's parent run, and tag what is on the front.

    Runs get `narrow_study.front = "true"`, that of the knee `narrow_study.knee = "true"`; of a candidate its logged model,
    and the run that it belongs to. Runs and models that are no longer on the front lose their tags. Again, it changes nothing.

    Raises:
        UserError: if MLflow does not answer.
    """
    from study.recording.tracking import PREFIX, answering, connect

    client = connect(study.tracking_uri)
    knee = [] if front.knee is None else [front.knee]
    with answering(study.tracking_uri):
        _log_page(client, study.run_id, path)
        experiment_id = str(client.get_run(study.run_id).info.experiment_id)
        counts = []
        for name, rows in (("front", front.rows), ("knee", knee)):
            tag = PREFIX + name
            counts += [_tag_runs(client, experiment_id, tag, rows), _tag_models(client, experiment_id, tag, rows)]
    num_tagged, num_untagged = (sum(column) for column in zip(*counts, strict=True))
    return Published(run_id=study.run_id, artifact=ARTIFACT, num_tagged=num_tagged, num_untagged=num_untagged)


def _log_page(client: "mlflow.MlflowClient", run_id: str, path: Path) -> None:
    """Under one name, whatever the file is called here."""
    folder, name = ARTIFACT.split("/")
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / name
        shutil.copyfile(path, copy)
        client.log_artifact(run_id, str(copy), folder)


def _tag_runs(client: "mlflow.MlflowClient", experiment_id: str, tag: str, rows: Iterable[TrialRow]) -> tuple[int, int]:
    from study.recording.tracking import all_runs

    tagged = {str(run.info.run_id) for run in all_runs(client, experiment_id, f"tags.`{tag}` = 'true'")}
    return _change(
        {row.run_id for row in rows},
        tagged,
        lambda run_id: client.set_tag(run_id, tag, "true"),
        lambda run_id: client.delete_tag(run_id, tag),
    )


def _tag_models(client: "mlflow.MlflowClient", experiment_id: str, tag: str, rows: Iterable[TrialRow]) -> tuple[int, int]:
    from study.recording.tracking import all_models

    tagged = {str(model.model_id) for model in all_models(client, experiment_id, f"tags.`{tag}` = 'true'")}
    return _change(
        {row.model_id for row in rows if row.model_id is not None},
        tagged,
        lambda model_id: client.set_logged_model_tags(model_id, {tag: "true"}),
        lambda model_id: client.delete_logged_model_tag(model_id, tag),
    )


def _change(wanted: set[str], tagged: set[str], add: Callable[[str], object], remove: Callable[[str], object]) -> tuple[int, int]:
    """Set what is missing, take away what is too much; return how many of each."""
    for key in sorted(wanted - tagged):
        add(key)
    for key in sorted(tagged - wanted):
        remove(key)
    return len(wanted - tagged), len(tagged - wanted)
