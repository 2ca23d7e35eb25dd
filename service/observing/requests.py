"""Observes every HTTP request: counts it, traces it, and writes its access-log line."""

import logging
import time
from typing import Any, Final

from fastapi import Request
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.observing.logs import CURRENT, RequestNotes, log_access
from service.observing.observer import Observer
from service.observing.tracing import trace_id_of, trace_response
from service.problems import request_id_of

# Requested every few seconds by machines: never traced, and logged at debug only.
_PROBES: Final = ("/livez", "/readyz", "/healthz", "/metrics", "/v2/health/", "/v2/models/")
CLIENT_LEFT: Final = 499  # nginx's number; for metrics and logs only


class ObservedRequests:
    """ASGI middleware, to be put around all others.

    Args:
        app: what to observe.
        observer: counts and traces.
        log_all: whether requests that did not fail are logged at info, too; else at debug.
    """

    def __init__(self, app: ASGIApp, observer: Observer, log_all: bool = False) -> None:
        self._app = app
        self._observer = observer
        self._log_all = log_all

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app, and record the outcome."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _ObservedRequest(self._observer, scope)
        token = CURRENT.set(request.notes)
        try:
            await self._app(scope, request.receiving(receive), request.sending(send))
        except BaseException:
            request.status = request.status or 500  # the handler around us answers so
            raise
        finally:
            CURRENT.reset(token)
            request.end(self._log_all)


class _ObservedRequest:
    """One request, from its headers to the last byte of its answer."""

    __slots__ = ("_begun", "_gone", "_observer", "_probe", "_scope", "notes", "status")

    def __init__(self, observer: Observer, scope: Scope) -> None:
        self._begun = time.perf_counter()
        self._observer = observer
        self._scope = scope
        self._probe = scope["path"].startswith(_PROBES)
        self._gone = False
        self.status = 0
        self.notes = RequestNotes(request_id_of(Request(scope)))
        if observer.metrics is not None:
            observer.metrics.request_begun()
        if observer.tracing is not None and not self._probe:
            span = observer.tracing.begin(scope["method"], scope["headers"])
            self.notes.span, self.notes.trace_id = span, trace_id_of(span)

    def receiving(self, receive: Receive) -> Receive:
        """The same, noting that the client left before it was answered."""

        async def noticing() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not self.status:
                self._gone = True
            return message

        return noticing

    def sending(self, send: Send) -> Send:
        """The same, reading the status and naming the trace."""

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.status = CLIENT_LEFT if self._gone else message["status"]
                if self.notes.span is not None and self.notes.trace_id is not None:
                    header = (b"traceresponse", trace_response(self.notes.span).encode())
                    message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        return noting

    def end(self, log_all: bool) -> None:
        """Count, trace and log the request."""
        seconds = time.perf_counter() - self._begun
        method, route = self._scope["method"], route_of(self._scope)
        status = self.status or CLIENT_LEFT
        if self._observer.metrics is not None:
            self._observer.metrics.request_ended(route, method, status, seconds)
        if self._observer.tracing is not None and self.notes.span is not None:
            self._end_span(self._observer.tracing, method, route, status)
        important = not self._probe and (log_all or status >= 500)
        log_access(self.notes, method, route, status, seconds, logging.INFO if important else logging.DEBUG)

    def _end_span(self, tracing: Any, method: str, route: str, status: int) -> None:
        attributes: dict[str, str | int] = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            "url.scheme": self._scope.get("scheme", "http"),
            "sightfix.request_id": self.notes.request_id,
        }
        if self.notes.fix_status is not None and self.notes.photos == 1:
            attributes["sightfix.fix.status"] = self.notes.fix_status
        if self.notes.index_version is not None:
            attributes["sightfix.index.version"] = self.notes.index_version
        tracing.end(self.notes.span, f"{method} {route}", attributes, failed=status >= 500)


def route_of(scope: Scope) -> str:
    """The template of the route that answered: a client's own path must not become a label.

    Returns:
        such as ``/indexes/{name}``; ``static`` for a mounted app, ``unmatched`` where there is no such route.
    """
    route = scope.get("route")
    path = getattr(route, "path", None)
    if isinstance(path, str) and isinstance(route, BaseRoute):
        return path
    return "static" if scope.get("endpoint") is not None else "unmatched"
