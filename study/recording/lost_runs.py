"""Runs that MLflow has and the outbox does not: of a writer that died between the two, or of an answer that was lost."""

from collections import defaultdict
from typing import TYPE_CHECKING

from study.recording.tracking import STUDY_ID_TAG, TRIAL_TAG

if TYPE_CHECKING:
    import mlflow
    from mlflow.entities import Run

_PAGE = 200


class LostRuns:
    """Looks for the runs of one study. MLflow is asked of the first trial, and of each that is in doubt; of all others once.

    Args:
        known: ids of the runs that the outbox knows.
    """

    def __init__(self, client: "mlflow.MlflowClient", experiment_id: str, study_id: str, known: set[str]) -> None:
        self._client, self._experiment_id = client, experiment_id
        self._of_study = f"tags.`{STUDY_ID_TAG}` = '{study_id}'"
        self._known = known
        self._lost: dict[int, list[str]] | None = None

    def find(self, trial: int, *, in_doubt: bool) -> list[str]:
        """Ids of a trial's runs, more than one if it was made twice.

        Args:
            in_doubt: whether one may have been made since this was made.
        """
        if self._lost is not None and not in_doubt:
            return self._lost.get(trial, [])
        if self._lost is None:
            self._lost = self._among_the_newest()
        return [str(run.info.run_id) for run in self.search(trial)]

    def search(self, trial: int) -> "list[Run]":
        """All runs of a trial, known or not."""
        return list(self._client.search_runs([self._experiment_id], f"tags.`{TRIAL_TAG}` = '{trial}' and {self._of_study}"))

    def _among_the_newest(self) -> dict[int, list[str]]:
        """Some are there if the outbox went back in time, as after a loss of power.

        The newest come first: where all of a page are known, so are the rest.
        """
        newest, found = ["attributes.start_time DESC"], defaultdict[int, list[str]](list)
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id], self._of_study, max_results=_PAGE, order_by=newest, page_token=token
            )
            strangers = [run for run in page if run.info.run_id not in self._known]
            for run in strangers:
                found[int(run.data.tags[TRIAL_TAG])].append(str(run.info.run_id))
            token = page.token
            if not strangers or not token:
                return found
