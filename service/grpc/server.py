"""The gRPC server: beside the HTTP one on its event loop, on the same live localizer, so with the same limits."""

import asyncio
import contextlib
import logging
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from retrieval.errors import ServerError
from service.api_keys import KeyRing
from service.grpc.calls import Calls
from service.grpc.door import Door
from service.grpc.generated import jobs_pb2, localization_pb2
from service.grpc.health import FollowingHealth
from service.grpc.job_calls import JobServicer
from service.grpc.localization import LocalizationServicer
from service.jobs.job_service import JobService
from service.live_localizer import LiveLocalizer
from service.settings import ServerSettings

_log = logging.getLogger("sightfix.service")

_LOCALIZATION: Final = localization_pb2.DESCRIPTOR.services_by_name["LocalizationService"]
_JOBS: Final = jobs_pb2.DESCRIPTOR.services_by_name["JobService"]
# Of a message, beside the image.
_MESSAGE_ROOM_BYTES: Final = 64 * 1024
# A photo arrives without waiting for the window to move: 0.1 ms for 300 kB. What a stream may send ahead, too.
_LOOKAHEAD_BYTES: Final = 1024 * 1024
# Health watchers and idle reflection clients never end by themselves.
_LAST_GRACE_S: Final = 0.5
# A robot that drives out of the radio's reach closes nothing: it is found out by asking.
_PING_EVERY_MS: Final = 60_000
_PING_ANSWER_MS: Final = 20_000
_CLIENT_PING_EVERY_MS: Final = 10_000


class GrpcServer:
    """Serves `sightfix.v1`, health and reflection.

    Args:
        live: who localizes.
        jobs: who keeps the jobs; None leaves `JobService` out.
        port: to listen on; 0 takes a free one.
    """

    def __init__(self, live: LiveLocalizer, port: int, jobs: JobService | None = None) -> None:
        self._live = live
        self._port = port
        self._jobs = jobs
        self._server: grpc.aio.Server | None = None
        self._calls: Calls | None = None
        self._health: FollowingHealth | None = None

    async def start(self) -> int:
        """Listen; what comes before the model is loaded is answered with UNAVAILABLE.

        Returns:
            the port.

        Raises:
            ServerError: the address cannot be listened on.
            ApiKeyError: the API keys cannot be read.
        """
        settings = self._live.settings
        services = [_LOCALIZATION] if self._jobs is None else [_LOCALIZATION, _JOBS]
        calls = Calls(self._live.observer, settings.access_log, self._live.refusals)
        keys = KeyRing(settings.api_keys) if settings.api_keys is not None else None
        server = grpc.aio.server(
            options=_options(settings),
            # Each may hold a whole photo; what goes beyond the queue is there to be refused in our words.
            maximum_concurrent_rpcs=max(4 * settings.max_waiting, 64),
        )
        door = Door(calls, keys, settings.body_timeout_s)
        door.add(server, _LOCALIZATION, LocalizationServicer(self._live, calls.stopping), "localize")
        if self._jobs is not None:
            door.add(server, _JOBS, JobServicer(self._jobs), "admin")
        names = [service.full_name for service in services]
        health = FollowingHealth(self._live, names)
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        reflection.enable_server_reflection([*names, health_name, reflection.SERVICE_NAME], server)
        port = _listen(server, settings, self._port)
        await health.start()
        await server.start()
        self._server, self._calls, self._health = server, calls, health
        shown = f"[{settings.host}]" if ":" in settings.host else settings.host
        _log.info("gRPC at %s:%d%s", shown, port, " with TLS" if settings.tls else "")
        return port

    async def stop(self, timeout_s: float) -> None:
        """Let nobody in any more, answer what is in hand, and cut off what is left.

        Args:
            timeout_s: how long to wait for what is in hand.
        """
        if self._server is None or self._calls is None or self._health is None:
            return
        await self._health.stop()
        self._calls.stopping.set()
        closing = asyncio.create_task(self._server.stop(timeout_s))
        finished = asyncio.create_task(self._calls.finished())
        await asyncio.wait({closing, finished}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({closing}, timeout=_LAST_GRACE_S)
        finished.cancel()
        if not closing.done():
            closing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await closing
            await self._server.stop(None)
        self._server = None


def _options(settings: ServerSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.max_image_bytes + _MESSAGE_ROOM_BYTES),
        ("grpc.max_metadata_size", settings.max_header_bytes),
        # Two servers on one port would share its calls, and nobody would notice.
        ("grpc.so_reuseport", 0),
        ("grpc.http2.lookahead_bytes", _LOOKAHEAD_BYTES),
        ("grpc.keepalive_time_ms", _PING_EVERY_MS),
        ("grpc.keepalive_timeout_ms", _PING_ANSWER_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _CLIENT_PING_EVERY_MS),
    ]


def _listen(server: grpc.aio.Server, settings: ServerSettings, port: int) -> int:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    tls = settings.tls
    try:
        if tls is None:
            return server.add_insecure_port(f"{host}:{port}")
        client_ca = tls.client_ca.read_bytes() if tls.client_ca else None
        credentials = grpc.ssl_server_credentials(
            [(tls.key.read_bytes(), tls.certificate.read_bytes())],
            root_certificates=client_ca,
            require_client_auth=client_ca is not None,
        )
        return server.add_secure_port(f"{host}:{port}", credentials)
    except RuntimeError as error:
        raise ServerError(
            f"cannot listen on {host}:{port} for gRPC",
            remedy="Choose another port with --grpc-port (0 takes a free one)",
        ) from error
