"""Several studies asked as one, by name, pattern or tag; and experiments that no study of ours made."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from study.asking.index_files import Index, Progress
from study.asking.models import ModelSource
from study.asking.query import Studies, of_study, read, study_of, tracking_uri_of
from study.asking.renaming import our_names, require_names
from study.asking.trials import METRIC, Trials, join_tables
from study.errors import UserError
from study.home import Home, check_name
from study.settings import TRACKING_URI, setting


def open_studies(
    names: Sequence[str] = (),
    *,
    tags: Sequence[str] = (),
    metrics: Mapping[str, str] | None = None,
    tracking_uri: str | None = None,
    home: str | Path | None = None,
    refresh: bool = False,
    progress: Progress = lambda _: None,
) -> Studies:
    """Read studies and ask them as one; a single one comes as itself (`study.asking.query.Study`).

    Args:
        names: of studies, or patterns such as `l*`; also of MLflow's experiments that no study of ours made. Of those that a
            pattern or tag finds, the ones without a parent run yet are left out.
        tags: `key=value`: all studies whose experiment has one of these tags in MLflow.
        metrics: of experiments of somebody else's: our name for a metric, by theirs.
        tracking_uri: None for the one that each study was launched with from this home, or the home's own.
        home: None for `$STUDY_HOME`.
        refresh: read everything again.
        progress: told how many runs of an experiment have been read.

    Raises:
        UserError: if nothing has such a name or tag, no experiment of somebody else's has a metric that is renamed, or MLflow
            does not answer.
    """
    place = Home(home)
    found = _find(names, tags, tracking_uri, place)
    reading = partial(read, home=place, refresh=refresh, progress=progress)
    indexes = _read_begun(found, names, reading)
    if metrics:
        foreign = [index.runs for index in indexes.values() if index.origin.run_id is None]
        require_names(metrics, {name for runs in foreign for name in _metrics_of(runs)})
    parts = [_opened(index, found[name], metrics or {}, place) for name, index in indexes.items()]
    return parts[0] if len(parts) == 1 else merge(parts)


def _read_begun(found: Mapping[str, str], named: Sequence[str], reading: Callable[[str, str], Index]) -> dict[str, Index]:
    """The index of each study, by name; without those that have no parent run yet, unless they were named themselves."""
    indexes: dict[str, Index] = {}
    for name, uri in found.items():
        try:
            indexes[name] = reading(uri, name)
        except UserError as error:
            from study.recording.tracking import NoAnswerError  # and MLflow with it, which has been asked

            is_last_hope = not indexes and name == list(found)[-1]
            if name in named or is_last_hope or isinstance(error, NoAnswerError):
                raise
    return indexes


def _opened(index: Index, uri: str, metrics: Mapping[str, str], home: Home) -> Studies:
    name = index.origin.name
    if index.origin.run_id is None:
        return _foreign(index, uri, metrics)
    folder = home.study(name) if _is_study_name(name) else None
    is_running = folder.holder() is not None if folder is not None and folder.exists() else None
    return study_of(index, uri, is_running=is_running)


def _find(names: Sequence[str], tags: Sequence[str], tracking_uri: str | None, home: Home) -> dict[str, str]:
    """The tracking URI of every study that is meant, by name."""
    own = {} if tracking_uri else {folder.name: tracking_uri_of(folder) for folder in (*home.studies(), *home.imported())}
    uri = tracking_uri or setting(TRACKING_URI) or home.tracking_uri
    listed = None
    found: dict[str, str] = {}
    for name in names:
        if not _is_pattern(name) or _is_there(name, uri):
            if name not in own and not has_database(uri):
                home.study(name).require()  # says what there is; MLflow would make a database to look into
            found[name] = own.get(name, uri)
            continue
        listed = _experiments(uri) if listed is None else listed
        matching = {known: own.get(known, uri) for known in sorted({*own, *listed}) if fnmatchcase(known, name)}
        if not matching:
            known = ", ".join(sorted({*own, *listed})) or "none yet"
            raise UserError(f"a pattern must fit a study, but {name!r} fits none of {known}; see `study list`")
        found |= matching
    for tag in tags:
        tagged = _tagged(tag, {uri, *own.values()}, own)
        found |= {known: place for known, place in tagged.items() if known not in found}
    if not found:
        raise UserError("some study must be named, but got none; name one, or give --tag KEY=VALUE; see `study list`")
    return found


def _is_pattern(name: str) -> bool:
    return any(sign in name for sign in "*?[")


def _is_study_name(name: str) -> bool:
    try:
        return bool(check_name(name))
    except UserError:
        return False


def has_database(tracking_uri: str) -> bool:
    """Whether there is an MLflow to ask: a home without a study has no database yet."""
    return not tracking_uri.startswith("sqlite:///") or Path(tracking_uri.removeprefix("sqlite:///")).exists()


def _is_there(name: str, tracking_uri: str) -> bool:
    """Whether an experiment, of somebody else's, has this very name, though it reads like a pattern."""
    from study.recording.tracking import answering, connect

    if not has_database(tracking_uri):
        return False
    with answering(tracking_uri):
        return connect(tracking_uri).get_experiment_by_name(name) is not None


