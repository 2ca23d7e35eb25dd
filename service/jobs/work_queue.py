"""The worker's side of the database of jobs: take one, record its progress, end it."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from service.answer import Problem
from service.jobs.model import JOB_REQUEST, AppendJobRequest, FullJobRequest, JobFailure, JobResult, RemoveJobRequest
from service.jobs.settings import JobSettings
from service.jobs.store import JobDatabase
from service.problems import job_problem

# Deaths of the worker in one job, with no part finished in between, after which the job is given up.
MAX_DEATHS: Final = 4


@dataclass(frozen=True, slots=True)
class TakenJob:
    """A job that the worker has taken.

    Attributes:
        number: of the job in the order of acceptance.
        id: for people.
        request: what was asked for.
        update_made: what an earlier run was about to publish when it died, or None.
    """

    number: int
    id: str
    request: FullJobRequest | AppendJobRequest | RemoveJobRequest
    update_made: JobResult | None


class WorkQueue:
    """Jobs as the one worker sees them. Make one only while holding the worker's lock.

    Args:
        settings: where the database is, and how much it keeps.

    Raises:
        StorageError: any call may, when the database fails.
    """

    def __init__(self, settings: JobSettings) -> None:
        self._settings = settings
        self._database = JobDatabase(settings.database, settings.indexes)

    def recover(self) -> None:
        """Take over from a worker that died: its job waits again, or fails after too many deaths."""
        with self._database.transaction() as connection:
            now = time.time()
            connection.execute(
                "UPDATE jobs SET state = 'CANCELLED', finished_at = ? WHERE state = 'CANCELLING'", (now,)
            )
            connection.execute("UPDATE jobs SET deaths = deaths + 1 WHERE state IN ('RUNNING', 'PUBLISHING')")
            given_up = connection.execute(
                "SELECT number, id FROM jobs WHERE state IN ('RUNNING', 'PUBLISHING') AND deaths >= ?", (MAX_DEATHS,)
            ).fetchall()
            for row in given_up:
                connection.execute(
                    "UPDATE jobs SET state = 'FAILED', finished_at = ?, error = ? WHERE number = ?",
                    (now, _worker_died(row["id"]).model_dump_json(exclude_none=True), row["number"]),
                )
            connection.execute("UPDATE jobs SET state = 'PENDING' WHERE state IN ('RUNNING', 'PUBLISHING')")

    def unfinished(self) -> set[str]:
        """The ids of all jobs whose work must be kept."""
        return {row["id"] for row in self._database.read("SELECT id FROM jobs WHERE finished_at IS NULL")}

    def take(self, not_of: Collection[str] = ()) -> TakenJob | None:
        """The oldest waiting job, running from now on; None when there is none.

        Args:
            not_of: names of indexes that are skipped.
        """
        marks = ", ".join("?" * len(not_of))
        with self._database.transaction() as connection:
            row = connection.execute(
                f"SELECT * FROM jobs WHERE state = 'PENDING' AND index_name NOT IN ({marks})"  # noqa: S608
                " ORDER BY number LIMIT 1",
                tuple(not_of),
            ).fetchone()
            if row is None:
                return None
            connection.execute(
                "UPDATE jobs SET state = 'RUNNING', started_at = COALESCE(started_at, ?), waiting_for = NULL,"
                " rate_per_s = NULL WHERE number = ?",
                (time.time(), row["number"]),
            )
        made = row["update_made"]
        return TakenJob(
            number=row["number"],
            id=row["id"],
            request=JOB_REQUEST.validate_json(row["request"]),
            update_made=JobResult.model_validate_json(made) if made is not None else None,
        )

    def is_cancelled(self, job: TakenJob) -> bool:
        """Whether the job is to stop."""
        rows = self._database.read("SELECT state FROM jobs WHERE number = ?", (job.number,))
        return bool(rows) and rows[0]["state"] == "CANCELLING"

    def listed(self, job: TakenJob, skipped: int, failures: Sequence[JobFailure]) -> None:
        """Record that the source was read, and which photos it leaves out."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE jobs SET skipped = ? WHERE number = ?", (skipped, job.number))
            connection.execute("DELETE FROM failures WHERE job = ?", (job.number,))
        self.add_failures(job, failures)

    def add_failures(self, job: TakenJob, failures: Sequence[JobFailure]) -> None:
        """Keep photos that could not be indexed, as many as are kept."""
        with self._database.transaction() as connection:
            held = connection.execute("SELECT COUNT(*) FROM failures WHERE job = ?", (job.number,)).fetchone()[0]
            room = max(0, self._settings.kept_failures - held)
            connection.executemany(
                "INSERT OR IGNORE INTO failures VALUES (?, ?, ?, ?, ?)",
                [(job.number, one.path, one.code, one.reason, one.remedy) for one in failures[:room]],
            )

    def progress(self, job: TakenJob, *, done: int, total: int, failed: int, rate_per_s: float | None) -> None:
        """Record how far the job is."""
        self._set(job, "done = ?, total = ?, failed = ?, rate_per_s = ?", done, total, failed, rate_per_s)

    def survived(self, job: TakenJob) -> None:
        """Record that a part is finished: deaths before it no longer count."""
        self._set(job, "deaths = 0", only_if="deaths > 0")

    def writing_version(self, job: TakenJob) -> None:
        """Record that all photos are described, and the version is being written."""
        self._set(job, "state = 'PUBLISHING'", only_if="state = 'RUNNING'")

    def publishing(self, job: TakenJob, result: JobResult) -> bool:
        """Record what is published next. False when the job was cancelled; from here on it cannot be."""
        return self._set(job, "update_made = ?", result.model_dump_json(), only_if="state = 'PUBLISHING'")

    def not_published(self, job: TakenJob) -> None:
        """Record that what was about to be published never was, and is made again."""
        self._set(job, "update_made = NULL")

    def put_back(self, job: TakenJob, waiting_for: str | None = None) -> None:
        """Have the job wait again, or cancel it if that was asked for meanwhile."""
        self._set(
            job,
            "state = CASE state WHEN 'CANCELLING' THEN 'CANCELLED' ELSE 'PENDING' END,"
            " finished_at = CASE state WHEN 'CANCELLING' THEN ? ELSE NULL END, waiting_for = ?",
            time.time(),
            waiting_for,
        )

    def succeed(self, job: TakenJob, result: JobResult) -> None:
        """End the job with a result."""
        self._set(job, "state = 'SUCCEEDED', finished_at = ?, update_made = ?", time.time(), result.model_dump_json())

    def fail(self, job: TakenJob, problem: Problem) -> None:
        """End the job with an error."""
        error = problem.model_dump_json(exclude_none=True)
        self._set(job, "state = 'FAILED', finished_at = ?, update_made = NULL, error = ?", time.time(), error)

    def cancelled(self, job: TakenJob) -> None:
        """End the job that was to stop."""
        self._set(job, "state = 'CANCELLED', finished_at = ?", time.time())

    def beat(self, pid: int) -> None:
        """Record a heartbeat. It is counted, not timed: clocks jump."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO worker VALUES (1, ?, 1)"
                " ON CONFLICT (one) DO UPDATE SET pid = excluded.pid, beat = beat + 1",
                (pid,),
            )

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _set(self, job: TakenJob, assignments: str, *values: float | str | None, only_if: str = "TRUE") -> bool:
        """Change a job's row, if a condition holds; whether it did."""
        with self._database.transaction() as connection:
            query = f"UPDATE jobs SET {assignments} WHERE number = ? AND {only_if}"  # noqa: S608 - our own texts
            return connection.execute(query, (*values, job.number)).rowcount == 1


def _worker_died(job_id: str) -> Problem:
    return job_problem(
        job_id,
        "worker_died",
        f"the worker process died {MAX_DEATHS} times in this job. "
        "Look at the server's log and at the memory of the machine; a smaller batch_size needs less.",
    )
