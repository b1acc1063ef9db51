"""Ask a study, or several at once: trials, models, fronts, what was left out and why. Reads MLflow, and nothing else."""

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from search_spaces.space import Constraint
from study.asking.index_files import Index, IndexFiles, Progress
from study.asking.models import ModelSource
from study.asking.trials import TrialRow, Trials
from study.errors import UserError
from study.fronts.front import Front, Objective, make_front, models_of
from study.home import Home, StudyFolder
from study.running.ledger import Ledger
from study.settings import TRACKING_URI, setting

if TYPE_CHECKING:
    from study.spec import Parent
    from trainables.charts import Chart

Where = Callable[[Trials], NDArray[np.bool_]]
"""Tells which models are asked for: (models,)."""


@dataclass(frozen=True, kw_only=True)
class Studies:
    """One study, or several that are asked as one.

    Attributes:
        name: of the study, or of all with a plus between.
        all_trials: every trial, by study and number.
        all_candidates: every candidate that is ready, in no order; what its trial knows is not in it.
        objectives: those that were searched, if all studies have the same; else none.
        constraints: of each study.
        log_scale: objectives that belong on a logarithmic axis.
        color_by: the parameter or metric that tells trials apart, or None.
    """

    name: str
    all_trials: Trials
    all_candidates: Trials
    objectives: tuple[Objective, ...]
    constraints: Mapping[str, tuple[Constraint, ...]]
    log_scale: tuple[str, ...]
    color_by: str | None

    def trials(self) -> Trials:
        """Every trial, by number."""
        return self.all_trials

    def models(self) -> Trials:
        """One row a model: each candidate of a trial, or the trial itself where it has none."""
        return models_of(self.all_trials, self.all_candidates)

    def front(
        self,
        objectives: Sequence[Objective | str] = (),
        *,
        where: "Where | str | None" = None,
        constraints: Iterable[Constraint | str] = (),
    ) -> Front:
        """The Pareto front of the finished trials' models that meet the constraints.

        Only trials with progress 1.0 are compared; the others are counted in `left_out`, with the reason.

        Args:
            objectives: other ones than those searched: `Objective`s, or `"metric:min"`.
            where: which models are asked for (`study.asking.where`); None for all.
            constraints: further ones than the studies' own: `"metric <= 3"`.

        Raises:
            UserError: if there are no objectives, one of these texts cannot be read, or no model has what one of them names.
        """
        chosen = tuple(o if isinstance(o, Objective) else Objective.parse(o, self.objectives) for o in objectives)
        if not chosen and not self.objectives:
            raise UserError(
                f"several studies must have the same objectives, or be asked for some, but those of {self.name} differ; "
                "use --objective metric:min"
            )
        self._require_metrics([objective.metric for objective in chosen])
        further = tuple(c if isinstance(c, Constraint) else read_constraint(c) for c in constraints)
        self._require_metrics([bound.metric for bound in further], law="a constraint must bound", example="{} <= 1")
        return make_front(
            self.name,
            self.all_trials,
            self.all_candidates,
            chosen or self.objectives,
            constraints={study: (*own, *further) for study, own in self.constraints.items()},
            where=self._where(where),
            log_scale=self.log_scale,
        )

    def _require_metrics(self, names: Sequence[str], *, law: str = "an objective must be", example: str = "{}:min") -> None:
        """Refuse metrics that no model has, once there are any."""
        known = dict.fromkeys([*self.all_trials.metric_names, *self.all_candidates.metric_names])
        for name in names:
            if known and name not in known:
                near = get_close_matches(name, known, n=1) or [next(iter(known))]
                raise UserError(
                    f"{law} a metric of {self.name}, but got {name!r} (there: {', '.join(sorted(known))}); "
                    f"try {example.format(near[0])}"
                )

    def _where(self, where: "Where | str | None") -> "Where | None":
        if isinstance(where, str):
            from study.asking.where import read_where

            return read_where(where)
        return where

    def knee(
        self,
        objectives: Sequence[Objective | str] = (),
        *,
        where: "Where | str | None" = None,
        constraints: Iterable[Constraint | str] = (),
    ) -> TrialRow:
        """The best compromise of the front that `front` of the same arguments is: `study.knee().load_model()`.

        Raises:
            UserError: if the front is empty.
        """
        found = self.front(objectives, where=where, constraints=constraints).knee
        if found is None:
            raise UserError(f"a knee needs a front, but that of {self.name} is empty; see `study pareto`")
        return found


