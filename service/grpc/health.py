"""`grpc.health.v1.Health`: SERVING while /readyz says 200."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from grpc_health.v1.health import aio as grpc_health_aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from service.live_localizer import LiveLocalizer

if TYPE_CHECKING:
    from service.grpc.calls import Context

# For those who watch; whoever asks is told what is so at that moment. The localizer becomes ready in another thread.
_LOOK_EVERY_S: Final = 0.1


class FollowingHealth(grpc_health_aio.HealthServicer):  # type: ignore[misc]
    """Health that follows the readiness of the live localizer, for Check and for Watch.

    Args:
        live: whose readiness counts.
        services: full names; the whole server, ``""``, comes beside them.
    """

    def __init__(self, live: LiveLocalizer, services: Sequence[str]) -> None:
        super().__init__()
        self._live = live
        self._services = ("", *services)
        self._following: asyncio.Task[None] | None = None
        self._told: bool | None = None

    async def start(self) -> None:
        """Tell how it is now, and follow."""
        await self._tell()
        self._following = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """Tell NOT_SERVING, for good."""
        if self._following is not None:
            self._following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._following
        await self.enter_graceful_shutdown()

    async def Check(self, request: HealthCheckRequest, context: "Context") -> Any:  # noqa: N802
        """How it is now."""
        await self._tell()
        return await super().Check(request, context)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            await self._tell()

    async def _tell(self) -> None:
        ready = self._live.readiness.state == "ready"
        if ready == self._told:
            return
        self._told = ready
        status = HealthCheckResponse.SERVING if ready else HealthCheckResponse.NOT_SERVING
        for service in self._services:
            await self.set(service, status)
