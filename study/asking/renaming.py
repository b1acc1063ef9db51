"""Metrics of somebody else's under our names: THEIRS=OURS."""

from collections.abc import Collection, Mapping
from difflib import get_close_matches

from study.errors import UserError


def require_names(given: Mapping[str, str], there: Collection[str]) -> None:
    """Refuse to rename what is not there, and names that are empty.

    Args:
        given: our name for a metric, by theirs.
        there: every metric that they have.

    Raises:
        UserError: if a name is refused.
    """
    if empty := {f"{theirs}={ours}" for theirs, ours in given.items() if not theirs or not ours}:
        raise UserError(f"a metric must be renamed as THEIRS=OURS, but got {listed(empty)}; write both names")
    missing = sorted(given.keys() - set(there))
    if missing:
        near = get_close_matches(missing[0], there, n=1)
        remedy = f"did you mean {near[0]!r}" if near else "see their names in MLflow"
        raise UserError(
            f"a metric must be there to be renamed, but got {listed(missing)}; there are "
            f"{listed(there) or 'no metrics'}; {remedy}"
        )


def our_names(there: Collection[str], given: Mapping[str, str]) -> dict[str, str]:
    """Our name for each metric that is there; its own unless it is given another.

    Raises:
        UserError: if two metrics would have one name.
    """
    names = {name: given.get(name, name) for name in there}
    ours = list(names.values())
    if twice := {name for name in ours if ours.count(name) > 1}:
        raise UserError(f"two metrics must not become one, but got {listed(twice)} twice; map one of them to another name")
    return names


def listed(names: Collection[str]) -> str:
    """For people, in order."""
    return ", ".join(sorted(names))
