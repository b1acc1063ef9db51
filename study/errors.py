"""What the user can mend."""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """A law that the caller broke, the value that broke it, and the remedy, in one sentence; exit status 2."""


_OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
_OF_A_DISK_TO_SQLITE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
"""Without room for its write-ahead log, SQLite says one of the last three."""


@contextmanager
def disk_errors(home: Path) -> Iterator[None]:
    """Tell a full or failing disk from everything else that may end a session.

    Args:
        home: whose databases SQLite's errors are about; it does not say.

    Raises:
        UserError: if an error comes of a disk, by however many others.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = _error_of_a_disk(error)
        if cause is None:
            raise
        place = os.path.dirname(cause.filename or "") if isinstance(cause, OSError) else ""
        raise UserError(
            f"a study must be able to write its files, but the disk of {place or home} takes no more ({cause}); make room there "
            "or mend it, then run the command again"
        ) from error


def _error_of_a_disk(error: BaseException | None) -> sqlite3.Error | OSError | None:
    """The newest one, among an error and all that it comes of."""
    for cause in causes(error):
        if isinstance(cause, sqlite3.Error) and getattr(cause, "sqlite_errorcode", 0) & 0xFF in _OF_A_DISK_TO_SQLITE:
            return cause
        if isinstance(cause, OSError) and cause.errno in _OF_A_DISK:
            return cause
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, then all that it comes of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
