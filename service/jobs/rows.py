"""From a row of the database to a job as it is told."""

import json
from datetime import UTC, datetime
from sqlite3 import Row

from retrieval.answer import Problem
from service.jobs.model import Job, JobProgress, JobResult


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
