"""Who runs a study, said in its storage: the kernel's lock (`study.home`) holds on one host, a storage is seen by many.

A home that was copied has the same study in it twice, and two hosts would run the same trials over each other's files.
"""

import contextlib
import json
import os
import socket
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from study.errors import UserError
from trainables.storage import Folder

LEASE = "lease.json"
RENEW_S = 10.0
EXPIRE_S = 60.0
"""Of a session that was killed with its host, or cannot reach the storage: so long others wait for it."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """A session that runs a study.

    Attributes:
        home: the study home that it runs it from: sessions of one host and one home are told apart by the kernel's lock.
    """

    host: str
    pid: int | str
    home: str

    @classmethod
    def here(cls, home: str) -> Self:
        """This process."""
        return cls(socket.gethostname(), os.getpid(), home)

    def is_neighbour(self, other: "Tenant") -> bool:
        """Whether the kernel's lock decides between the two."""
        return (self.host, self.home) == (other.host, other.home)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (from {self.home})"


_UNREADABLE = Tenant("unknown", "unknown", "unknown")


class StorageLease:
    """Holds a study's storage while this context is open, and renews the lease behind the run's back.

    A lease's age is told by the storage's own clock, never by two hosts' clocks. A storage that fails for a while fails no
    run: what was not renewed now is renewed later.

    Args:
        folder: the study's, in its storage.
        name: of the study.
        home: that it is run from.
        on_lost: called once, from another thread, with who runs the study instead: after this session was thought dead, or
            when two began at the same instant.
    """

    def __init__(self, folder: Folder, *, name: str, study_id: str, home: str, on_lost: Callable[[Tenant], None]) -> None:
        self._folder = folder
        self._name = name
        self._study_id = study_id
        self._me = Tenant.here(home)
        self._on_lost = on_lost
        self._num_renewed = 0
        self._ended = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True, name="storage lease")

    def __enter__(self) -> Self:
        """Take the lease.

        Raises:
            UserError: naming the session that holds it, or if the storage fails.
        """
        try:
            self._refuse_others()
            self._renew()
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"the storage must say who runs a study, but {self._folder.address} does not ({error}); mend it, or name another "
                "with --storage"
            ) from error
        self._keeper.start()
        return self

    def _refuse_others(self) -> None:
        other = self._holder()
        if other is None or other.is_neighbour(self._me):
            return
        age_s = self._age_s()
        if age_s is not None and age_s < EXPIRE_S:
            raise UserError(
                f"a study must be run by one process at a time, but {self._name!r} is being run by {other}, as "
                f"{self._folder.address} was told {max(age_s, 0):.0f} s ago; wait for it, or {EXPIRE_S:g} s if it is gone"
            )

    def _holder(self) -> Tenant | None:
        try:
            fields: dict[str, Any] = json.loads(self._folder.read(LEASE))
            return Tenant(fields["host"], fields["pid"], fields["home"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            return _UNREADABLE

    def _age_s(self) -> float | None:
        """Seconds since the lease was renewed; None if it is gone. A file that is written now tells the storage's time."""
        clock = f"clock-{uuid.uuid4().hex}"
        self._folder.write(clock, b"")
        try:
            written = self._folder.modified_ns()
        finally:
            self._folder.delete(clock)
        return (written[clock] - written[LEASE]) / 1e9 if LEASE in written else None

    def _keep(self) -> None:
        while not self._ended.wait(RENEW_S):
            with contextlib.suppress(Exception):  # the storage may be back in ten seconds
                other = self._holder()
                if other is None or other == _UNREADABLE or other.is_neighbour(self._me):
                    self._renew()
                else:
                    self._on_lost(other)
                    return

    def _renew(self) -> None:
        self._num_renewed += 1
        fields = {"host": self._me.host, "pid": self._me.pid, "home": self._me.home}
        fields |= {"study_id": self._study_id, "renewed": self._num_renewed}
        self._folder.write(LEASE, json.dumps(fields).encode())

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._keeper.join(RENEW_S)
        if self._keeper.is_alive():  # the storage hangs: the lease expires by itself
            return
        with contextlib.suppress(Exception):
            if self._holder() == self._me:
                self._folder.delete(LEASE)