def read_constraint(text: str) -> Constraint:
    """Read `metric <= 3` or `metric >= 3`.

    Raises:
        UserError: if it is neither.
    """
    try:
        return Constraint.parse(text)
    except ValueError as error:
        raise UserError(str(error)) from error


@dataclass(frozen=True, kw_only=True)
class Study(Studies):
    """One study.

    Attributes:
        tracking_uri: of the MLflow that it was read from.
        run_id: of its parent run.
        tags: what the parent run says of it.
        is_running: whether a process of this machine runs it now; None where that cannot be known.
    """

    tracking_uri: str
    run_id: str
    tags: Mapping[str, str]
    is_running: bool | None

    @property
    def num_trials(self) -> int:
        """The budget."""
        return int(self.tags["num_trials"])

    @property
    def ledger(self) -> Ledger:
        """Where the time of its trials went, less that of attempts which are under way."""
        return Ledger.sum(Ledger.from_json(text) for text in self.all_trials.column("ledger") if text)

    @property
    def slot(self) -> dict[str, float]:
        """What a trial holds: `num_cpus` and `num_gpus`; 1 and 0 where an older version said nothing."""
        return {"num_cpus": float(self.tags.get("num_cpus", 1)), "num_gpus": float(self.tags.get("num_gpus", 0))}

    @property
    def parents(self) -> "tuple[Parent, ...]":
        """The studies that it was forked from, oldest first; of a line of more than 32 the last."""
        from study.spec import Parent

        return tuple(Parent(**fields) for fields in json.loads(self.tags.get("parents", "[]")))

    def trial(self, number: int) -> TrialRow:
        """One trial.

        Raises:
            UserError: if there is none of that number.
        """
        place = self._places.get(number)
        if place is None:
            known = (
                _shown(self._places, "one that has started (the last is {})")
                if self._places
                else "one that has started, and none has"
            )
            raise UserError(f"a trial of {self.name!r} must be {known}, but got {number}; see `study status {self.name}`")
        return self.all_trials[place]

    @cached_property
    def _places(self) -> dict[int, int]:
        return {number: place for place, number in enumerate(self.all_trials.column("trial"))}

    def candidates(self, number: int) -> Trials:
        """A trial's candidates, by number; none if its experiment offers none.

        Raises:
            UserError: if there is no trial of that number.
        """
        self.trial(number)
        models = models_of(self.all_trials.take([self._places[number]]), self.all_candidates)
        return models if models.has_candidates else models[:0]

    def model(self, number: int, candidate: int | None = None) -> TrialRow:
        """A trial as the model that it ended with, or one of its candidates.

        Raises:
            UserError: if there is no such trial or candidate.
        """
        if candidate is None:
            return self.trial(number)
        candidates = self.candidates(number)
        found = [row for row in candidates if row.candidate == candidate]
        if not found:
            known = _shown(candidates.column("candidate"), "some of 0 to {}") if candidates else "none"
            raise UserError(
                f"a candidate must be one that its trial has, but trial {number} of {self.name!r} has {known}, not {candidate}; "
                f"see `study trial {self.name} {number}`"
            )
        return found[0]

    def download_model(self, number: int, destination: str | Path, candidate: int | None = None) -> Path:
        """Copy a finished trial's model, or that of one of its candidates, out of MLflow; returns its folder.

        Raises:
            UserError: if there is no such model.
        """
        return self.model(number, candidate).download_model(destination)

    def load_model(self, number: int, candidate: int | None = None) -> Any:
        """Build a finished trial's trained networks, or a candidate's: what its experiment's `rebuild` returns."""
        return self.model(number, candidate).load_model()

    def history(self, number: int, metric: str) -> list[tuple[int, float]]:
        """(step, value) of one metric of one trial."""
        from study.recording.tracking import metric_history

        return metric_history(self.tracking_uri, self.trial(number).run_id, metric)

    def charts(self, number: int) -> "list[Chart]":
        """A finished trial's charts, by name; none if its experiment offers none.

        Raises:
            UserError: if the trial is not finished.
        """
        from study.recording.tracking import read_charts
        from trainables.charts import Chart

        row = self.trial(number)
        if row.state != "finished":
            raise UserError(
                f"a trial must have finished to have charts, but trial {number} of {self.name!r} is {row.state}; "
                f"see `study status {self.name}`"
            )
        return [Chart.from_json(text) for text in read_charts(self.tracking_uri, row.run_id, row.charts)]

    def log(self, number: int) -> str:
        """What the worker logged and printed for a trial, over all attempts; empty if there is nothing."""
        from trainables.storage import Folder

        if not self.tags.get("storage"):
            return ""  # an imported one has none
        launched_as = self.tags.get("study", self.name)  # MLflow's UI may rename an experiment, but not what is in the storage
        folder = Folder(self.tags["storage"]).child(f"{launched_as}/trials/{number:05d}")
        try:
            return folder.read("log.txt").decode() if "log.txt" in folder.names() else ""
        except Exception as error:
            raise UserError(f"a trial's log must be readable, but {folder.address} is not ({error}); mend the storage") from error


