"""The process that carries events from a study's outbox to MLflow, so that the control loop never waits for it.

    python -m study.writer STUDY_FOLDER SESSION

It lives as long as its standard input: the driver holds the other end, so the kernel closes it when the driver dies,
however it dies. Then the writer marks what the driver left open as interrupted, delivers the rest and ends.
"""

import fcntl
import json
import logging
import os
import select
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from study.errors import UserError
from study.outbox import Outbox
from study.spec import StudySpec

if TYPE_CHECKING:
    from study.tracking import StudyWriter

_POLL_SECONDS = 0.05
_MAX_WAIT_SECONDS = 30.0
_GIVE_UP_SECONDS = 120.0

logger = logging.getLogger("study.writer")


def main(folder: Path, session: int) -> int:
    """Deliver until the driver is gone and nothing is pending; print one JSON line when ready or refused."""
    logging.basicConfig(filename=folder / "writer.log", level=logging.INFO, format="%(asctime)s %(message)s")
    with (folder / "writer.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # the writer of a driver that died is still delivering
            print(json.dumps({"waiting": True}), flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        from study.tracking import StudyWriter  # MLflow takes seconds to import: not before the lock is ours

        spec = StudySpec.load(folder / "spec.json")
        outbox = Outbox(folder / "outbox.db")
        home = folder.parent.parent
        artifacts = f"{(home / 'mlartifacts').as_uri()}/{spec.name}" if spec.tracking_uri.startswith("sqlite:") else None
        try:
            writer = StudyWriter(
                outbox, name=spec.name, study_id=spec.study_id, tracking_uri=spec.tracking_uri, artifacts=artifacts
            )
        except UserError as error:
            print(json.dumps({"error": str(error)}), flush=True)
            return 2
        print(json.dumps({"ready": os.getpid()}), flush=True)
        _serve(writer, outbox, session)
    return 0


def _serve(writer: "StudyWriter", outbox: Outbox, session: int) -> None:
    driver_lives, wait, failing_since = True, _POLL_SECONDS, None
    while True:
        if driver_lives and select.select([sys.stdin], [], [], wait)[0] and not os.read(sys.stdin.fileno(), 1):
            driver_lives = False
            outbox.close_session(session)
        try:
            num_delivered = writer.deliver()
            wait, failing_since = _POLL_SECONDS, None
        except Exception as error:  # MLflow down, slow or full: nothing is lost, it is tried again
            logger.warning("could not deliver: %s", error)
            num_delivered = 0
            failing_since = failing_since or time.monotonic()
            wait = min(2 * wait, _MAX_WAIT_SECONDS)
            if not driver_lives and time.monotonic() - failing_since > _GIVE_UP_SECONDS:
                logger.warning("gives up; the next resume delivers the rest")
                return
        if not driver_lives:
            if num_delivered == 0 and failing_since is None:
                return
            time.sleep(wait if failing_since else 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
