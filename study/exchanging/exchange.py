"""Studies go out as files and come in: from such files, and from MLflow experiments of somebody else's."""

import json
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.asking.query import Studies, Study
from study.asking.renaming import listed, our_names, require_names
from study.asking.trials import as_json
from study.errors import UserError
from study.fronts.front import Objective
from study.home import Home

if TYPE_CHECKING:
    import pyarrow as pa

    from study.exchanging.imported_runs import Source

ENDINGS = (".parquet", ".csv", ".json")
IMPORTED = "imported"
"""What stands for the space of a study that was imported."""
_KEPT_TAGS = ("space", "space_arguments", "experiment", "spec_hash", "sampler", "seed", "commit", "parameters", "num_trials")


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What an import did.

    Attributes:
        num_new: trials that it wrote or completed.
        num_known: those that were there.
    """

    study: str
    num_new: int
    num_known: int


def export_trials(studies: Studies, path: str | Path) -> int:
    """Write one row a model; the columns of `Trials.to_arrow`.

    Args:
        path: ends in .parquet (with what the study is in the schema's metadata, so that `study import` takes it), .csv or
            .json (an object of `facts` and `models`; numbers that JSON lacks are "NaN", "Infinity" and "-Infinity").

    Returns:
        how many rows.

    Raises:
        UserError: if it ends otherwise, or cannot be written.
    """
    path = Path(path)
    models = studies.models()
    try:
        if path.suffix == ".parquet":
            _write_parquet(models.to_arrow(), facts_of(studies), path)
        elif path.suffix == ".csv":
            models.to_csv(path)
        elif path.suffix == ".json":
            fields = {"facts": facts_of(studies), "models": models.to_json()}
            path.write_text(json.dumps(as_json(fields), indent=2, allow_nan=False))
        else:
            raise UserError(f"an export must end in {', '.join(ENDINGS)}, but got {str(path)!r}; try {studies.name}.parquet")
    except OSError as error:
        raise UserError(f"an export must be written, but {path} cannot be ({error}); name another place") from error
    return len(models)


def facts_of(studies: Studies) -> dict[str, Any]:
    """What a study is: objectives, constraints, parameters, versions, commit, as plain values."""
    tags = studies.tags if isinstance(studies, Study) else {}
    sources = {name: asdict(source) for name, source in studies.all_trials.sources.items()}
    return {
        "study": studies.name,
        "study_id": json.dumps(sources, sort_keys=True),
        "objectives": [asdict(objective) for objective in studies.objectives],
        "constraints": {study: [str(bound) for bound in bounds] for study, bounds in studies.constraints.items()},
        "log_scale": list(studies.log_scale),
        "color_by": studies.color_by,
        **{name: tags[name] for name in _KEPT_TAGS if name in tags},
        "versions": {name.removeprefix("version."): text for name, text in tags.items() if name.startswith("version.")},
    }


def _write_parquet(table: "pa.Table", facts: Mapping[str, Any], path: Path) -> None:
    from pyarrow import parquet

    from study.exchanging.imported_runs import FACTS

    parquet.write_table(table.replace_schema_metadata({FACTS: json.dumps(facts)}), path, compression="zstd")


def import_experiment(
    source: str,
    *,
    name: str,
    objectives: Sequence[Objective | str] = (),
    metrics: Mapping[str, str] | None = None,
    tracking_uri: str | None = None,
    home: str | Path | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Imported:
    """Make a study of an MLflow experiment of somebody else's, or of a file that `study export` wrote; the source is only read.

    Runs that finished or failed become trials, with their parameters and every step of their metrics; those that run or were
    killed are left out. Models are not copied: a tag says where they are. The same call again imports what is new, and
    completes what was cut short; nothing is there twice.

    Args:
        source: name of an experiment, or of a .parquet file.
        name: of the study that it becomes, in the MLflow of this home.
        objectives: "metric:min" or "metric:max", by our names; a file has its own.
        metrics: our name for a metric, by theirs.
        tracking_uri: of the experiment; None for the home's own.
        home: None for `$STUDY_HOME`.
        progress: told how many trials have been written so far.

    Raises:
        UserError: if there is no such source, no run has an objective, or the name is taken.
    """
    folder = Home(home).study(name)
    folder.home.prepare()
    from study.exchanging.import_writer import ImportWriter
    from study.exchanging.imported_runs import open_source

    opened = open_source(source, tracking_uri or folder.home.tracking_uri)
    renamed = _renaming(opened.source, metrics or {})
    chosen = _objectives(opened.source, objectives, renamed)
    if folder.exists():
        raise UserError(f"an import must have a name of its own, but {name!r} was launched from here; choose another name")
    with folder.lease():
        writer = ImportWriter(folder, opened.source, renamed)
        writer.begin(_tags(opened.source, chosen))
        num_known, num_new = len(writer.ended), 0
        for trial in opened.trials(writer.ended):
            writer.write(trial)
            num_new += 1
            progress(num_new)
        writer.end()
    return Imported(study=name, num_new=num_new, num_known=num_known)


def _renaming(source: "Source", given: Mapping[str, str]) -> dict[str, str]:
    """Our name for each metric of the source."""
    require_names(given, source.metric_names)
    names = our_names(source.metric_names, given)
    if not source.facts and names.get("progress") == "progress":
        names["progress"] = "their_progress"  # ours says whether a trial is whole
    return names


def _objectives(source: "Source", given: Sequence[Objective | str], renamed: Mapping[str, str]) -> list[Objective]:
    known = [Objective(**fields) for fields in source.facts.get("objectives", ())]
    chosen = [o if isinstance(o, Objective) else Objective.parse(o, known) for o in given] or known
    if not chosen:
        raise UserError(
            f"an import must have objectives, but got none; add --objective METRIC:min; {_there(set(renamed.values()))}"
        )
    if missing := {objective.metric for objective in chosen} - set(renamed.values()):
        raise UserError(f"some run must have an objective, but none has {listed(missing)}; {_there(set(renamed.values()))}")
    return chosen


def _there(names: set[str]) -> str:
    return f"there are {listed(names) or 'no metrics'}"


def _tags(source: "Source", objectives: Sequence[Objective]) -> dict[str, Any]:
    """What the parent run says: all that a query needs."""
    facts = source.facts
    constraints = sorted({bound for bounds in facts.get("constraints", {}).values() for bound in bounds})
    return {
        "space": IMPORTED,
        "space_arguments": "{}",
        "experiment": "",
        "spec_hash": source.study_id[:12],
        "objectives": [asdict(objective) for objective in objectives],
        "constraints": constraints,
        "parameters": facts.get("parameters", {}),
        "log_scale": facts.get("log_scale", []),
        "color_by": json.dumps(facts.get("color_by")),
        "sampler": "none",
        "seed": "0",
        "storage": "",
        "parents": [],
        "commit": facts.get("commit", "none"),
        "hostname": socket.gethostname(),
        "source": source.shown,
    } | {f"version.{package}": version for package, version in facts.get("versions", {}).items()}