def _experiments(tracking_uri: str, condition: str | None = None) -> list[str]:
    """Names of the studies in an MLflow, by name."""
    from study.recording.tracking import connect, study_experiments

    if not has_database(tracking_uri):
        return []
    return sorted(found.name for found in study_experiments(connect(tracking_uri), condition))


def _tagged(tag: str, tracking_uris: Iterable[str], own: Mapping[str, str]) -> dict[str, str]:
    """Where each study with a tag was found, by name; of two of a name the one that was launched from here."""
    key, equals, value = tag.partition("=")
    if not key or not equals or "`" in key or "'" in value:
        raise UserError(f"--tag must be KEY=VALUE, but got {tag!r}; try team=alice")
    found = [(name, uri) for uri in sorted(tracking_uris) for name in _experiments(uri, f"tags.`{key}` = '{value}'")]
    if not found:
        raise UserError(
            f"a tag must be one that a study's experiment has in MLflow, but none has {tag!r}; see MLflow's own pages"
        )
    return dict(sorted(found, key=lambda pair: (pair[0], own.get(pair[0]) == pair[1])))  # the last of a name stays


def _foreign(index: Index, tracking_uri: str, metrics: Mapping[str, str]) -> Studies:
    """An experiment that no study of ours made: its runs numbered by their start, its metrics renamed."""
    name = index.origin.name
    runs = index.runs.filter(pc.equal(index.runs["lifecycle"], "active"))
    runs = runs.sort_by([("start_ms", "ascending"), ("run_id", "ascending")])
    ours = our_names(_metrics_of(runs), metrics)
    runs = runs.rename_columns([METRIC + ours[c.removeprefix(METRIC)] if c.startswith(METRIC) else c for c in runs.column_names])
    numbers = pa.array(range(runs.num_rows), pa.int64())
    runs = of_study(runs.set_column(runs.column_names.index("trial"), "trial", numbers), name)
    source = {name: ModelSource(tracking_uri, index.origin.experiment_id, None)}
    return Studies(
        name=name,
        all_trials=Trials(runs, source),
        all_candidates=Trials(index.candidates, source),
        objectives=(),
        constraints={name: ()},
        log_scale=(),
        color_by=None,
    )


def _metrics_of(runs: pa.Table) -> list[str]:
    return [column.removeprefix(METRIC) for column in runs.column_names if column.startswith(METRIC)]


def merge(parts: Sequence[Studies]) -> Studies:
    """Several studies as one: objectives that all have in common, each study's own constraints.

    A study of somebody else's has no objectives, and takes those of the others.
    """
    searched = {part.objectives: None for part in parts if part.objectives}
    colors = {part.color_by for part in parts}
    sources = {study: source for part in parts for study, source in part.all_trials.sources.items()}
    trials = join_tables([part.all_trials.table for part in parts])
    candidates = join_tables([part.all_candidates.table for part in parts])
    return Studies(
        name="+".join(part.name for part in parts),
        all_trials=Trials(trials, sources, is_merged=True),
        all_candidates=Trials(candidates, sources, is_merged=True),
        objectives=next(iter(searched)) if len(searched) == 1 else (),
        constraints={study: bounds for part in parts for study, bounds in part.constraints.items()},
        log_scale=tuple(dict.fromkeys(name for part in parts for name in part.log_scale)),
        color_by=colors.pop() if len(colors) == 1 else None,
    )
