"""Limits on what clients send: bytes and seconds of bodies in a middleware, of headers and framing in the protocol.

Bytes are counted as they arrive: a declared length is trusted only where it is too large.
"""

import asyncio
import logging
import math
from typing import Any, ClassVar, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from retrieval.localize.localizer import new_request_id
from service.problems import MEDIA_TYPE, RequestError, problem_of

# Framing bytes of a chunked body, as a multiple of the body: chunks of a single byte have five more.
_FRAMING_SHARE: Final = 8


class BodyLimit:
    """ASGI middleware: reading a body raises a problem when it is too long, chunked or not, or comes too slowly.

    Args:
        app: what to protect.
        max_bytes: of a whole body; beyond it ``body_too_large``, 413.
        timeout_s: for a whole body; beyond it ``request_timeout``, 408.
        max_held_bytes: of all bodies together, from their first byte until their requests are answered; beyond it
            ``queue_full``, 429. One body alone is never too much.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float = 30.0, max_held_bytes: float = math.inf) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._max_held_bytes = max_held_bytes
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app with a counted body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received = 0
        complete = False
        begun: float | None = None
        timed_out = crowded = False
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        too_large = declared.isdigit() and int(declared) > self._max_bytes

        async def counted_receive() -> Message:
            nonlocal received, complete, begun, timed_out, crowded
            if complete:  # what is left to receive is that the client leaves, which may take its time
                return await receive()
            if too_large:
                raise self._too_large()
            now = asyncio.get_running_loop().time()
            begun = now if begun is None else begun
            try:
                async with asyncio.timeout_at(begun + self._timeout_s):
                    message = await receive()
            except TimeoutError:
                timed_out = True
                raise self._too_slow() from None
            if message["type"] == "http.request":
                size = len(message.get("body", b""))
                received += size
                self._held_bytes += size
                complete = not message.get("more_body", False)
                if received > self._max_bytes:
                    raise self._too_large()
                if received < self._held_bytes and self._held_bytes > self._max_held_bytes:
                    crowded = not complete
                    raise self._too_many()
            return message

        async def closing_send(message: Message) -> None:
            # What is left of such a body is never read, so the connection cannot be used again.
            unread = too_large or timed_out or crowded or received > self._max_bytes
            if message["type"] == "http.response.start" and unread:
                message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            await send(message)

        try:
            await self._app(scope, counted_receive, closing_send)
        finally:
            self._held_bytes -= received

    def _too_many(self) -> RequestError:
        return RequestError(
            f"requests with more than {self._max_held_bytes:.0f} bytes in all are being read and answered",
            code="queue_full",
            remedy="Try again in a moment, or send smaller photos: the model looks at a small version of them anyway",
        )

    def _too_slow(self) -> RequestError:
        return RequestError(
            f"the request did not arrive within {self._timeout_s:g} s",
            code="request_timeout",
            remedy="Send a smaller photo, or over a faster connection",
        )

    def _too_large(self) -> RequestError:
        return RequestError(
            f"the request body has more than {self._max_bytes} bytes",
            code="body_too_large",
            remedy="Send a smaller photo: the model looks at a small version of it anyway",
        )


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
        # A client's faults are reported to the client; uvicorn's warnings of them could fill the disk.
        self.logger = logging.getLogger("uvicorn.error.protocol")
        self.logger.setLevel(logging.ERROR)
        self._header_bytes = 0
        self._in_headers = True
        self._body_bytes = self._framing_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer for the headers of the first request."""
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count bytes until the headers are complete."""
        if self._in_headers:
            self._header_bytes += len(data)
            self._start_timer()
        else:
            self._framing_bytes += len(data)  # less what turns out to be of the body
        super().data_received(data)
        if self._framing_bytes > self.max_header_bytes + _FRAMING_SHARE * self._body_bytes:
            # Chunk extensions and trailers: they are never used, and an answer may be under way already.
            self.transport.close()
            return
        # One chunk may hold headers and the beginning of a body: only unfinished headers are checked.
        if self._in_headers and self._header_bytes > self.max_header_bytes:
            self._reject(
                RequestError(
                    f"the request line and headers have more than {self.max_header_bytes} bytes",
                    code="headers_too_large",
                    remedy="Send fewer or shorter headers, and photos in the body",
                )
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the headers; those that follow a body in chunks have no limit of their own and are dropped."""
        if self._in_headers:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """Count what is not framing."""
        self._framing_bytes = max(self._framing_bytes - len(body), 0)
        self._body_bytes += len(body)
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP gets a problem too, in place of uvicorn's line of text."""
        self._reject(
            RequestError(
                "this is not a valid HTTP request", remedy="Check the request line, the headers and the lengths"
            )
        )

    def on_headers_complete(self) -> None:
        """The body has its own limits."""
        self._in_headers = False
        self._header_bytes = self._body_bytes = self._framing_bytes = 0
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The next request on the connection begins with headers again, whenever it comes."""
        super().on_message_complete()
        self._in_headers = True
        self._framing_bytes = 0

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.header_timeout_s, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._reject(
            RequestError(
                f"the request's headers did not arrive within {self.header_timeout_s:g} s",
                code="request_timeout",
                remedy="Send them at once, or over a faster connection",
            )
        )

    def _reject(self, error: RequestError) -> None:
        """Answer what never reaches the app, and close the connection."""
        self._stop_timer()
        if self.transport.is_closing():
            return
        problem = problem_of(error, new_request_id())
        body = problem.model_dump_json(exclude_none=True).encode()
        head = f"HTTP/1.1 {problem.status} {problem.title}\r\nContent-Type: {MEDIA_TYPE}\r\n"
        self.transport.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        self.transport.close()
