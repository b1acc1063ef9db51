"""A Ray cluster's job server, asked over HTTP: every way in which it does not answer is one sentence."""

import contextlib
import functools
import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from study.errors import UserError
from study.settings import refuse_secrets

_PROBE_SECONDS = 10.0
_ANSWER_SECONDS = 60.0
_AGENT_SECONDS = 60.0
_CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.authentication.http_token_authentication",
    "ray._private.runtime_env.packaging",
)
_OF_RAY = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


class LostServer(UserError):
    """Nothing answers at the job server's address any more, or does not yet."""


def is_job_server(address: str | None) -> bool:
    """Whether an address is one of a job server: http:// or https://."""
    return address is not None and address.startswith(("http://", "https://"))


class JobServer:
    """The job server of a cluster.

    Args:
        address: `http://head:8265`, or https.

    Raises:
        UserError: if none answers there, it does not let us in, or the address holds a password.
    """

    def __init__(self, address: str) -> None:
        refuse_secrets("--address", address, "write it into ~/.netrc")
        self.address = address.rstrip("/")
        self._verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE") or True
        with _without(_OF_RAY), self._answers():  # they would be taken instead of the address
            self._client = self._connect()

    def submit(
        self, job: str, words: Sequence[str], *, folder: Path, metadata: dict[str, str], say: Callable[[str], Any]
    ) -> None:
        """Have the cluster run a command.

        Args:
            job: its identifier, not used before.
            words: of the command; the shell that Ray runs it by takes none of them for its syntax.
            folder: with the code.
            say: told when it has to wait.
        """
        environment = {"working_dir": str(folder), "env_vars": {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}}
        ask = functools.partial(
            self._client.submit_job,
            entrypoint=shlex.join(words),
            submission_id=job,
            runtime_env=environment,
            metadata=metadata,
        )
        deadline, is_told = time.monotonic() + _AGENT_SECONDS, False
        while True:
            try:
                with self._answers():
                    ask()
                return
            except _NoAgentYetError:
                if time.monotonic() > deadline:
                    raise
            if not is_told:
                say(f"{self.address} takes no jobs yet; trying for {_AGENT_SECONDS:g} s")
                is_told = True
            time.sleep(2.0)

    def info(self, job: str) -> Any:
        """How a job stands: Ray's `JobDetails`."""
        with self._answers():
            return self._client.get_job_info(job)

    def jobs(self) -> list[Any]:
        """The `JobDetails` of all jobs that were sent to the cluster since it was started."""
        with self._answers():
            return list(self._client.list_jobs())

    def log(self, job: str) -> str:
        """All that a job has printed."""
        with self._answers():
            return str(self._client.get_job_logs(job))

    def kill(self, job: str) -> None:
        """End a job that has not begun its study; one that has is stopped by `study stop`."""
        with self._answers():
            self._client.stop_job(job)

    def forget(self, job: str) -> None:
        """Take a job that is over off the cluster's list."""
        with contextlib.suppress(UserError), self._answers():
            self._client.delete_job(job)

    def _connect(self) -> Any:
        """Ray's own client, after a look whether it would find what it expects: it waits without end, and trusts any answer."""
        import requests
        from ray.job_submission import JobSubmissionClient

        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.ERROR)
        answer = requests.get(f"{self.address}/api/version", timeout=_PROBE_SECONDS, verify=self._verify)
        if answer.status_code not in (401, 403) and "ray_version" not in answer.text:
            raise LostServer(
                f"a Ray cluster's job server must be at --address, but {self.address} is something else (status "
                f"{answer.status_code}); use the address of the head's dashboard, http://head:8265"
            )
        client = JobSubmissionClient(self.address, verify=self._verify)
        patient = functools.partial(client._do_request, timeout=_ANSWER_SECONDS)  # it has no setting for that
        client._do_request = patient  # type: ignore[method-assign]
        return client

    @contextlib.contextmanager
    def _answers(self) -> Iterator[None]:
        """Tell in words why the server does not do what it is asked."""
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            raise UserError(
                f"a cluster's job server must let us in, but {self.address} does not ({_first_line(error).split('. ')[0]}); set "
                "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, to the token that its nodes have"
            ) from error
        except requests.exceptions.SSLError as error:
            if "CERTIFICATE" not in str(error):
                raise UserError(
                    f"a job server at an https:// address must speak TLS, but {self.address} does not; use http://, or the "
                    "address of the proxy in front of it"
                ) from error
            raise UserError(
                f"a job server's certificate must be one that this machine trusts, but that of {self.address} is not; set "
                "REQUESTS_CA_BUNDLE to the file of its authority"
            ) from error
        except (requests.exceptions.RequestException, ConnectionError) as error:
            raise LostServer(
                f"a Ray cluster's job server must answer at --address, but {self.address} does not ({type(error).__name__}); "
                "start the head with --include-dashboard=true and --dashboard-host, or forward its port: ssh -L "
                "8265:localhost:8265 HEAD"
            ) from error
        except RuntimeError as error:
            raise _in_words(error, self.address) from error


class _NoAgentYetError(LostServer):
    """The head is up, and its agent, which starts the jobs, is not."""


def _in_words(error: RuntimeError, address: str) -> UserError:
    text = str(error)
    if "No available agent" in text:
        return _NoAgentYetError(
            f"a cluster must take jobs, but {address} has no agent that starts them (after {_AGENT_SECONDS:g} s); see that "
            "it has ray[default], and whether another Ray on the head has the agent's port: "
            "ray start --dashboard-agent-listen-port 52400"
        )
    if "does not exist" in text:
        return UserError(
            f"a job must be known to its cluster, but {address} knows it no longer ({_first_line(error)}); was it started anew? "
            "`study resume` goes on with a study whose home is still there"
        )
    return UserError(f"a cluster's job server must do as it is asked, but {address} does not ({_last_line(error)}); see its logs")


@contextlib.contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _last_line(error: Exception) -> str:
    return next(reversed(str(error).strip().splitlines()), type(error).__name__)
