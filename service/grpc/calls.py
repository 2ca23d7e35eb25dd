"""What every gRPC call has: its id, metrics, trace and log line, and its error as google.rpc.Status.

Errors are the problems of the HTTP interface, by one table of codes for both, so that they cannot diverge. The details
are those of AIP-193: ErrorInfo (its reason is the stable code in upper case), RequestInfo, BadRequest where fields are
wrong, RetryInfo where it is worth trying again.
"""

import asyncio
import logging
import math
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status
from pydantic import ValidationError

from retrieval.errors import SightfixError
from service.answer import FieldProblem, Problem
from service.observing.logs import CURRENT, RequestNotes, log_access
from service.observing.observer import Observer
from service.observing.tracing import trace_id_of
from service.problems import STATUS_OF_CODE, RequestError, plain_request_id, problem_of
from service.serving.admission import RejectedError, RejectionThrottle

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

_log = logging.getLogger("sightfix.service")
REQUEST_ID_KEY: Final = "x-request-id"
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
    # As gRPC's own error for a message over its limit.
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

# Where gRPC distinguishes what HTTP has one status for: ABORTED invites clients to retry.
_CODE_OF_PROBLEM: Final[Mapping[str, grpc.StatusCode]] = {
    "frame_out_of_order": grpc.StatusCode.FAILED_PRECONDITION,
    "model_mismatch": grpc.StatusCode.FAILED_PRECONDITION,
    "idempotency_conflict": grpc.StatusCode.ALREADY_EXISTS,
    "job_not_cancellable": grpc.StatusCode.FAILED_PRECONDITION,
}

_SERVER_FAULTS: Final = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE)
_CODE_OF_NUMBER: Final = {code.value[0]: code for code in grpc.StatusCode}
_VALUE_ERROR: Final = "Value error, "

# All of it goes into trailing metadata, twice, and clients take 8 KiB of that.
_MAX_MESSAGE: Final = 800

_MAX_VIOLATIONS: Final = 10


def grpc_code(code: str) -> grpc.StatusCode:
    """The gRPC status code of a problem's code."""
    return _CODE_OF_PROBLEM.get(code) or _CODE_OF_STATUS.get(STATUS_OF_CODE.get(code, 500), grpc.StatusCode.UNKNOWN)


def grpc_code_of(status: Status) -> grpc.StatusCode:
    """The code of a status as an enum."""
    return _CODE_OF_NUMBER[status.code]


def status_of(error: SightfixError, request_id: str) -> Status:
    """An error as a status.

    Args:
        error: any that HTTP makes a problem of.
        request_id: of the request.
    """
    problem = problem_of(error, request_id)
    # HTTP has whole seconds only, which are long for a robot that asks ten times a second.
    exact = error.retry_after_s if isinstance(error, RequestError) else None
    return _status(problem, request_id, exact)


def status_of_problem(problem: Problem) -> Status:
    """A problem that was kept, such as the error of a job, as a status."""
    return _status(problem, None, None)


def server_fault() -> RequestError:
    """The error that a client gets for a bug."""
    return RequestError("the server failed on this request; its log says why", code="internal_error")


