"""Jobs as the messages of `sightfix.v1`, and what those messages ask for."""

import asyncio
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import ValidationError

from service.grpc.calls import status_of_problem, wrong_field, wrong_fields
from service.grpc.generated import jobs_pb2 as pb
from service.grpc.generated.jobs_pb2_grpc import JobServiceServicer
from service.jobs.model import (
    JOB_REQUEST,
    Job,
    JobFailure,
    JobProgress,
    JobRequest,
    JobResult,
    JobState,
    page_number,
    parse_key,
)
from service.jobs.service import JobService

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

_OPTIONAL: Final = ("storage", "index_type", "recall")

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
    values: dict[str, Any] = {"kind": work, "index": spec.index, "publish": _PUBLISH[spec.publish]}
    if work == "remove":
        remove = spec.remove
        values.update(reference_ids=list(remove.reference_ids) or None, remove_missing=remove.remove_missing)
    elif work == "append":
        append = spec.append
        values.update(source=append.source, max_unreadable=append.max_unreadable, describe_again=append.describe_again)
    else:
        values.update(source=spec.full.source, max_unreadable=spec.full.max_unreadable)
        values["whiten"] = spec.full.whiten
        values.update({name: getattr(spec.full, name) for name in _OPTIONAL if spec.full.HasField(name)})
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
    return pb.Job(
        id=job.id,
        spec=_spec(JOB_REQUEST.validate_python(job.request)),
        state=_STATES[job.state],
        progress=_progress(job.progress),
        waiting_for=job.waiting_for,
        created_at=_time(job.created_at),
        started_at=_time(job.started_at),
        finished_at=_time(job.finished_at),
        result=None if job.result is None else _result(job.result),
        error=None if job.error is None else status_of_problem(job.error),
    )


def failure_message(failure: JobFailure) -> pb.JobFailure:
    """A photo that is not in the index."""
    return pb.JobFailure(path=failure.path, code=failure.code, reason=failure.reason, remedy=failure.remedy)


def _spec(request: JobRequest) -> pb.JobSpec:
    publish = pb.PUBLISH_AUTO if request.publish == "auto" else pb.PUBLISH_MANUAL
    if request.kind == "remove":
        remove = pb.RemoveWork(reference_ids=request.reference_ids or (), remove_missing=request.remove_missing)
        return pb.JobSpec(index=request.index, publish=publish, remove=remove)
    if request.kind == "append":
        append = pb.AppendWork(
            source=request.source, max_unreadable=request.max_unreadable, describe_again=request.describe_again
        )
        return pb.JobSpec(index=request.index, publish=publish, append=append)
    full = pb.FullWork(
        source=request.source,
        max_unreadable=request.max_unreadable,
        storage=request.storage,
        index_type=request.index_type,
        recall=request.recall,
        whiten=request.whiten,
    )
    return pb.JobSpec(index=request.index, publish=publish, full=full)


def _progress(progress: JobProgress) -> pb.JobProgress:
    return pb.JobProgress(
        done=progress.done,
        total=progress.total,
        failed=progress.failed,
        skipped=progress.skipped,
        rate_per_s=progress.rate_per_s,
        eta_s=progress.eta_s,
    )


def _result(result: JobResult) -> pb.JobResult:
    gate = result.gate
    return pb.JobResult(
        index_version=result.index_version,
        base_version=result.base_version,
        count=result.count,
        added=result.added,
        replaced=result.replaced,
        kept=result.kept,
        removed=result.removed,
        activated=result.activated,
        gate=None
        if gate is None
        else pb.Gate(
            canaries=gate.canaries,
            unreadable_canaries=gate.unreadable_canaries,
            self_matches=gate.self_matches,
            held_out_queries=gate.held_out_queries,
            recall=gate.recall,
            recall_at=gate.recall_at,
        ),
    )


def _time(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp


# `sightfix.v1.JobService` on the service of jobs. What waits for the disk runs in a thread.

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
