"""Work is dropped when whoever asked for it has left."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

Value = TypeVar("Value")


async def while_present(request: Request, work: Coroutine[Any, Any, Value]) -> Value:
    """Do some work, and cancel it when the client closes its connection.

    Args:
        request: its body must have been read to the end.
        work: what to do.

    Raises:
        ClientDisconnect: the client has left.
        Exception: whatever the work raises.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_leave(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            if not task.done():
                task.cancel()


async def _leave(request: Request) -> None:
    """Return when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
