"""Where a study's record is: an SQLite file in its home, or a database that many studies share on a PostgreSQL server."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import optuna
import sqlalchemy

from study.errors import UserError, causes
from study.home import StudyFolder, make_wal, write_whole
from study.running.trial_storage import TrialStorage
from study.settings import without_secrets
from study.spec import StudySpec

_CONNECTION = {
    "connect_timeout": 10,
    # a server whose host is gone is noticed in seconds, and so is, by the server, a driver that holds a lock there
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "options": "-c idle_in_transaction_session_timeout=60s -c tcp_keepalives_idle=30",
}


@dataclass(frozen=True, slots=True)
class RecordPlace:
    """A record's database.

    Attributes:
        url: as SQLAlchemy takes it.
        study_name: Optuna's, which no other study of that database has.
    """

    url: str
    study_name: str
    folder: StudyFolder

    @classmethod
    def of(cls, spec: StudySpec, folder: StudyFolder) -> Self:
        if spec.record is None:
            return cls(f"sqlite:///{folder.optuna_file}", spec.name, folder)
        return cls(spec.record, f"{spec.name}-{spec.study_id[:8]}", folder)

    @property
    def is_embedded(self) -> bool:
        return self.url.startswith("sqlite:")

    def open(self, directions: list[optuna.study.StudyDirection]) -> tuple[optuna.Study, TrialStorage]:
        """The record as an Optuna study, and what keeps it; made when it does not exist.

        Raises:
            UserError: if its server does not answer, does not let us in, or has lost the record.
        """
        with self.errors():
            storage = self._storage()
            if self.folder.record_file.exists():
                return self._again(storage), storage
            study = optuna.create_study(study_name=self.study_name, storage=storage, directions=directions, load_if_exists=True)
        if not self.is_embedded:
            write_whole(self.folder.record_file, json.dumps({"url": self.url, "study_name": self.study_name}))
        return study, storage

    def _again(self, storage: TrialStorage) -> optuna.Study:
        """The record of a study that has begun: made anew, it would have everything run again."""
        try:
            return optuna.load_study(study_name=self.study_name, storage=storage)
        except KeyError as error:
            raise UserError(
                f"a study's record must be in its database, but {without_secrets(self.url)} has none of {self.study_name!r}; put "
                "the database back, or `study fork` it"
            ) from error

    def _storage(self) -> TrialStorage:
        if not self.is_embedded:  # a server may have been restarted between two trials
            return TrialStorage(self.url, engine_kwargs={"pool_pre_ping": True, "connect_args": _CONNECTION})
        make_wal(self.folder.optuna_file)
        storage = TrialStorage(self.url, engine_kwargs={"connect_args": {"timeout": 60}})
        sqlalchemy.event.listen(storage.engine, "connect", _write_without_waiting)
        storage.engine.dispose()
        return storage

    def ended(self) -> set[int]:
        """Numbers of the trials whose end the record knows."""
        query = sqlalchemy.text(
            "SELECT number FROM trials JOIN studies USING (study_id) "
            "WHERE studies.study_name = :name AND state NOT IN ('RUNNING', 'WAITING')"
        )
        engine = sqlalchemy.create_engine(self.url)
        try:
            with self.errors(), engine.connect() as connection:
                return {int(number) for (number,) in connection.execute(query, {"name": self.study_name})}
        finally:
            engine.dispose()

    def delete(self) -> None:
        """Remove the study from a database that it shares; its file in the home goes with the home's folder."""
        if not self.is_embedded:
            with self.errors(), contextlib.suppress(KeyError):
                optuna.delete_study(study_name=self.study_name, storage=self._storage())

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Tell a server that fails from everything else that may end a session.

        Raises:
            UserError: if an error comes of the record's server, by however many others.
        """
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            lost = [cause for cause in causes(error) if isinstance(cause, sqlalchemy.exc.SQLAlchemyError)]
            if self.is_embedded or not lost:
                raise
            reason = " ".join(str(getattr(lost[-1], "orig", None) or lost[-1]).split()) or type(lost[-1]).__name__
            raise UserError(
                f"a study's record must answer and let us in, but {without_secrets(self.url)} does not ({reason}); see that it "
                "runs, that PGPASSWORD or ~/.pgpass has its password, then run the command again"
            ) from error


def _write_without_waiting(connection: Any, _: Any) -> None:
    """Survive SIGKILL at any instant, without a disk sync a commit; a power loss may cost the last seconds."""
    connection.execute("PRAGMA synchronous=NORMAL")
