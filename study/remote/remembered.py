"""What this machine remembers of studies that run on a cluster: where each is, so that its name is enough afterwards.

$STUDY_HOME/remote/NAME.json
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from study.errors import UserError
from study.home import Home, StudyFolder, check_name, write_whole


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteStudy:
    """A study on a cluster, as it is known on the machine that launched it.

    Attributes:
        address: of the cluster's job server, `http://head:8265`.
        space: `module:function`; empty if it was launched from elsewhere.
        folder: on this machine, of the user's own modules.
        tracking_uri: of its MLflow server, if one was named that this machine may reach, too.
    """

    name: str
    address: str
    space: str = ""
    folder: str = ""
    tracking_uri: str | None = None

    @classmethod
    def load(cls, name: str, home: Home) -> Self | None:
        """What is remembered of a study, or None."""
        try:
            fields = json.loads(_file(home, name).read_text())
        except FileNotFoundError:
            return None
        return cls(**fields)

    def save(self, home: Home) -> None:
        """Remember it.

        Raises:
            UserError: if the home cannot be written.
        """
        file = _file(home, self.name)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps(dataclasses.asdict(self), indent=2))
        except OSError as error:
            raise UserError(
                f"the study home must be a folder that can be written, but {file.parent} is not ({error}); make room there, or "
                "set STUDY_HOME to one that is"
            ) from error

    def forget(self, home: Home) -> None:
        """Have it remembered no longer."""
        _file(home, self.name).unlink(missing_ok=True)


def remote_studies(home: Home) -> list[RemoteStudy]:
    """All that are remembered, by name."""
    found = (RemoteStudy.load(file.stem, home) for file in sorted((home.path / "remote").glob("*.json")))
    return [study for study in found if study is not None]


def refuse_taken_name(folder: StudyFolder, *, is_remote: bool) -> None:
    """Refuse to begin a study here whose name means one on a cluster already, or the other way round.

    Raises:
        UserError: saying how to go on with that one.
    """
    name, remote = folder.name, RemoteStudy.load(folder.name, folder.home)
    if is_remote and folder.exists() and remote is None:
        raise UserError(
            f"a study's name must mean one study, but {name!r} is on this machine and not on a cluster; choose another name, or "
            f"go on with that one: study resume {name}"
        )
    if not is_remote and remote is not None and not folder.exists():
        raise UserError(
            f"a study's name must mean one study, but {name!r} is on the cluster of {remote.address}; choose another name, go on "
            f"with that one: study resume {name}, or forget it: rm {_file(folder.home, name)}"
        )


def _file(home: Home, name: str) -> Path:
    return home.path / "remote" / f"{check_name(name)}.json"
