import contextlib
import errno
import sqlite3
from pathlib import Path

import pytest

from study.errors import UserError, disk_errors

HOME = Path("/somewhere/home")


def fill_a_database():
    """A database that may have no more pages says what it says on a full disk."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("PRAGMA max_page_count = 1")
        connection.execute("CREATE TABLE event (payload TEXT)")


def test_a_full_database_is_one_sentence_that_names_the_home():
    law = "a study must be able to write its files, but the disk of /somewhere/home takes no more"
    with pytest.raises(UserError, match=rf"^{law} \(database or disk is full\); make room there"), disk_errors(HOME):
        fill_a_database()


def test_what_other_libraries_make_of_it_is_the_same():
    with pytest.raises(UserError, match="database or disk is full"), disk_errors(HOME):
        try:
            fill_a_database()
        except sqlite3.Error as error:
            raise RuntimeError("could not commit") from error


def test_what_a_context_says_that_closes_on_it_is_the_same():
    with pytest.raises(UserError, match="database or disk is full"), disk_errors(HOME), contextlib.ExitStack() as stack:
        stack.callback(lambda: 1 / 0)
        fill_a_database()


def test_a_file_says_where_it_has_no_room():
    with pytest.raises(UserError, match=r"but the disk of /tmp takes no more \(\[Errno 28\]"), disk_errors(HOME):
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/scratch")
    with pytest.raises(UserError, match="but the disk of /somewhere/home takes"), disk_errors(HOME):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "error", [UserError("x"), FileNotFoundError(errno.ENOENT, "x"), sqlite3.ProgrammingError("x"), KeyError()]
)
def test_every_other_error_stays_what_it_is(error):
    with pytest.raises(type(error)) as raised, disk_errors(HOME):
        raise error
    assert raised.value is error


def test_a_mistake_of_ours_in_sql_is_no_fault_of_the_disk():
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        with pytest.raises(sqlite3.OperationalError, match="no such table"), disk_errors(HOME):
            connection.execute("SELECT * FROM trials")
