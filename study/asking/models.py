"""Models of a study: which one is meant, and how it comes out of MLflow, whole or not at all."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.errors import UserError

if TYPE_CHECKING:
    from study.asking.trials import TrialRow


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The store of one study's models.

    Attributes:
        experiment_id: MLflow's, that holds the runs.
        experiment: that made them, as `trainables.registry.load_experiment` takes it; None for runs of somebody else's.
    """

    tracking_uri: str
    experiment_id: str
    experiment: str | None

    def download(self, row: "TrialRow", destination: Path) -> Path:
        """Copy a model's folder out of MLflow.

        Raises:
            UserError: if there is none.
        """
        from study.recording.tracking import download_candidate, download_model

        require_ended_well(row)
        if row.model_id is None:
            return download_model(self.tracking_uri, row.run_id, destination)
        return download_candidate(self.tracking_uri, row.model_id, destination)

    def load(self, row: "TrialRow") -> Any:
        """Build a model's networks; the study says which experiment may do that, not the folder."""
        from trainables.model_files import load_model

        with tempfile.TemporaryDirectory() as folder:
            trusted = () if self.experiment is None else (self.experiment,)
            return load_model(self.download(row, Path(folder)), trusted=trusted)


def require_ended_well(row: "TrialRow") -> None:
    """Refuse a trial that can have no model of its own.

    Raises:
        UserError: if it has not finished; a candidate is whole in any case.
    """
    if row.state != "finished" and row.candidate is None:
        raise UserError(f"a trial must have finished to have a model, but trial {row.label} is {row.state}; see `study status`")
