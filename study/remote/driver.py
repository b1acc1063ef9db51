"""In a job on a cluster: run a command of `study` with the code that came along.

    python -m study.remote.driver NAME JOB ARGUMENT...

Runs `study ARGUMENT...`. It imports no installed package before it has seen that all of them are there.
"""

import os
import socket
import sys
import threading
from collections.abc import Sequence

from study.errors import UserError
from study.remote.shipped import lacking, shipped_code, shipped_diff, version_differences

LIVES = ("launch", "fork", "resume", "extend")
"""Commands that run a study; the others look at it or stop it."""

_POLL_S = 0.2


def main(name: str, job: str, arguments: Sequence[str]) -> None:
    """Compare versions, then run the command; once it runs its study, say so and keep the code's diff with it."""
    is_life = arguments[0] in LIVES
    try:
        _check_packages(is_life=is_life)
    except UserError as error:
        sys.exit(_refusal(error))
    if is_life:
        threading.Thread(target=_announce, args=(name, job), daemon=True).start()
    from study.cli import main as command

    sys.argv = ["study", *arguments]
    command()


def begun_line(name: str) -> str:
    """How the line begins with which a driver says that it has refused nothing and runs its study."""
    return f"{name} runs on "


def _check_packages(*, is_life: bool) -> None:
    shipped = shipped_code()
    if shipped is None:
        return
    if missing := lacking(shipped):
        raise UserError(
            f"a cluster must have the packages that a study needs, but the python of {socket.gethostname()} ({sys.executable}) "
            f"lacks {', '.join(missing)}; use the image of deploy/, or install them on every node"
        )
    if is_life and (differences := version_differences(shipped)):
        print(f"note: the cluster has {', '.join(differences)}", flush=True)


def _refusal(error: UserError) -> int:
    print(f"study: {error}", file=sys.stderr)
    return 2


def _announce(name: str, job: str) -> None:
    """Wait until this process runs the study, then say so."""
    from study.home import Home

    folder, ended = Home().study(name), threading.Event()
    while not ended.wait(_POLL_S):
        holder = folder.holder()
        if folder.exists() and holder and holder["pid"] == os.getpid() and holder.get("begun", True):
            break
    print(f"{begun_line(name)}{socket.gethostname()} as process {os.getpid()}", flush=True)
    _keep_diff(name, job)


def _keep_diff(name: str, job: str) -> None:
    """Keep with the study, in its home and in its storage, what its code is beyond its commit."""
    from study.home import Home
    from study.spec import StudySpec
    from trainables.storage import Folder

    diff = shipped_diff()
    if not diff:
        return
    folder = Home().study(name)
    places = (Folder(folder.path / "code"), StudySpec.load(folder.spec_file).study_folder.child("code"))
    for place in places:
        try:
            place.write(f"{job}.diff", diff)
        except OSError as error:
            print(f"note: the diff of the code could not be kept in {place.address} ({error})", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
