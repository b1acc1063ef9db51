"""Where a new study keeps its things, unless its launch says otherwise: three settings of the environment."""

import importlib.util
import os
from urllib.parse import parse_qsl, urlencode, urlsplit

from study.errors import UserError

TRACKING_URI = "STUDY_TRACKING_URI"
"""MLflow's address; without it a database in the study home."""
STORAGE = "STUDY_STORAGE"
"""Checkpoints, models and logs: a folder that all nodes see, or s3://bucket/prefix; without it a folder in the study home."""
RECORD = "STUDY_RECORD"
"""Optuna's database on a PostgreSQL server; without it an SQLite file in the study home."""

_DRIVER = "postgresql+psycopg"
_SECRET_KEYS = {"password", "sslpassword", "passwd", "secret_key"}
_SCHEMES = ("postgresql", "postgres", _DRIVER)


def setting(name: str) -> str | None:
    """What the environment says, or None."""
    return os.environ.get(name) or None


def check_record(address: str) -> str:
    """The address of a record's database as SQLAlchemy takes it.

    Raises:
        UserError: if it is no PostgreSQL database, holds a password, or the driver is not installed.
    """
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise UserError(
            f"a record's database must be an address, but got {address!r} ({error}); try postgresql://u@h/d"
        ) from error
    if parts.scheme not in _SCHEMES or not parts.path.strip("/"):
        raise UserError(
            f"a record's database must be given as postgresql://user@host/database, but got {without_secrets(address)!r}; leave "
            "--record out for a file in the study home"
        )
    refuse_secrets("--record", address, "set PGPASSWORD, or write it into ~/.pgpass")
    if importlib.util.find_spec("psycopg") is None:
        raise UserError(
            f"a record on PostgreSQL needs the package psycopg, but it is not installed for {address!r}; run: "
            "pip install 'narrow-study[team]'"
        )
    return f"{_DRIVER}://{address.partition('://')[2]}"


def refuse_secrets(option: str, address: str, remedy: str) -> None:
    """Refuse a password in an address: addresses are kept in plain files, shown by queries and by `ps`.

    Raises:
        UserError: without the password.
    """
    if without_secrets(address) != address:
        raise UserError(
            f"{option} must hold no password, since it is kept and shown, but got {without_secrets(address)}; {remedy}"
        )


def without_secrets(address: str) -> str:
    """The same address, with stars for its passwords."""
    parts = urlsplit(address)
    if "://" not in address:
        return address
    if parts.password is not None:
        user, _, place = parts.netloc.rpartition("@")
        parts = parts._replace(netloc=f"{user.partition(':')[0]}:***@{place}")
    query = parse_qsl(parts.query, keep_blank_values=True)
    if any(key in _SECRET_KEYS for key, _ in query):
        shown = [(key, "***" if key in _SECRET_KEYS else value) for key, value in query]
        parts = parts._replace(query=urlencode(shown, safe="*/:"))
    return parts.geturl() if parts != urlsplit(address) else address
