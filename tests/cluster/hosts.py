"""Several hosts on this machine: network namespaces joined by a bridge; where that is not allowed, processes on loopback.

Each host has an address, a folder (its HOME and STUDY_HOME) and processes of its own, and shares nothing with the others by
accident but the installed packages. A test reaches them by their addresses.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_PREFIX = "study"
_MARK = "STUDY_TEST_HOST"
_SECONDS_TO_END = 10
_AS = ("setpriv", "--init-groups")  # in the same process, where runuser makes another


@dataclass
class Host:
    """A host: processes with a network, a folder and an environment of their own.

    Attributes:
        address: where the others find it.
        folder: its HOME; short, since the paths of Ray's sockets must be.
        namespace: its network's name; None on loopback.
        environment: of all that is run on it, beside this process's.
    """

    name: str
    address: str
    folder: Path
    namespace: str | None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def study_home(self) -> Path:
        return self.folder / "home"

    @property
    def is_real(self) -> bool:
        """Whether it has a network of its own, that can be cut."""
        return self.namespace is not None

    def command(self, *words: object, user: str | None = None) -> list[str]:
        """What runs a command on this host."""
        inside = [] if self.namespace is None else ["ip", "netns", "exec", self.namespace]
        return [*inside, *([*_AS, f"--reuid={user}", f"--regid={user}"] if user else []), *map(str, words)]

    def variables(self) -> dict[str, str]:
        """The environment of a command that is run here."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "AWS_", "STUDY_", "PG"))}
        own = {"HOME": str(self.folder), "STUDY_HOME": str(self.study_home), _MARK: str(self.folder)}
        return clean | {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"} | own | self.environment

    def start(self, *words: object, user: str | None = None, log: Path | None = None, **options) -> subprocess.Popen:
        """Start a command in a session of its own.

        Args:
            log: takes what it prints; None where `options` say otherwise.
        """
        with contextlib.ExitStack() as stack:
            if log is not None:
                file = stack.enter_context(log.open("a"))
                options |= {"stdout": file, "stderr": file, "stdin": subprocess.DEVNULL}
            cwd = {"cwd": self.folder} | options
            return subprocess.Popen(self.command(*words, user=user), env=self.variables(), start_new_session=True, **cwd)

    def run(self, *words: object, user: str | None = None, timeout: float = 120, **options) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; its failure is the test's, with all that it said."""
        cwd = {"cwd": self.folder} | options
        result = subprocess.run(
            self.command(*words, user=user), env=self.variables(), capture_output=True, text=True, timeout=timeout, **cwd
        )
        assert result.returncode == 0, f"{words}: {result.stdout}{result.stderr}"
        return result

    def processes(self) -> list[psutil.Process]:
        """Whatever runs on it."""
        if self.namespace is None:
            return [process for process in psutil.process_iter() if _environment_of(process).get(_MARK) == str(self.folder)]
        found = []
        for pid in _ip("netns", "pids", self.namespace).split():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
        return found

    def cut(self) -> None:
        """Cut it off the network, with nobody told; on loopback its processes stop, which looks the same to the others."""
        if self.namespace is not None:
            _ip("-n", self.namespace, "link", "set", "eth0", "down")
            return
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP)

    def forbid(self, other: "Host") -> None:
        """Let nothing from here reach another host; on loopback it cannot be forbidden."""
        if self.namespace is not None:
            _ip("-n", self.namespace, "route", "add", "blackhole", f"{other.address}/32")

    def kill(self) -> None:
        """Kill whatever runs on it."""
        for _ in range(3):  # whom a process has started meanwhile
            found = self.processes()
            for process in found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(found, timeout=_SECONDS_TO_END)


def _environment_of(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=30).stdout


@contextlib.contextmanager
def hosts(*names: str) -> Iterator[dict[str, Host]]:
    """Hosts by their names; everything that runs on them ends with the context, also when the test is told to end."""
    folder = Path(tempfile.mkdtemp(prefix="team", dir="/tmp"))
    folder.chmod(0o755)  # a database runs as somebody else
    with _ending_when_told(), contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        _bury_the_dead()
        try:
            made = stack.enter_context(_joined(names, folder))
        except (OSError, subprocess.SubprocessError) as error:
            print(f"no network namespaces here ({error}): the hosts are processes on loopback", file=sys.stderr)
            made = [Host(name, "127.0.0.1", folder / name, None) for name in names]
        for host in made:
            host.study_home.mkdir(parents=True)
            host.folder.chmod(0o755)
            stack.callback(host.kill)
        yield {host.name: host for host in made}


@contextlib.contextmanager
def _joined(names: Sequence[str], folder: Path) -> Iterator[list[Host]]:
    """A namespace for each host, and a bridge between them that this process reaches them by."""
    if shutil.which("ip") is None or os.geteuid():
        raise OSError("that takes root and iproute2")
    tag, subnet = secrets.token_hex(2), _free_subnet()
    bridge = f"{_PREFIX}{tag}"  # names of interfaces have 15 letters
    with contextlib.ExitStack() as stack:
        _ip("link", "add", bridge, "type", "bridge")
        stack.callback(_try_ip, "link", "del", bridge)
        _ip("addr", "add", f"{subnet}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        found = []
        for number, name in enumerate(names, 2):
            namespace, cable = f"{_PREFIX}-{os.getpid()}-{tag}-{name}", f"{bridge}-{number}"
            _ip("netns", "add", namespace)
            stack.callback(_try_ip, "netns", "del", namespace)
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", namespace)
            _ip("link", "set", cable, "master", bridge, "up")
            _ip("-n", namespace, "addr", "add", f"{subnet}.{number}/24", "dev", "eth0")
            for interface in ("lo", "eth0"):
                _ip("-n", namespace, "link", "set", interface, "up")
            found.append(Host(name, f"{subnet}.{number}", folder / name, namespace))
        yield found


def _free_subnet() -> str:
    taken = _ip("-o", "addr")
    return next(subnet for number in range(1, 255) if (subnet := f"10.77.{number}") + "." not in taken)


def _try_ip(*words: str) -> None:
    with contextlib.suppress(subprocess.SubprocessError):
        _ip(*words)


def _bury_the_dead() -> None:
    """Remove hosts that a test left which was killed itself: their names say which process it was."""
    if shutil.which("ip") is None or os.geteuid():
        return
    for line in _ip("netns", "list").splitlines():
        name = line.partition(" ")[0]
        prefix, _, rest = name.partition("-")
        pid, _, rest = rest.partition("-")
        if prefix == _PREFIX and pid.isdigit() and not psutil.pid_exists(int(pid)):
            Host(name, "", Path(), name).kill()
            _try_ip("netns", "del", name)
            _try_ip("link", "del", f"{_PREFIX}{rest.partition('-')[0]}")


@contextlib.contextmanager
def _ending_when_told() -> Iterator[None]:
    """Inside, SIGTERM unwinds as Ctrl-C does."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def wait_until(
    condition: Callable[[], bool], what: str, *, process: subprocess.Popen | None = None, timeout: float = 120
) -> None:
    """Wait for something, at most `timeout` seconds, and as long as a process lives that it depends on."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert process is None or process.poll() is None, f"died while a test waited for {what}: {process.args}"
        assert time.monotonic() < deadline, f"waited {timeout} s for {what}"
        time.sleep(0.3)


def answers(url: str) -> bool:
    """Whether an HTTP server answers, be it with a refusal."""
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
