"""Tables that answer more than which models are on the front: bands over seeds, who is dominated by whom, the hypervolume."""

from collections.abc import Mapping

from rich.table import Table

from study.fronts.front import Front, Objective
from study.fronts.seeds import SeedFront
from study.reporting.report import short


def seeds_table(over_seeds: SeedFront) -> Table:
    """A row a config on the front of the means: how many seeds, means with bands, how often it is on the front, parameters."""
    rows = [row for row in over_seeds.rows if row.on_front]
    names = list(dict.fromkeys(name for row in rows for name in row.params))
    table = Table(title=f"means over {over_seeds.seed}, with 95 % bands (bootstrap)", title_justify="left")
    table.add_column("seeds", justify="right")
    for objective in over_seeds.objectives:
        table.add_column(_heading(objective), justify="right", overflow="fold")
    for name in ("share on the front", *names):
        table.add_column(name, justify="right", overflow="fold")
    for row in rows:
        values = [_with_band(row.means[o.metric], row.intervals[o.metric]) for o in over_seeds.objectives]
        params = [short(row.params.get(name, "-")) for name in names]
        table.add_row(str(len(row.labels)), *values, f"{row.front_share:.0%}", *params)
    return table


def seeds_summary(over_seeds: SeedFront) -> str:
    """One sentence: how many configs, and the hypervolume of their means with its band."""
    num = sum(row.on_front for row in over_seeds.rows)
    volume = _with_band(over_seeds.hypervolume_median, over_seeds.hypervolume_interval)
    return f"{num} of {len(over_seeds.rows)} configs are on the front of the means; its hypervolume is {volume}"


def dominated_table(front: Front, limit: int) -> Table:
    """The dominated models that come first: the model of the front that beats each by most, and by how much."""
    rows = list(front.dominated[:limit])
    table = Table(title=_dominated_title(front, limit), title_justify="left")
    table.add_column("model", justify="right")
    table.add_column("beaten by", justify="right")
    for objective in front.objectives:
        table.add_column(f"{_heading(objective)} by", justify="right", overflow="fold")
    for row, beaten in zip(rows, front.beaten_by(rows), strict=True):
        if beaten is not None:
            better, gaps = beaten
            table.add_row(row.label, better.label, *(short(gaps[o.metric]) for o in front.objectives))
    return table


def _dominated_title(front: Front, limit: int) -> str:
    num = len(front.dominated)
    return "dominated" if num <= limit else f"dominated, {limit} of {num} (all with --json)"


def hypervolume_line(front: Front, reference: Mapping[str, float] | None) -> str:
    """The hypervolume, and the corner that it is measured from."""
    corner = front.reference if reference is None else reference
    if len(front.rows) and not corner:
        return "hypervolume: none, as an objective has no finite value; give a corner: --reference METRIC=NUMBER"
    told = ", ".join(f"{name}={short(value)}" for name, value in corner.items())
    why = "" if reference else " (a tenth worse than the worst; to compare studies, give one: --reference METRIC=NUMBER)"
    return f"hypervolume: {front.hypervolume(reference):.6g}, from {told or 'nothing'}{why}"


def _heading(objective: Objective) -> str:
    return f"{objective.metric} {'↓' if objective.goal == 'min' else '↑'}"


def _with_band(value: float, interval: tuple[float, float] | None) -> str:
    return short(value) if interval is None else f"{short(value)} [{short(interval[0])}, {short(interval[1])}]"
