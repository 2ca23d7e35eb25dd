"""The SQLite database of jobs: its schema, and connections that lose nothing that was acknowledged."""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from retrieval.artefact import storage_errors
from retrieval.errors import StorageError

SCHEMA_VERSION: Final = 1

_BUSY_TIMEOUT_S: Final = 10.0

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
        indexes: the folder of place indexes that the jobs are about.

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
                    f"these jobs are about the indexes in {row['value']}, not those in {indexes.resolve()}",
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
