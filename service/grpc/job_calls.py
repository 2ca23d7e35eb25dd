"""`sightfix.v1.JobService` on the service of jobs. What waits for the disk runs in a thread."""

import asyncio
from typing import TYPE_CHECKING, Final

from service.grpc.errors import wrong_field
from service.grpc.generated import jobs_pb2 as pb
from service.grpc.generated.jobs_pb2_grpc import JobServiceServicer
from service.grpc.job_answers import failure_message, job_message, job_request_of, states_of
from service.jobs.job_service import JobService
from service.jobs.request_parsing import page_number, parse_key

if TYPE_CHECKING:
    from service.grpc.calls import Context

_PAGE: Final = 50
_MAX_PAGE: Final = 200


class JobServicer(JobServiceServicer):
    """Answers the calls.

    Args:
        jobs: who keeps them; the HTTP interface has the same one.
    """

    def __init__(self, jobs: JobService) -> None:
        self._jobs = jobs

    async def CreateJob(self, request: pb.CreateJobRequest, context: "Context") -> pb.CreateJobResponse:  # noqa: N802
        """Accept a job."""
        key = parse_key(request.idempotency_key if request.HasField("idempotency_key") else None)
        asked = await asyncio.to_thread(job_request_of, request.spec)
        job, is_new = await asyncio.to_thread(self._jobs.submit, asked, key)
        return pb.CreateJobResponse(job=job_message(job), is_new=is_new)

    async def GetJob(self, request: pb.GetJobRequest, context: "Context") -> pb.GetJobResponse:  # noqa: N802
        """How far it is."""
        return pb.GetJobResponse(job=job_message(await asyncio.to_thread(self._jobs.get, request.id)))

    async def ListJobs(self, request: pb.ListJobsRequest, context: "Context") -> pb.ListJobsResponse:  # noqa: N802
        """Newest first."""
        states = states_of(request.states)
        page = await asyncio.to_thread(self._jobs.page, states, _page_size(request), _place(request))
        return pb.ListJobsResponse(
            jobs=[job_message(job) for job in page.jobs], next_page_token=page.next_page_token or ""
        )

    async def ListJobFailures(  # noqa: N802
        self, request: pb.ListJobFailuresRequest, context: "Context"
    ) -> pb.ListJobFailuresResponse:
        """Photos that a job could not index."""
        after = _place(request) or 0
        page = await asyncio.to_thread(self._jobs.failures, request.id, _page_size(request), after)
        return pb.ListJobFailuresResponse(
            failures=[failure_message(failure) for failure in page.failures],
            total=page.total,
            next_page_token=page.next_page_token or "",
        )

    async def CancelJob(self, request: pb.CancelJobRequest, context: "Context") -> pb.CancelJobResponse:  # noqa: N802
        """Stop it."""
        return pb.CancelJobResponse(job=job_message(await asyncio.to_thread(self._jobs.cancel, request.id)))


def _page_size(request: pb.ListJobsRequest | pb.ListJobFailuresRequest) -> int:
    size = request.page_size if request.HasField("page_size") else _PAGE
    if not 1 <= size <= _MAX_PAGE:
        raise wrong_field("page_size", f"{size} is outside [1, {_MAX_PAGE}]")
    return size


def _place(request: pb.ListJobsRequest | pb.ListJobFailuresRequest) -> int | None:
    return page_number(request.page_token or None)
