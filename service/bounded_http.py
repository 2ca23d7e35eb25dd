"""uvicorn's HTTP protocol with limits on what comes before the body: a request's line and headers."""

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


def bounded_http(max_header_bytes: int, header_timeout_s: float) -> type[HttpToolsProtocol]:
    """uvicorn's protocol class with limits.

    Args:
        max_header_bytes: of line and headers together; beyond it the connection is closed with 431.
        header_timeout_s: until they are complete, from the connection's beginning or from their first byte; beyond it
            the connection is closed with 408. Idle connections are uvicorn's `timeout_keep_alive`.
    """
    return type(
        "LimitedHttp", (_BoundedHttp,), {"max_header_bytes": max_header_bytes, "header_timeout_s": header_timeout_s}
    )


class _BoundedHttp(HttpToolsProtocol):
    max_header_bytes: ClassVar[int]
    header_timeout_s: ClassVar[float]

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._header_bytes = 0
        self._in_headers = True
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request's headers, but not for ever."""
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count bytes until the headers are complete."""
        if self._in_headers:
            self._header_bytes += len(data)
            self._start_timer()
        super().data_received(data)
        # One chunk may hold headers and the beginning of a body: only unfinished headers are judged.
        if self._in_headers and self._header_bytes > self.max_header_bytes:
            self._refuse(b"431 Request Header Fields Too Large")

    def on_headers_complete(self) -> None:
        """The body has its own limits."""
        self._in_headers = False
        self._header_bytes = 0
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The next request on the connection begins with headers again, whenever it comes."""
        super().on_message_complete()
        self._in_headers = True

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.header_timeout_s, self._refuse, b"408 Request Timeout")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: bytes) -> None:
        self._stop_timer()
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 " + status + b"\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.transport.close()
