"""One HTML page of all that a study found, for people: no network, no server, nothing beside it."""

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from study.asking.query import Studies, Study
from study.asking.trials import TrialRow, Trials
from study.errors import UserError
from study.fronts.domination import dominated_by
from study.fronts.front import Front
from study.fronts.knee import finite_range
from study.reporting import report_explore
from study.reporting import report_html as html
from study.reporting.figures import draw_curves, draw_front, draw_hypervolume
from study.reporting.figures_importance import draw_importance
from study.reporting.figures_parameters import draw_parallel
from study.reporting.pictures import front_picture
from study.reporting.report import duration, parameter_names, repeated_work, short, summary

_MAX_ROWS = 500
_NUM_CLOSE = 8
_MAX_SENTENCE = 240
_SPEC = ("space", "experiment", "sampler", "seed", "num_trials", "constraints", "storage", "spec_hash")
_TITLES = {
    "front": "Front", "table": "Models on the front", "close": "Close to the front", "curves": "Curves",
    "parallel": "Parameters and objectives", "importance": "What matters", "explore": "Explore", "hypervolume": "Over time",
    "failures": "Failures", "spec": "Spec", "environment": "Environment",
}  # fmt: skip


def make_report(study: Studies, path: Path, front: Front | None = None) -> Path:
    """Write the page of a study.

    Args:
        path: `report.html`; its folder is made.
        front: the one to show; None for that of the objectives that were searched.

    Returns:
        the path.

    Raises:
        UserError: if it cannot be written, or several studies have no objectives in common and no front is given.
    """
    text = report_text(study, study.front() if front is None else front)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"a report must go where it can be written, but {path} cannot ({error}); name another") from error
    return path


def report_text(study: Studies, front: Front) -> str:
    """The page as text; the same for the same trials."""
    picture = front_picture(study, front)
    colors, ranges = picture.colors, parameter_ranges(study)
    parts = {
        "front": draw_front(picture),
        "curves": draw_curves(front, colors),
        "parallel": draw_parallel(front, colors, ranges),
        "importance": draw_importance(front, ranges),
        "hypervolume": draw_hypervolume(front),
    }
    kinds = [*(kind for kind in reversed(picture.kinds) if len(picture.kinds[kind])), *(["knee"] if len(front.rows) else [])]
    explored = report_explore.explored(picture, colors, ranges)
    inner = {name: html.part(found, colors, kinds if name == "front" else ()) for name, found in parts.items()}
    inner["front"] = (
        html.paragraphs([_sentence("; ".join(picture.omissions()))] if picture.omissions() else [], "note") + inner["front"]
    )
    inner |= {
        "table": _front_table(front),
        "close": _close_table(front),
        "explore": report_explore.explore_form(explored),
        "failures": _failures(study.all_trials),
        "spec": _spec(study),
        "environment": _environment(study),
    }
    sections = {name: html.section(name, title, inner[name]) for name, title in _TITLES.items()}
    links = "".join(f'<a href="#part-{name}">{title}</a>' for name, title in _TITLES.items() if sections[name])
    head = f"<header><h1>{html.text(front.study)}</h1>{html.paragraphs([f'{summary(front)}.'])}{_cards(study, front)}</header>"
    body = f"{head}<nav>{links}</nav>{''.join(sections.values())}"
    return html.page(f"{front.study}: report", body, parts.values(), explored)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def parameter_ranges(study: Studies) -> dict[str, str]:
    """Text of each parameter's range; nothing for several studies, that need not have the same."""
    if not isinstance(study, Study):
        return {}
    try:
        ranges = json.loads(study.tags.get("parameters", "{}"))
    except ValueError:  # too many for a tag, which was cut
        return {}
    return {str(name): str(values) for name, values in ranges.items()}


def _cards(study: Studies, front: Front) -> str:
    trials = study.all_trials
    states = Counter(trials.column("state"))
    told = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none yet"
    return html.cards({"Trials": f"{told}. {_when(trials)}", "Knee": _knee(front), "Hypervolume": _hypervolume(front)})


def _when(trials: Trials) -> str:
    pairs = zip(trials.column("start_ms"), trials.column("end_ms"), strict=True)
    ended = [(start, end) for start, end in pairs if start and end]
    if not ended:
        return ""
    first, last = min(start for start, _ in ended), max(end for _, end in ended)
    spent = duration(sum(end - start for start, end in ended) / 1000)
    repeated = repeated_work(trials) if len(trials) <= _MAX_ROWS else None
    return f"{_moment(first)} to {_moment(last)}, {spent} of trials" + (f"; {repeated}." if repeated else ".")


