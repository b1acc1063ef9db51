"""The services of a team, or the files in the study home that are in their place."""

import base64
import email.utils
import json
import os
import ssl
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from study.examining.findings import BROKEN, OK, WARNING, Finding, Places
from study.launch_checks import absolute_storage
from study.settings import check_record, refuse_secrets, without_secrets
from trainables.storage import Folder

_SECONDS = 8.0
_SKEW_SECONDS, _REFUSED_SKEW_SECONDS = 5.0, 300.0
"""S3 and Kerberos refuse whose clock is wrong by minutes."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What an HTTP server said.

    Attributes:
        skew_s: by how much its clock is ahead of ours; None if it does not say.
    """

    status: int
    text: str
    skew_s: float | None


def look_at_mlflow(places: Places) -> list[Finding]:
    """Whether MLflow answers, which version, and lets us read; or whether its database can be written."""
    uri = places.tracking_uri
    refuse_secrets("--tracking-uri", uri, "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
    if not uri.startswith(("http://", "https://")):
        return [_look_at_database(uri)]
    version = _ask(f"{uri.rstrip('/')}/version", headers=_credentials())
    question = json.dumps({"max_results": 1}).encode()
    listed = _ask(f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search", question, headers=_credentials())
    if listed.status in (401, 403):
        refusal = f"{uri} does not let us in (status {listed.status})"
        remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or add the host to the server's --allowed-hosts"
        return [Finding("MLflow", BROKEN, refusal, remedy)]
    if listed.status != 200:
        reason = f"{uri} answers with status {listed.status}"
        return [Finding("MLflow", BROKEN, reason, "see the server's log; is its database up, and is this MLflow?")]
    told = version.text.strip() if version.status == 200 else "of an unknown version"
    return [Finding("MLflow", OK, f"{uri} answers, {told}"), *_clock("MLflow's clock", listed.skew_s)]


def _look_at_database(uri: str) -> Finding:
    file = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///"):
        return Finding("MLflow", WARNING, f"{without_secrets(uri)} is not looked into", "name a server, http://host:5000")
    if not file.exists():
        return Finding("MLflow", OK, f"{file} will be made by the first launch")
    writable = os.access(file, os.W_OK)
    found = f"{file}" if writable else f"{file} cannot be written"
    return Finding("MLflow", OK if writable else BROKEN, found, "" if writable else f"chmod u+w {file}")


def look_at_record(places: Places) -> list[Finding]:
    """Whether the record's database lets us in, and make tables."""
    if places.record is None:
        return [Finding("record", OK, "a file of each study in the study home")]
    import sqlalchemy

    engine = sqlalchemy.create_engine(check_record(places.record), connect_args={"connect_timeout": int(_SECONDS)})
    shown = without_secrets(places.record)
    try:
        with engine.connect() as connection:
            allowed = connection.execute(sqlalchemy.text("SELECT has_schema_privilege(current_schema(), 'CREATE')")).scalar()
            version = connection.execute(sqlalchemy.text("SHOW server_version")).scalar()
    except sqlalchemy.exc.OperationalError as error:
        reason = str(error.orig).strip().splitlines()[0]
        remedy = "start it, and see that PGPASSWORD or ~/.pgpass has its password"
        return [Finding("record", BROKEN, f"{shown} does not let us in ({reason})", remedy)]
    finally:
        engine.dispose()
    if not allowed:
        remedy = "GRANT CREATE ON SCHEMA public TO its user, or make it the database's owner"
        return [Finding("record", BROKEN, f"{shown} does not let us make tables", remedy)]
    return [Finding("record", OK, f"{shown}, PostgreSQL {version}")]


def look_at_storage(places: Places) -> list[Finding]:
    """Whether a file can be written, read and removed where trials keep theirs."""
    refuse_secrets("--storage", places.storage, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    folder, name = Folder(absolute_storage(places.storage)), f"doctor-{uuid.uuid4().hex}"
    if folder.is_local and not Path(folder.address).exists():
        return [Finding("storage", OK, f"{folder.address} will be made by the first launch")]
    start = time.monotonic()
    folder.write(name, b"well")
    try:
        is_whole = folder.read(name) == b"well"
    finally:
        folder.delete(name)
    if not is_whole:
        return [Finding("storage", BROKEN, f"{folder.address} gives back something else", "mend it, or name another")]
    found = Finding("storage", OK, f"{folder.address} keeps files ({time.monotonic() - start:.2f} s for three requests)")
    return [found] if folder.is_local else [found, *_clock_of_s3(folder.address)]


def _clock_of_s3(address: str) -> list[Finding]:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "https://s3.amazonaws.com"
    if not address.startswith("s3://"):
        return []
    try:
        return _clock("S3's clock", _ask(endpoint).skew_s)
    except OSError:  # the storage keeps files all the same: its address has an endpoint of its own, or a proxy is between
        return []


def _ask(url: str, data: bytes | None = None, *, headers: Mapping[str, str] | None = None) -> _Answer:
    """What a server says, be it a refusal.

    Args:
        headers: such as credentials, which are for this server alone.

    Raises:
        OSError: if it says nothing.
    """
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **(headers or {})})
    before = time.time()
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS, context=ssl.create_default_context()) as answer:
            status, told, text = answer.status, answer.headers, answer.read(10_000).decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            status, told, text = error.code, error.headers, ""
    here = (before + time.time()) / 2
    date = email.utils.parsedate_to_datetime(told["Date"]).timestamp() if told["Date"] else None
    return _Answer(status, text, None if date is None else date + 0.5 - here)  # whole seconds, cut off


def _credentials() -> dict[str, str]:
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    name, word = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    plain = base64.b64encode(f"{name}:{word}".encode()).decode()
    return {"Authorization": f"Basic {plain}"} if name and word else {}


def _clock(what: str, skew_s: float | None) -> list[Finding]:
    return [] if skew_s is None else [clock(what, skew_s)]


def clock(what: str, skew_s: float) -> Finding:
    """Whether another clock goes as ours does."""
    if abs(skew_s) <= _SKEW_SECONDS:
        return Finding(what, OK, "goes as ours, within seconds")
    state = BROKEN if abs(skew_s) > _REFUSED_SKEW_SECONDS else WARNING
    ahead = "ahead of" if skew_s > 0 else "behind"
    return Finding(what, state, f"{abs(skew_s):.0f} s {ahead} ours", "set both by a time server: timedatectl set-ntp true")