def trailing_metadata(status: Status, request_id: str) -> tuple[tuple[str, str | bytes], ...]:
    """What follows an error: its details, and the request's id."""
    return ((DETAILS_KEY, status.SerializeToString()), (REQUEST_ID_KEY, request_id))


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
        moved: fields whose paths differ: path in the model → path in the message, below the prefix.
    """
    items = error.errors(include_url=False, include_input=False)[:_MAX_VIOLATIONS]
    paths = [".".join(str(part) for part in item["loc"]) for item in items]
    errors = [
        FieldProblem(pointer=prefix + (moved or {}).get(path, path), message=item["msg"].removeprefix(_VALUE_ERROR))
        for path, item in zip(paths, items, strict=True)
    ]
    return RequestError(f"{errors[0].pointer}: {errors[0].message}", code="validation_error", errors=errors)


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


class Calls:
    """All calls of one server. Must be made on its event loop.

    Args:
        observer: counts and traces each.
        log_all: whether calls that did not fail are logged at info, too; else at debug.
        rejections: delays them when there are too many.

    Attributes:
        stopping: set when streams must end.
    """

    def __init__(self, observer: Observer, log_all: bool, rejections: RejectionThrottle) -> None:
        self.observer = observer
        self.rejections = rejections
        self.log_all = log_all
        self.stopping = asyncio.Event()
        self._pending_calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def begin(self, context: "Context", method: str) -> "Call":
        """A context in which one call is answered.

        Args:
            context: of gRPC.
            method: full name, such as ``sightfix.v1.LocalizationService/Localize``; of a method that there is.
        """
        return Call(self, context, method)

    async def finished(self) -> None:
        """Wait until no call is being answered."""
        await self._idle.wait()

    def count(self, change: int) -> None:
        """One call more, or one less."""
        self._pending_calls += change
        if self._pending_calls:
            self._idle.clear()
        else:
            self._idle.set()


class Call:
    """One call, from its metadata to its status."""

    __slots__ = ("_begun", "_calls", "_context", "_method", "_token", "notes")

    def __init__(self, calls: Calls, context: "Context", method: str) -> None:
        self._begun = time.perf_counter()
        self._calls = calls
        self._context = context
        self._method = method
        metadata = context.invocation_metadata() or ()
        given = next((value for key, value in metadata if key == REQUEST_ID_KEY), "")
        self.notes = RequestNotes(plain_request_id(given if isinstance(given, str) else ""))
        tracing = calls.observer.tracing
        if tracing is not None:
            headers = [(key.encode(), value.encode()) for key, value in metadata if isinstance(value, str)]
            span = tracing.begin(method, headers)
            self.notes.span, self.notes.trace_id = span, trace_id_of(span)

    def name(self, request_id: str) -> None:
        """Take the request id of the request message, if there is one."""
        if request_id:
            self.notes.request_id = plain_request_id(request_id)

    async def __aenter__(self) -> "Call":
        """Begin."""
        self._calls.count(1)
        self._token = CURRENT.set(self.notes)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send the status; then count, trace and log the call."""
        code, status = self._outcome(error)
        try:
            if isinstance(error, RejectedError):
                await self._calls.rejections.wait()
            if status is not None:
                # Raises: nothing may be sent after it.
                await self._context.abort(code, status.message, trailing_metadata(status, self.notes.request_id))
            if error is None:
                self._context.set_trailing_metadata(((REQUEST_ID_KEY, self.notes.request_id),))
        finally:
            self._calls.count(-1)
            self._record(code)
            CURRENT.reset(self._token)

    def _outcome(self, error: BaseException | None) -> "tuple[grpc.StatusCode, Status | None]":
        """The call's code, and the status to send if it failed and the client is still there."""
        if error is None:
            return grpc.StatusCode.OK, None
        if isinstance(error, asyncio.CancelledError):
            late = self._context.time_remaining() == 0
            return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED, None
        if isinstance(error, DecodeError):
            status = status_of(RequestError("the message is no protobuf of this method"), self.notes.request_id)
        elif isinstance(error, SightfixError):
            status = status_of(error, self.notes.request_id)
        elif isinstance(error, Exception):
            _log.error("request %s failed", self.notes.request_id, exc_info=error)
            status = status_of(server_fault(), self.notes.request_id)
        else:
            return grpc.StatusCode.CANCELLED, None
        code = grpc_code_of(status)
        if code == grpc.StatusCode.INTERNAL and isinstance(error, SightfixError):
            _log.error("request %s failed: %s", self.notes.request_id, error)
        return code, status

    def _record(self, code: grpc.StatusCode) -> None:
        observer, notes = self._calls.observer, self.notes
        seconds = time.perf_counter() - self._begun
        if observer.metrics is not None:
            observer.metrics.rpc_ended(self._method, code.name)
        if observer.tracing is not None and notes.span is not None:
            service, _, method = self._method.partition("/")
            attributes: dict[str, str | int] = {
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": method,
                "rpc.grpc.status_code": code.value[0],
                "sightfix.request_id": notes.request_id,
            }
            observer.tracing.end(notes.span, self._method, attributes, failed=code in _SERVER_FAULTS)
        level = logging.INFO if code in _SERVER_FAULTS or self._calls.log_all else logging.DEBUG
        log_access(notes, "gRPC", self._method, code.name, seconds, level)
