"""The problems of the HTTP interface as google.rpc.Status: one table of codes for both, so they cannot diverge.

The details are those of AIP-193: ErrorInfo (its reason is the stable code in upper case), RequestInfo, BadRequest where
fields are wrong, RetryInfo where it is worth trying again.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import grpc
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status
from pydantic import ValidationError

from retrieval.answer import FieldProblem, Problem
from retrieval.errors import SightfixError
from service.problems import STATUS_OF_CODE, RequestError, problem_of

DOMAIN: Final = "sightfix"
# Where every gRPC library looks for a google.rpc.Status.
DETAILS_KEY: Final = "grpc-status-details-bin"

_CODE_OF_STATUS: Final[Mapping[int, grpc.StatusCode]] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    405: grpc.StatusCode.UNIMPLEMENTED,
    406: grpc.StatusCode.INVALID_ARGUMENT,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.ABORTED,
    412: grpc.StatusCode.FAILED_PRECONDITION,
    # As gRPC itself says of a message over its limit.
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    431: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
    507: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
# Where HTTP has one status for what gRPC tells apart: ABORTED invites to try the same again.
_CODE_OF_PROBLEM: Final[Mapping[str, grpc.StatusCode]] = {
    "frame_out_of_order": grpc.StatusCode.FAILED_PRECONDITION,
    "idempotency_conflict": grpc.StatusCode.ALREADY_EXISTS,
    "job_not_cancellable": grpc.StatusCode.FAILED_PRECONDITION,
}
# All of it goes into trailing metadata, twice, and clients take 8 KiB of that.
_MAX_MESSAGE: Final = 800
_MAX_VIOLATIONS: Final = 10


def grpc_code(code: str) -> grpc.StatusCode:
    """The gRPC status code of a problem's code."""
    return _CODE_OF_PROBLEM.get(code) or _CODE_OF_STATUS.get(STATUS_OF_CODE.get(code, 500), grpc.StatusCode.UNKNOWN)


def grpc_code_of(status: Status) -> grpc.StatusCode:
    """The code of a status as an enum."""
    return _BY_NUMBER[status.code]


_BY_NUMBER: Final = {code.value[0]: code for code in grpc.StatusCode}


def status_of(error: SightfixError, request_id: str) -> Status:
    """An error as a status.

    Args:
        error: whatever HTTP would make a problem of.
        request_id: of the request.
    """
    problem = problem_of(error, request_id)
    # HTTP knows whole seconds only; a robot that asks ten times a second should not wait for one.
    exact = error.retry_after_s if isinstance(error, RequestError) else None
    return _status(problem, request_id, exact)


def status_of_problem(problem: Problem) -> Status:
    """A problem that was kept, such as the error of a job, as a status."""
    return _status(problem, None, None)


def server_fault() -> RequestError:
    """What a client is told of a bug: that there is one."""
    return RequestError("the server failed on this request; its log says why", code="internal_error")


def trailing_metadata(status: Status, request_id: str) -> tuple[tuple[str, str | bytes], ...]:
    """What follows an error: its details, and the request's id."""
    return ((DETAILS_KEY, status.SerializeToString()), ("x-request-id", request_id))


def wrong_field(path: str, message: str, *, remedy: str | None = None) -> RequestError:
    """A field of a request message that is wrong.

    Args:
        path: such as ``options.top_k``.
        message: what is wrong.
        remedy: what to send instead.
    """
    errors = [FieldProblem(pointer=path, message=message)]
    return RequestError(f"{path}: {message}", code="validation_error", remedy=remedy, errors=errors)


def wrong_fields(error: ValidationError, prefix: str = "", moved: Mapping[str, str] | None = None) -> RequestError:
    """A pydantic error as one that names each wrong field of the request message.

    Args:
        error: of a model whose fields are named as the message's.
        prefix: path of the message that was checked, such as ``options.``.
        moved: fields that stand elsewhere in the message than in the model: path in the model → path below the prefix.
    """
    items = error.errors(include_url=False, include_input=False)[:_MAX_VIOLATIONS]
    paths = [".".join(str(part) for part in item["loc"]) for item in items]
    errors = [
        FieldProblem(pointer=prefix + (moved or {}).get(path, path), message=item["msg"].removeprefix(_VALUE_ERROR))
        for path, item in zip(paths, items, strict=True)
    ]
    return RequestError(f"{errors[0].pointer}: {errors[0].message}", code="validation_error", errors=errors)


_VALUE_ERROR: Final = "Value error, "


def _status(problem: Problem, request_id: str | None, exact_retry_s: float | None) -> Status:
    status = Status(code=grpc_code(problem.code).value[0], message=_shortened(problem.detail))
    status.details.add().Pack(ErrorInfo(reason=problem.code.upper(), domain=DOMAIN))
    if request_id is not None:
        status.details.add().Pack(RequestInfo(request_id=request_id))
    if problem.errors:
        status.details.add().Pack(BadRequest(field_violations=_violations(problem.errors)))
    retry_after_s = (problem.model_extra or {}).get("retry_after_s")
    if retry_after_s is not None:
        status.details.add().Pack(_retry_info(exact_retry_s or retry_after_s))
    return status


def _violations(errors: Sequence[FieldProblem]) -> list[BadRequest.FieldViolation]:
    return [
        BadRequest.FieldViolation(
            field=_shortened(error.pointer.removeprefix("/").replace("/", ".")), description=_shortened(error.message)
        )
        for error in errors[:_MAX_VIOLATIONS]
    ]


def _retry_info(seconds: float) -> RetryInfo:
    milliseconds = math.ceil(seconds * 1e3)
    info = RetryInfo()
    info.retry_delay.FromMilliseconds(milliseconds)
    return info


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_MESSAGE else text[: _MAX_MESSAGE - 1] + "…"
