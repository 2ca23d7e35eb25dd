"""A small town below a source root, an index of it, and a worker that does its jobs."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.jobs import worker
from service.jobs.model import FINISHED, JOB_REQUEST, Job, JobRequest, JobState
from service.jobs.service import JobService
from service.jobs.settings import JobSettings
from tests.forked import run_forked
from tests.places import make_places

REPOSITORY = Path(__file__).resolve().parents[3]
LIMIT_S = 90.0


def request(kind: str, **fields: object) -> JobRequest:
    """A job for the index `town`; full and append take `csv:town/refs.csv` by default."""
    if kind != "remove":
        fields.setdefault("source", "csv:town/refs.csv")
    return JOB_REQUEST.validate_python({"kind": kind, "index": "town", **fields})


@dataclass(frozen=True)
class Town:
    """Folders of one test."""

    folder: Path

    @property
    def roots(self) -> Path:
        return self.folder / "roots"

    @property
    def indexes(self) -> Path:
        return self.folder / "indexes"

    @property
    def index(self) -> Path:
        return self.indexes / "town"

    def settings(self, **changes: object) -> JobSettings:
        """Small parts, a worker that ends when there is nothing to do."""
        fields: dict[str, object] = {
            "jobs_folder": self.folder / "jobs",
            "indexes": self.indexes,
            "source_roots": [self.roots],
            "batch_size": 2,
            "part_photos": 2,
            "idle_exit_s": 0.0,
            "niceness": 0,
        }
        return JobSettings.model_validate({**fields, **changes})

    def write_photos(self, count: int, *, listed: int | None = None) -> list[Path]:
        """Photos and the table `town/refs.csv` that lists the first of them."""
        places = make_places(self.roots / "town", count)
        lines = [f"{row.id},{row.position.lat!r},{row.position.lon!r}" for row in places.rows[:listed] if row.position]
        (self.roots / "town" / "refs.csv").write_text("\n".join(["path,lat,lon", *lines, ""]))
        return [row.path for row in places.rows]


def run_worker(settings: JobSettings, main: Callable[[Sequence[str]], int] = worker.main, *arguments: str) -> int:
    """Run a worker in a process of its own until it ends by itself; returns its exit status."""
    log = settings.jobs_folder.parent / "worker.log"
    return run_forked(main, [*arguments, settings.model_dump_json()], log=log, limit_s=LIMIT_S)


@contextlib.contextmanager
def running_jobs(settings: JobSettings, command: Sequence[str] | None = None) -> Iterator[JobService]:
    """A service with its supervisor and worker process, stopped at the end."""
    jobs = JobService(settings, command)
    jobs.start()
    try:
        yield jobs
    finally:
        jobs.stop()


def until(condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def wait_for(jobs: JobService, job_id: str, *states: JobState) -> Job:
    """Wait until a job is finished, or in one of some states."""
    until(lambda: jobs.get(job_id).state in (states or FINISHED))
    return jobs.get(job_id)
