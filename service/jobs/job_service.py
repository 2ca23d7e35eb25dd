"""All that a server does about jobs, for every protocol it speaks."""

from collections.abc import Sequence

from service.jobs.job_settings import JobSettings
from service.jobs.model import AppendJobRequest, FullJobRequest, Job, JobFailurePage, JobPage, JobRequest, JobState
from service.jobs.sources import confined_spec
from service.jobs.store import JobStore
from service.jobs.supervisor import WorkerSupervisor
from service.problems import RequestError


class JobService:
    """Accepts, tells and cancels jobs, and has a worker process do them.

    The calls wait for the disk: call them outside the event loop.

    Args:
        settings: of the jobs.
        command: that starts a worker, for tests.

    Raises:
        StorageError: the database of jobs cannot be opened, or has a later format; any call may raise it too.
    """

    def __init__(self, settings: JobSettings, command: Sequence[str] | None = None) -> None:
        self.settings = settings
        self.store = JobStore(settings)
        self.supervisor = WorkerSupervisor(settings, self.store, command)

    def start(self) -> None:
        """Begin to do jobs, those first that an earlier server left."""
        self.supervisor.start()

    def stop(self) -> None:
        """Stop the worker after the batch in hand, and close the database."""
        self.supervisor.stop()
        self.store.close()

    def submit(self, request: JobRequest, idempotency_key: str | None = None) -> tuple[Job, bool]:
        """Accept a job.

        Returns:
            The job, and whether it is new: the same key with the same request gives the job it gave before.

        Raises:
            RequestError: see `confined_spec` and `JobStore.submit`.
        """
        known = self.store.known(request, idempotency_key)
        if known is not None:
            return known, False
        if isinstance(request, (FullJobRequest, AppendJobRequest)):
            confined_spec(request.source, self.settings.source_roots)
        elif not self.settings.source_roots:
            raise RequestError(
                "this server accepts no jobs", code="jobs_disabled", remedy="Start it with at least one source root"
            )
        job, is_new = self.store.submit(request, idempotency_key)
        self.supervisor.wake()
        return job, is_new

    def get(self, job_id: str) -> Job:
        """One job; see `JobStore.get`."""
        return self.store.get(job_id)

    def page(self, states: tuple[JobState, ...] = (), size: int = 50, before: int | None = None) -> JobPage:
        """Jobs, newest first; see `JobStore.page`."""
        return self.store.page(states, size, before)

    def failures(self, job_id: str, size: int = 50, after: int = 0) -> JobFailurePage:
        """Photos that a job could not index; see `JobStore.failures`."""
        return self.store.failures(job_id, size, after)

    def cancel(self, job_id: str) -> Job:
        """Stop a job; see `JobStore.cancel`."""
        return self.store.cancel(job_id)
