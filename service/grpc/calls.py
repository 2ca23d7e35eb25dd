"""Every call from outside: counted, traced, logged, and its errors told as they should be."""

import asyncio
import logging
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.message import DecodeError

from retrieval.errors import SightfixError
from service.batching import RefusalPace, RefusedError
from service.grpc.errors import grpc_code_of, server_fault, status_of, trailing_metadata
from service.observing.observer import Observer
from service.observing.request_notes import CURRENT, RequestNotes
from service.observing.tracing import trace_id_of
from service.problems import RequestError, plain_request_id

if TYPE_CHECKING:
    from google.rpc.status_pb2 import Status

    Context = grpc.aio.ServicerContext[Any, Any]

_log = logging.getLogger("sightfix.service")
_access_log = logging.getLogger("sightfix.access")

REQUEST_ID_KEY: Final = "x-request-id"
_OUR_FAULT: Final = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE)


class Calls:
    """All calls of one server. Must be made on its event loop.

    Args:
        observer: whom to tell of each.
        log_all: whether calls that did not fail are logged at info, too; else at debug.
        refusals: how fast they may leave.

    Attributes:
        stopping: set when streams shall come to an end.
    """

    def __init__(self, observer: Observer, log_all: bool, refusals: RefusalPace) -> None:
        self.observer = observer
        self.refusals = refusals
        self.log_all = log_all
        self.stopping = asyncio.Event()
        self._in_hand = 0
        self._none_in_hand = asyncio.Event()
        self._none_in_hand.set()

    def begin(self, context: "Context", method: str) -> "Call":
        """A context in which one call is answered.

        Args:
            context: of gRPC.
            method: full name, such as ``sightfix.v1.LocalizationService/Localize``; of a method that there is.
        """
        return Call(self, context, method)

    async def finished(self) -> None:
        """Wait until no call is in hand."""
        await self._none_in_hand.wait()

    def count(self, change: int) -> None:
        """One call more, or one less."""
        self._in_hand += change
        if self._in_hand:
            self._none_in_hand.clear()
        else:
            self._none_in_hand.set()


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
        """Take the request id that stands in the request message, if there is one."""
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
        """Tell the client what became of it; then whoever watches."""
        code, status = self._outcome(error)
        try:
            if isinstance(error, RefusedError):
                await self._calls.refusals.hold()
            if status is not None:
                # Raises: nothing may be sent after it.
                await self._context.abort(code, status.message, trailing_metadata(status, self.notes.request_id))
            if error is None:
                self._context.set_trailing_metadata(((REQUEST_ID_KEY, self.notes.request_id),))
        finally:
            self._calls.count(-1)
            self._tell(code)
            CURRENT.reset(self._token)

    def _outcome(self, error: BaseException | None) -> "tuple[grpc.StatusCode, Status | None]":
        """The call's code, and the status to send if it failed and somebody is there to hear it."""
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

    def _tell(self, code: grpc.StatusCode) -> None:
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
            observer.tracing.end(notes.span, self._method, attributes, failed=code in _OUR_FAULT)
        level = logging.INFO if code in _OUR_FAULT or self._calls.log_all else logging.DEBUG
        if _access_log.isEnabledFor(level):
            self._write(level, code.name, seconds)

    def _write(self, level: int, code: str, seconds: float) -> None:
        notes = self.notes
        fields: dict[str, Any] = {
            "request_id": notes.request_id,
            "method": "gRPC",
            "route": self._method,
            "status": code,
            "duration_ms": round(seconds * 1e3, 2),
        }
        if notes.trace_id is not None:
            fields["trace_id"] = notes.trace_id
        if notes.photos == 1 and notes.fix_status is not None:
            fields["fix_status"] = notes.fix_status
        elif notes.photos > 1:
            fields["photos"] = notes.photos
        if notes.index_version is not None:
            fields["index_version"] = notes.index_version
        rest = " ".join(f"{name}={value}" for name, value in fields.items() if name not in _IN_WORDS)
        _access_log.log(level, "gRPC %s %s in %.1f ms %s", self._method, code, seconds * 1e3, rest, extra=fields)


_IN_WORDS: Final = frozenset({"method", "route", "status", "duration_ms"})
