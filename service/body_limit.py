"""Count the bytes of a request body as they arrive; a declared length is only believed when it is too large."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.problems import RequestError


class BodyLimit:
    """ASGI middleware: reading more than `max_bytes` of a body raises a `body_too_large` problem, chunked or not."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app with a counted body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received = 0
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        too_large = declared.isdigit() and int(declared) > self._max_bytes

        async def counted_receive() -> Message:
            nonlocal received
            if too_large:
                raise self._error()
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self._max_bytes:
                    raise self._error()
            return message

        async def closing_send(message: Message) -> None:
            # What is left of an oversized body is never read, so the connection cannot be used again.
            if message["type"] == "http.response.start" and (too_large or received > self._max_bytes):
                message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            await send(message)

        await self._app(scope, counted_receive, closing_send)

    def _error(self) -> RequestError:
        return RequestError(
            f"the request body has more than {self._max_bytes} bytes",
            code="body_too_large",
            remedy="Send a smaller photo: the model looks at a small version of it anyway",
        )
