"""`sightfix.v1.JobService` on the service of jobs. What waits for the disk runs in a thread."""

import asyncio
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from service.grpc.calls import status_of_problem, wrong_field, wrong_fields
from service.grpc.generated import jobs_pb2 as pb
from service.grpc.generated.jobs_pb2_grpc import JobServiceServicer
from service.grpc.messages import fields_of
from service.jobs.model import JOB_REQUEST, Job, JobRequest, JobState
from service.jobs.service import JobService, page_number, parse_key

if TYPE_CHECKING:
    from service.grpc.calls import Context

_STATES: Final[dict[JobState, pb.JobState.ValueType]] = {
    "PENDING": pb.JOB_STATE_PENDING,
    "RUNNING": pb.JOB_STATE_RUNNING,
    "PUBLISHING": pb.JOB_STATE_PUBLISHING,
    "SUCCEEDED": pb.JOB_STATE_SUCCEEDED,
    "FAILED": pb.JOB_STATE_FAILED,
    "CANCELLING": pb.JOB_STATE_CANCELLING,
    "CANCELLED": pb.JOB_STATE_CANCELLED,
}

_STATE_NAMES: Final[dict[int, JobState]] = {number: name for name, number in _STATES.items()}
_PAGE: Final = 50
_MAX_PAGE: Final = 200
_PUBLISH: Final = {pb.PUBLISH_UNSPECIFIED: "auto", pb.PUBLISH_AUTO: "auto", pb.PUBLISH_MANUAL: "manual"}


def job_request_of(spec: pb.JobSpec) -> JobRequest:
    """What a spec asks for.

    Raises:
        RequestError: no work, or a value outside its range (``validation_error``).
    """
    work = spec.WhichOneof("work")
    if work is None:
        raise wrong_field("spec.work", "there is none", remedy="Set full, append or remove")
    if spec.publish not in _PUBLISH:
        raise wrong_field("spec.publish", f"there is no {spec.publish}", remedy="Send PUBLISH_AUTO or PUBLISH_MANUAL")
    values = {"kind": work, "index": spec.index, "publish": _PUBLISH[spec.publish], **fields_of(getattr(spec, work))}
    if work == "remove":
        values["reference_ids"] = list(spec.remove.reference_ids) or None
    try:
        return JOB_REQUEST.validate_python(values)
    except ValidationError as error:
        shared = {f"{work}.{name}": name for name in ("index", "publish")}
        raise wrong_fields(error, "spec.", shared) from error


def states_of(states: Any) -> tuple[JobState, ...]:
    """The states that are asked for.

    Raises:
        RequestError: there is no such state (``validation_error``).
    """
    unknown = next((state for state in states if state not in _STATE_NAMES), None)
    if unknown is not None:
        raise wrong_field("states", f"there is no state {unknown}")
    return tuple(dict.fromkeys(_STATE_NAMES[state] for state in states))


def job_message(job: Job) -> pb.Job:
    """A job."""
    result = job.result
    same = {name: getattr(job, name) for name in ("id", "waiting_for", "created_at", "started_at", "finished_at")}
    return pb.Job(
        **same,
        spec=_spec(JOB_REQUEST.validate_python(job.request)),
        state=_STATES[job.state],
        progress=pb.JobProgress(**dict(job.progress)),
        result=None if result is None else pb.JobResult(**result.model_dump()),
        error=None if job.error is None else status_of_problem(job.error),
    )


def _spec(request: JobRequest) -> pb.JobSpec:
    fields = {name: value for name, value in request if name not in ("kind", "index", "publish")}
    publish = pb.PUBLISH_AUTO if request.publish == "auto" else pb.PUBLISH_MANUAL
    work: dict[str, Any] = {request.kind: fields}
    return pb.JobSpec(index=request.index, publish=publish, **work)


class JobServicer(JobServiceServicer):
    """Answers the calls.

    Args:
        jobs: keeps them; the HTTP interface has the same one.
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
            failures=[pb.JobFailure(**dict(failure)) for failure in page.failures],
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