def _moment(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _knee(front: Front) -> str:
    knee = front.knee
    if knee is None:
        return "There is none, as no model is on the front."
    return f"Model {knee.label} gives up least of all objectives together: {_values(front, knee)}."


def _values(front: Front, row: TrialRow) -> str:
    return ", ".join(f"{o.metric} {short(row.metrics[o.metric])}" for o in front.objectives)


def _hypervolume(front: Front) -> str:
    corner = front.reference
    if not corner:
        return "None, as an objective has no finite value." if len(front.rows) else "0, as no model is on the front."
    told = ", ".join(f"{name} {short(value)}" for name, value in corner.items())
    return f"{front.hypervolume():.6g}, measured from {told}: a tenth worse than the worst compared model."


def _front_table(front: Front) -> str:
    if not len(front.rows):
        return html.paragraphs(["No model is on the front."])
    shown = front.rows[:_MAX_ROWS]
    rows = list(shown)
    names = parameter_names(rows)
    heads = ["model", *(f"{o.metric} {'↓' if o.goal == 'min' else '↑'}" for o in front.objectives), *names, "MLflow run"]
    cells = [
        [
            row.label,
            *(row.metrics[o.metric] for o in front.objectives),
            *(row.params.get(name) for name in names),
            html.Id(row.run_id),
        ]
        for row in rows
    ]
    more = [f"The first {_MAX_ROWS} of {len(front.rows)}; all of them: study pareto {front.study} --csv."]
    note = html.paragraphs(more if len(front.rows) > _MAX_ROWS else [], "note")
    return note + html.table(heads, cells, [place for place, row in enumerate(rows) if row == front.knee])


def _close_table(front: Front) -> str:
    """The dominated models that are beaten by least, by whom, by how much."""
    if not len(front.dominated):
        return ""
    compared, costs = front.compared, front.costs(front.compared)
    best, gaps = dominated_by(costs)
    _, spread = finite_range(costs[: len(front.rows)])
    shares = (gaps / np.where(spread > 0, spread, 1.0)).sum(axis=1)
    closest = [place for place in np.argsort(shares, kind="stable").tolist() if best[place] >= 0][:_NUM_CLOSE]
    beaten, by = compared.take(closest), compared.take(best[closest])
    heads = ["model", *(o.metric for o in front.objectives), "beaten by", *(f"worse in {o.metric} by" for o in front.objectives)]
    rows = [
        [row.label, *(row.metrics[o.metric] for o in front.objectives), other.label, *gaps[place].tolist()]
        for row, other, place in zip(beaten, by, closest, strict=True)
    ]
    sentence = "The dominated models that are beaten by least, counted in ranges of the front, and what beats them by most."
    return html.paragraphs([sentence], "note") + html.table(heads, rows)


def _failures(trials: Trials) -> str:
    """Equal failures in one row, those of most trials first."""
    places: dict[tuple[str, str], list[int]] = {}
    for place, text in enumerate(trials.column("failure")):
        if text:
            found = json.loads(text)
            places.setdefault((found["cause"], _first_sentence(found["error"])), []).append(place)
    if not places:
        return html.paragraphs(["No trial failed."])
    ordered = sorted(places.items(), key=lambda item: -len(item[1]))
    rows = [[len(own), cause, html.Wide(error), trials[own[0]].label] for (cause, error), own in ordered]
    return html.table(["trials", "cause", "error", "for example"], rows)


def _first_sentence(error: str) -> str:
    line = next((line for line in error.splitlines() if line.strip()), "(no message)")
    sentence = line.partition(". ")[0]
    return sentence if len(sentence) <= _MAX_SENTENCE else f"{sentence[: _MAX_SENTENCE - 1]}…"


def _spec(study: Studies) -> str:
    if not isinstance(study, Study):
        return html.paragraphs([f"Several studies, asked as one: {study.name}."])
    tags = dict(study.tags)
    named = {name.replace("_", " "): _told(tags[name]) for name in _SPEC if name in tags}
    arguments = {f"argument {name}": value for name, value in json.loads(tags.get("space_arguments", "{}")).items()}
    objectives = {
        "objectives": ", ".join(
            f"{o.metric} ({o.goal}, {o.unit})" if o.unit else f"{o.metric} ({o.goal})" for o in study.objectives
        )
    }
    parents = {"forked from": ", from ".join(map(str, reversed(study.parents)))} if study.parents else {}
    ranges = parameter_ranges(study)
    return html.facts(named | arguments | objectives | parents) + (f"<h3>Parameters</h3>{html.facts(ranges)}" if ranges else "")


def _told(value: str) -> str:
    try:
        found = json.loads(value)
    except ValueError:
        return value
    return (", ".join(map(str, found)) or "none") if isinstance(found, list) else value


def _environment(study: Studies) -> str:
    if not isinstance(study, Study):
        return ""
    versions = {name.removeprefix("version."): value for name, value in study.tags.items() if name.startswith("version.")}
    hosts = sorted({host for host in study.all_trials.column("host") if host})
    named = {name: study.tags[name] for name in ("commit", "hostname") if name in study.tags}
    ran = {"hosts of the trials": ", ".join(hosts[:20]) + (f" and {len(hosts) - 20} more" if len(hosts) > 20 else "")}
    return html.facts(named | (ran if hosts else {}) | {"MLflow run of the study": study.run_id} | versions)
