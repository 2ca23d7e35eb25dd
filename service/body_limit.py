"""Count the bytes of a request body as they arrive, and the seconds it takes to; and the bytes of all bodies together.

A declared length is only believed when it is too large.
"""

import asyncio
import math

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.problems import RequestError


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
