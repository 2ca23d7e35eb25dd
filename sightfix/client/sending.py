"""Sends one call as often as the policy allows; the deadline bounds all of it, pauses and last byte included."""

import asyncio
from collections.abc import Awaitable
from typing import Final, TypeVar

import httpx

from retrieval.errors import ParameterError
from sightfix.client.calls import Call, Lane
from sightfix.client.connection import Connection
from sightfix.client.errors import ProblemError, network_error
from sightfix.client.retrying import Attempts, RetryPolicy

Value = TypeVar("Value")

# Whatever httpx raises about the other side; a closed client and the like are our callers' mistakes.
_NETWORK_ERRORS: Final = (httpx.HTTPError, httpx.InvalidURL, TimeoutError)


class Sender:
    """The way to one server.

    Args:
        connection: how to reach it.
        retry: how often and how patiently to try again.
    """

    def __init__(self, connection: Connection, retry: RetryPolicy) -> None:
        self._url = connection.url
        self._retry = retry
        self._http = httpx.AsyncClient(**connection.arguments())

    def attempts(self, deadline_ms: float | None = None) -> Attempts:
        """Begin a call.

        Args:
            deadline_ms: from now; None for none.

        Raises:
            ParameterError: it has passed already.
        """
        if deadline_ms is not None and not deadline_ms > 0.0:
            raise ParameterError(f"deadline_ms {deadline_ms} is not above 0", remedy="Give milliseconds from now")
        return Attempts(self._retry, None if deadline_ms is None else deadline_ms / 1e3)

    async def answer(self, call: Call[Value], attempts: Attempts, lane: Lane | None = None) -> Value:
        """Send a call until it is answered.

        Args:
            call: what is asked.
            attempts: how often, and until when.
            lane: who goes first; None leaves it to the server.

        Raises:
            ProblemError: the server refused.
            ServerError: it cannot be reached, did not answer in time, or does not speak our protocol.
        """
        while True:
            left_s = attempts.left_s
            try:
                async with asyncio.timeout(left_s):
                    return call.answer(await self._http.request(**call.request(lane, left_s)))
            except _NETWORK_ERRORS as error:
                failure = network_error(self._url, error)
                failure.__cause__ = error
                pause_s = attempts.pause_after(failure, repeatable=call.repeatable)
            except ProblemError as error:
                pause_s = attempts.pause_after(error, repeatable=call.repeatable)
            await asyncio.sleep(pause_s)

    async def in_time(self, work: Awaitable[Value], attempts: Attempts) -> Value:
        """Wait for work on this machine, no longer than the call's deadline.

        Raises:
            ServerError: the deadline has passed (``server_timeout``).
        """
        try:
            async with asyncio.timeout(attempts.left_s):
                return await work
        except TimeoutError as error:
            raise network_error(self._url, error) from error

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()