def _shown(numbers: Collection[int], with_gaps: str) -> str:
    """Which trials or candidates there are; some may be missing between: not begun yet, not ready, or deleted."""
    last = max(numbers)
    return f"0 to {last}" if len(numbers) == last + 1 else with_gaps.format(last)


def open_study(
    name: str,
    *,
    tracking_uri: str | None = None,
    home: str | Path | None = None,
    refresh: bool = False,
    progress: Progress = lambda _: None,
) -> Study:
    """Read a study from MLflow.

    Finished trials are kept in `$STUDY_HOME/index`, so that MLflow is asked for what is new.

    Args:
        name: as it was launched.
        tracking_uri: None for the one that the study was launched with from this home.
        home: None for `$STUDY_HOME`.
        refresh: read everything again.
        progress: told how many runs have been read.

    Raises:
        UserError: if there is no such study.
    """
    folder = Home(home).study(name)
    is_running = folder.holder() is not None if folder.exists() else None
    if tracking_uri is None:
        tracking_uri = tracking_uri_of(folder)
    index = read(tracking_uri, name, folder.home, refresh=refresh, progress=progress)
    if index.origin.run_id is None:
        raise UserError(
            f"a study must be one of ours, but {name!r} in {tracking_uri} is an experiment of somebody else's; ask it with "
            f"`study pareto {name} --objective METRIC:min`, or `study import` it"
        )
    return study_of(index, tracking_uri, is_running=is_running)


def tracking_uri_of(folder: StudyFolder) -> str:
    """Where a study has its runs: as it was launched; else in the team's MLflow, or the home's own.

    Raises:
        UserError: if there is neither.
    """
    if not folder.exists() and not folder.is_imported and (server := setting(TRACKING_URI)):
        return server
    if not folder.exists() and (folder.home.path / "mlflow.db").exists():
        return folder.home.tracking_uri
    return str(json.loads(folder.require().spec_file.read_text())["tracking_uri"])


def study_of(index: Index, tracking_uri: str, *, is_running: bool | None) -> Study:
    """What an index says of a study."""
    name, tags = index.origin.name, index.origin.tags
    source = {name: ModelSource(tracking_uri, index.origin.experiment_id, tags.get("experiment"))}
    return Study(
        name=name,
        all_trials=Trials(of_study(_as_of_now(index.runs, is_running), name).sort_by("trial"), source),
        all_candidates=Trials(of_study(index.candidates, name), source),
        objectives=tuple(Objective(**fields) for fields in json.loads(tags["objectives"])),
        constraints={name: tuple(Constraint.parse(text) for text in json.loads(tags["constraints"]))},
        log_scale=tuple(json.loads(tags["log_scale"])),
        color_by=json.loads(tags["color_by"]),
        tracking_uri=tracking_uri,
        run_id=index.origin.run_id or "",
        tags=tags,
        is_running=is_running,
    )


def of_study(table: pa.Table, name: str) -> pa.Table:
    """The same rows, as those of a study that is called so now: its runs say how it was called at its launch."""
    return table.set_column(table.column_names.index("study"), "study", pa.repeat(pa.scalar(name), table.num_rows))


def read(tracking_uri: str, name: str, home: Home, *, refresh: bool = False, progress: Progress = lambda _: None) -> Index:
    """The index of a study or experiment, as MLflow has it now."""
    files = IndexFiles(home.path / "index", tracking_uri, name)
    current = None if refresh else files.load_current()
    if current is not None:
        return current
    from study.asking.run_index import read_index  # and MLflow with it, which takes seconds

    return read_index(tracking_uri, name, files, refresh=refresh, progress=progress)


def _as_of_now(runs: pa.Table, is_running: bool | None) -> pa.Table:
    """Active runs; what MLflow takes for running is interrupted where nobody runs the study."""
    runs = runs.filter(pc.equal(runs["lifecycle"], "active"))
    if is_running is not False:
        return runs
    place = runs.column_names.index("state")
    states = pc.if_else(pc.equal(runs["state"], "running"), "interrupted", runs["state"])
    return runs.set_column(place, "state", states)
