"""What is to be written of one run, in as few requests as MLflow allows; and texts as its databases take them."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from study.recording.tracking import MAX_TAG, PREFIX

from mlflow.entities import Metric, Param, RunTag  # isort: skip: study.recording.tracking quietens it first

if TYPE_CHECKING:
    import mlflow

_MAX_ENTITIES = 1000
"""Of all kinds together in one request."""


class RunWrites:
    """Collects params, metrics and tags of a run.

    Attributes:
        params, metrics: that wait to be written.
    """

    def __init__(self, client: "mlflow.MlflowClient", run_id: str) -> None:
        self._client, self._run_id = client, run_id
        self.params: list[Param] = []
        self.metrics: list[Metric] = []
        self._tags: dict[str, str] = {}

    @property
    def tags(self) -> list[RunTag]:
        """Tags that wait to be written."""
        return [RunTag(key, value) for key, value in self._tags.items()]

    def tag(self, tags: Mapping[str, Any]) -> None:
        """Add tags, with our prefix unless they have it or MLflow's; of two of one name the later stays."""
        full = {key if key.startswith((PREFIX, "mlflow.")) else PREFIX + key: value for key, value in tags.items()}
        self._tags |= {key: _tag_text(value) for key, value in full.items()}

    def flush(self) -> None:
        """Write what waits, metrics before tags: these say what is there."""
        params, metrics, tags = self.params, self.metrics, self.tags
        room = _MAX_ENTITIES - len(params) - len(tags)
        while len(metrics) > room:
            self._client.log_batch(self._run_id, metrics=metrics[:_MAX_ENTITIES])
            metrics = metrics[_MAX_ENTITIES:]
        if params or metrics or tags:
            self._client.log_batch(self._run_id, metrics=metrics, params=params, tags=tags)
        self.params, self.metrics, self._tags = [], [], {}


def _tag_text(value: Any) -> str:
    text = storable(value if isinstance(value, str) else json.dumps(value))
    return text if len(text) <= MAX_TAG else f"{text[: MAX_TAG // 2]}\n[...]\n{text[-MAX_TAG // 2 :]}"


def storable(text: str) -> str:
    r"""A text that every database takes: PostgreSQL has no NUL, and none has half characters, as of file names in no UTF-8.

    They become \x00 and the like: an error that quotes them must not stop all that comes after it.
    """
    return text.replace("\0", r"\x00").encode("utf-8", "backslashreplace").decode()
