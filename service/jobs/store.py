"""The SQLite database of jobs, which loses nothing that was acknowledged, and the server's side of it."""

import contextlib
import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from sqlite3 import Connection, Row
from typing import Any, Final

from retrieval.artefact import storage_errors
from retrieval.errors import SightfixError, StorageError, counted
from service.answer import Problem
from service.jobs.model import (
    FINISHED,
    Job,
    JobFailure,
    JobFailurePage,
    JobPage,
    JobProgress,
    JobRequest,
    JobResult,
    JobState,
)
from service.jobs.settings import JobSettings
from service.problems import RequestError

SCHEMA_VERSION: Final = 1
_BUSY_TIMEOUT_S: Final = 10.0
IDEMPOTENCY_S: Final = 24 * 3600.0
_WAITING: Final = "state = 'PENDING'"
_UNFINISHED: Final = "state IN ('PENDING', 'RUNNING', 'PUBLISHING', 'CANCELLING')"

_SCHEMA: Final = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    index_name TEXT NOT NULL,
    state TEXT NOT NULL,
    request TEXT NOT NULL,
    idempotency_key TEXT UNIQUE,
    created_at REAL NOT NULL,
    started_at REAL,
    finished_at REAL,
    done INTEGER NOT NULL DEFAULT 0,
    total INTEGER,
    failed INTEGER NOT NULL DEFAULT 0,
    skipped INTEGER NOT NULL DEFAULT 0,
    rate_per_s REAL,
    waiting_for TEXT,
    deaths INTEGER NOT NULL DEFAULT 0,
    update_made TEXT,
    error TEXT
);
CREATE INDEX jobs_by_state ON jobs (state, number);
CREATE TABLE failures (
    job INTEGER NOT NULL REFERENCES jobs (number) ON DELETE CASCADE,
    path TEXT NOT NULL,
    code TEXT NOT NULL,
    reason TEXT NOT NULL,
    remedy TEXT,
    PRIMARY KEY (job, path, code)
);
CREATE TABLE worker (one INTEGER PRIMARY KEY CHECK (one = 1), pid INTEGER NOT NULL, beat INTEGER NOT NULL);
"""


class JobDatabase:
    """One connection, used by one thread at a time; other processes may have theirs.

    Every change is on the disk when its transaction ends (WAL with ``synchronous=FULL``).

    Args:
        path: of the file; made if need be.
        indexes: the folder of the jobs' place indexes.

    Raises:
        StorageError: the file cannot be opened or written, is damaged, of a later format, or of other indexes.
    """

    def __init__(self, path: Path, indexes: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        with storage_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._errors():
            self._connection = sqlite3.connect(
                path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            self._connection.row_factory = sqlite3.Row
            _use_wal(self._connection)
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.execute("PRAGMA foreign_keys=ON")
        try:
            self._prepare(indexes)
        except StorageError:
            self._connection.close()
            raise

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Change something: all of it or nothing, on the disk when the block ends.

        Raises:
            StorageError: the disk is full or refuses, or the file is damaged.
        """
        with self._lock, self._errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.rollback()
                raise
            self._connection.commit()

    def read(self, query: str, parameters: tuple[Any, ...] = ()) -> list[sqlite3.Row]:
        """The rows that a query finds."""
        with self._lock, self._errors():
            return self._connection.execute(query, parameters).fetchall()

    def close(self) -> None:
        """Close the connection; the object cannot be used afterwards."""
        with self._lock:
            self._connection.close()

    def _prepare(self, indexes: Path) -> None:
        with self.transaction() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise StorageError(
                    f"the database of jobs has format {version}, this sightfix reads {SCHEMA_VERSION}",
                    where=str(self._path),
                    remedy="Install the sightfix that wrote it, or give another jobs folder",
                    code="jobs_format",
                )
            if version == 0:
                for statement in filter(None, (part.strip() for part in _SCHEMA.split(";"))):
                    connection.execute(statement)
                connection.execute("INSERT INTO settings VALUES ('indexes', ?)", (str(indexes.resolve()),))
                connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            row = connection.execute("SELECT value FROM settings WHERE name = 'indexes'").fetchone()
            if row["value"] != str(indexes.resolve()):
                raise StorageError(
                    f"these jobs are for the indexes in {row['value']}, not for those in {indexes.resolve()}",
                    where=str(self._path),
                    remedy="Give each folder of indexes a jobs folder of its own",
                    code="jobs_of_other_indexes",
                )

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageError(
                f"the database of jobs failed ({error})",
                where=str(self._path),
                remedy="Check that its disk has room and can be written; move it away if it is damaged",
            ) from error


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to WAL. SQLite does not wait by itself where two processes do this at once with a new file."""
    deadline = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def job_of(row: Row) -> Job:
    """A row of the table of jobs as a job."""
    running = row["state"] in ("RUNNING", "PUBLISHING")
    rate = row["rate_per_s"] if running else None
    left = max(0, row["total"] - row["done"]) if row["total"] is not None else None
    return Job(
        id=row["id"],
        kind=row["kind"],
        index=row["index_name"],
        state=row["state"],
        request=json.loads(row["request"]),
        progress=JobProgress(
            done=row["done"],
            total=row["total"],
            failed=row["failed"],
            skipped=row["skipped"],
            rate_per_s=rate,
            eta_s=left / rate if rate and left is not None else None,
        ),
        waiting_for=row["waiting_for"] if row["state"] == "PENDING" else None,
        created_at=_time(row["created_at"]),
        started_at=_time(row["started_at"]) if row["started_at"] is not None else None,
        finished_at=_time(row["finished_at"]) if row["finished_at"] is not None else None,
        result=JobResult.model_validate_json(row["update_made"]) if row["state"] == "SUCCEEDED" else None,
        error=Problem.model_validate_json(row["error"]) if row["error"] else None,
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


class JobStore:
    """Jobs as clients see them.

    Args:
        settings: where the database is, and how much it keeps.

    Raises:
        StorageError: any call may, when the database fails.
    """

    def __init__(self, settings: JobSettings) -> None:
        self.settings = settings
        self._database = JobDatabase(settings.database, settings.indexes)

    def submit(self, request: JobRequest, idempotency_key: str | None = None) -> tuple[Job, bool]:
        """Accept a job; when this returns it is on the disk.

        Returns:
            The job, and whether it is new. The same key with the same request gives the job it gave before.

        Raises:
            RequestError: the key was used for another request within a day (``idempotency_conflict``), or too many
                jobs wait (``queue_full``).
        """
        text = request.model_dump_json()
        with self._database.transaction() as connection:
            now = time.time()
            known = _job_of_key(connection, idempotency_key, text, now)
            if known is not None:
                return job_of(known), False
            self._check_room(connection)
            job_id = f"job-{secrets.token_hex(8)}"
            connection.execute(
                "INSERT INTO jobs (id, kind, index_name, state, request, idempotency_key, created_at)"
                " VALUES (?, ?, ?, 'PENDING', ?, ?, ?)",
                (job_id, request.kind, request.index, text, idempotency_key, now),
            )
            self._delete_old(connection, now)
            return job_of(_row(connection, job_id)), True

    def known(self, request: JobRequest, idempotency_key: str | None) -> Job | None:
        """The job that the same request with the same key gave before, or None.

        Raises:
            RequestError: the key was used for another request within a day (``idempotency_conflict``).
        """
        with self._database.transaction() as connection:
            row = _job_of_key(connection, idempotency_key, request.model_dump_json(), time.time())
            return None if row is None else job_of(row)

    def get(self, job_id: str) -> Job:
        """One job.

        Raises:
            RequestError: no such job (``job_not_found``).
        """
        rows = self._database.read("SELECT * FROM jobs WHERE id = ?", (job_id,))
        if not rows:
            raise _not_found(job_id)
        return job_of(rows[0])

    def page(self, states: tuple[JobState, ...] = (), size: int = 50, before: int | None = None) -> JobPage:
        """Jobs, newest first.

        Args:
            states: only in one of these; empty for all.
            size: at most so many.
            before: of those that were accepted before the one of this number, or None.
        """
        marks = ", ".join("?" * len(states))
        rows = self._database.read(
            f"SELECT * FROM jobs WHERE number < ? {f'AND state IN ({marks})' if states else ''}"  # noqa: S608
            " ORDER BY number DESC LIMIT ?",
            (before if before is not None else 1 << 62, *states, size + 1),
        )
        shown = rows[:size]
        more = len(rows) > size
        return JobPage(jobs=[job_of(row) for row in shown], next_page_token=str(shown[-1]["number"]) if more else None)

    def failures(self, job_id: str, size: int = 50, after: int = 0) -> JobFailurePage:
        """Photos that a job could not index, in the order they were found, from the `after`-th on."""
        with self._database.transaction() as connection:
            job = _row(connection, job_id)
            rows = connection.execute(
                "SELECT path, code, reason, remedy FROM failures WHERE job = ? ORDER BY rowid LIMIT ? OFFSET ?",
                (job["number"], size + 1, after),
            ).fetchall()
        return JobFailurePage(
            failures=[JobFailure(**dict(row)) for row in rows[:size]],
            total=job["failed"] + job["skipped"],
            next_page_token=str(after + size) if len(rows) > size else None,
        )

    def cancel(self, job_id: str) -> Job:
        """Stop a job: at once when it waits, after the current batch when it runs. Nothing will be published.

        Raises:
            RequestError: no such job, or it is finished or about to publish (``job_not_cancellable``).
        """
        with self._database.transaction() as connection:
            job = _row(connection, job_id)
            state: JobState = job["state"]
            if state in ("SUCCEEDED", "FAILED") or (job["update_made"] is not None and state not in FINISHED):
                raise RequestError(
                    f"the job is {state}" + ("" if state in FINISHED else " and its version is being named"),
                    code="job_not_cancellable",
                    remedy="Versions are kept: the one before can be activated again",
                )
            if state == "PENDING":
                connection.execute(
                    "UPDATE jobs SET state = 'CANCELLED', finished_at = ? WHERE id = ?", (time.time(), job_id)
                )
            elif state in ("RUNNING", "PUBLISHING"):
                connection.execute("UPDATE jobs SET state = 'CANCELLING' WHERE id = ?", (job_id,))
            return job_of(_row(connection, job_id))

    def has_work(self) -> bool:
        """Whether any job is not finished."""
        return bool(self._database.read(f"SELECT 1 FROM jobs WHERE {_UNFINISHED} LIMIT 1"))  # noqa: S608

    def beat(self) -> tuple[int, int] | None:
        """The worker's process id and count of heartbeats; None before the first."""
        rows = self._database.read("SELECT pid, beat FROM worker")
        return (rows[0]["pid"], rows[0]["beat"]) if rows else None

    def counts(self) -> dict[tuple[str, str], int]:
        """How many jobs there are of each kind and state."""
        rows = self._database.read("SELECT kind, state, COUNT(*) AS count FROM jobs GROUP BY kind, state")
        return {(row["kind"], row["state"]): row["count"] for row in rows}

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _check_room(self, connection: Connection) -> None:
        waiting = connection.execute(f"SELECT COUNT(*) FROM jobs WHERE {_WAITING}").fetchone()[0]  # noqa: S608
        if waiting >= self.settings.max_waiting:
            raise RequestError(
                f"{counted(waiting, 'job is', 'jobs are')} waiting already",
                code="queue_full",
                remedy="Wait until some are finished",
            )

    def _delete_old(self, connection: Connection, now: float) -> None:
        """Delete finished jobs beyond those that are kept, unless their keys are still valid."""
        connection.execute(
            f"DELETE FROM jobs WHERE NOT {_UNFINISHED}"  # noqa: S608
            " AND number <= (SELECT MAX(number) FROM jobs) - ? AND (idempotency_key IS NULL OR created_at < ?)",
            (self.settings.kept_jobs, now - IDEMPOTENCY_S),
        )


def _job_of_key(connection: Connection, key: str | None, request: str, now: float) -> Row | None:
    """The job that a key gave, as long as the key is valid."""
    if key is None:
        return None
    connection.execute(
        "UPDATE jobs SET idempotency_key = NULL WHERE idempotency_key = ? AND created_at < ?",
        (key, now - IDEMPOTENCY_S),
    )
    row: Row | None = connection.execute("SELECT * FROM jobs WHERE idempotency_key = ?", (key,)).fetchone()
    if row is not None and row["request"] != request:
        raise RequestError(
            "this Idempotency-Key was used for another request",
            code="idempotency_conflict",
            remedy="Send a new key with every new request",
        )
    return row


def _row(connection: Connection, job_id: str) -> Row:
    row: Row | None = connection.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
    if row is None:
        raise _not_found(job_id)
    return row


def _not_found(job_id: str) -> SightfixError:
    return RequestError(f"there is no job {job_id!r}", code="job_not_found", remedy="List them: GET /jobs")
