"""What is looked at, and what was found."""

from dataclasses import dataclass

from study.home import Home

OK, WARNING, BROKEN = "ok", "warning", "broken"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: it is called.
        state: OK; WARNING, with which studies run, but maybe not well; or BROKEN.
        found: in words.
        remedy: what to do; empty where all is well.
    """

    what: str
    state: str
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Places:
    """Where a new study would keep its things, and run.

    Attributes:
        record: None for a file in the home.
        address: of a cluster; None for this machine alone.
    """

    home: Home
    tracking_uri: str
    storage: str
    record: str | None
    address: str | None
