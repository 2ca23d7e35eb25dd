"""The gRPC server: beside the HTTP one on its event loop, with the same localization and so the same limits."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as grpc_health_aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha import reflection

from retrieval.errors import ServerError
from service.api_keys import KeyRing, check_key, presented_key
from service.api_keys import Scope as KeyScope
from service.grpc.calls import Calls
from service.grpc.generated import jobs_pb2, localization_pb2
from service.grpc.jobs import JobServicer
from service.grpc.localization import LocalizationServicer
from service.jobs.service import JobService
from service.problems import RequestError
from service.serving.live_localizer import LiveLocalizer
from service.serving.localization import LocalizationService
from service.settings import ServerSettings, host_in_url

if TYPE_CHECKING:
    from service.grpc.calls import Context

_log = logging.getLogger("sightfix.service")
_LOCALIZATION: Final = localization_pb2.DESCRIPTOR.services_by_name["LocalizationService"]
_JOBS: Final = jobs_pb2.DESCRIPTOR.services_by_name["JobService"]

# Of a message, beside the image.
_MESSAGE_ROOM_BYTES: Final = 64 * 1024

# A photo arrives without waiting for the window to move: 0.1 ms for 300 kB. What a stream may send ahead, too.
_LOOKAHEAD_BYTES: Final = 1024 * 1024

# Health watchers and idle reflection clients never end by themselves.
_LAST_GRACE_S: Final = 0.5

# A robot that loses its radio link closes nothing: only a ping shows that it is gone.
_PING_EVERY_MS: Final = 60_000

_PING_ANSWER_MS: Final = 20_000
_CLIENT_PING_EVERY_MS: Final = 10_000

# For Watch; Check reports the state of that moment. The localizer becomes ready in another thread.
_LOOK_EVERY_S: Final = 0.1

Answer = Callable[[Any, "Context"], Awaitable[Message]]
Answers = Callable[[AsyncIterator[Any], "Context"], AsyncGenerator[Message, None]]


class RpcGuard:
    """Checks the key of every call, before its message is read, and how long that message takes to arrive.

    Health and reflection have no guard: probes cannot hold keys, and protos are public. The methods are wrapped when
    they are registered; an interceptor would add a tenth of a millisecond to each call.

    Args:
        calls: observes the calls.
        keys: that are accepted; None accepts every call.
        read_timeout_s: how long the message of a call may take to arrive. Frames of a stream have no such limit.
    """

    def __init__(self, calls: Calls, keys: KeyRing | None, read_timeout_s: float) -> None:
        self._calls = calls
        self._keys = keys
        self._read_timeout_s = read_timeout_s

    def add(self, server: grpc.aio.Server, service: ServiceDescriptor, servicer: object, scope: KeyScope) -> None:
        """Serve a service behind the guard.

        Args:
            server: that is not started yet.
            service: its methods.
            servicer: has a method for each of the service's.
            scope: what a key must allow.
        """
        handlers = {
            method.name: self._streaming(method, getattr(servicer, method.name), scope)
            if method.client_streaming
            else self._single(method, getattr(servicer, method.name), scope)
            for method in service.methods
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))

    def _single(self, method: MethodDescriptor, answer: Answer, scope: KeyScope) -> "grpc.RpcMethodHandler[Any, Any]":
        name = _full_name(method)

        async def guarded(_: object, context: "Context") -> Message:
            async with self._calls.begin(context, name) as call:
                self._check(context, scope)
                request = await self._read(context)
                call.name(getattr(request, "request_id", ""))
                return await answer(request, context)

        # As if the requests were a stream: gRPC reads a single message before it asks the handler.
        return grpc.stream_unary_rpc_method_handler(guarded, *_codec(method))

    def _streaming(
        self, method: MethodDescriptor, answers: Answers, scope: KeyScope
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        name = _full_name(method)

        async def guarded(requests: AsyncIterator[Any], context: "Context") -> None:
            async with self._calls.begin(context, name):
                self._check(context, scope)
                # Closed at once when writing fails, not at the next garbage collection.
                async with contextlib.aclosing(answers(requests, context)) as responses:
                    async for response in responses:
                        await context.write(response)

        return grpc.stream_stream_rpc_method_handler(guarded, *_codec(method))

    def _check(self, context: "Context", scope: KeyScope) -> None:
        if self._keys is None:
            return
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        check_key(self._keys, presented_key(metadata.get("authorization"), metadata.get("x-api-key")), scope)

    async def _read(self, context: "Context") -> Any:
        try:
            async with asyncio.timeout(self._read_timeout_s):
                request = await context.read()
        except TimeoutError:
            raise RequestError(
                f"the request did not arrive within {self._read_timeout_s:g} s",
                code="request_timeout",
                remedy="Send a smaller photo, or use a better connection",
            ) from None
        if request is grpc.aio.EOF:
            raise RequestError("the call has no message", remedy="Send one")
        return request


def _full_name(method: MethodDescriptor) -> str:
    return f"{method.containing_service.full_name}/{method.name}"


def _codec(method: MethodDescriptor) -> tuple[Callable[[bytes], Any], Callable[[Any], bytes]]:
    return GetMessageClass(method.input_type).FromString, GetMessageClass(method.output_type).SerializeToString


class ReadinessHealth(grpc_health_aio.HealthServicer):  # type: ignore[misc]
    """`grpc.health.v1.Health`: SERVING while /readyz says 200, for Check and for Watch.

    Args:
        live: whose readiness is reported.
        services: full names; the whole server, ``""``, comes beside them.
    """

    def __init__(self, live: LiveLocalizer, services: Sequence[str]) -> None:
        super().__init__()
        self._live = live
        self._services = ("", *services)
        self._following: asyncio.Task[None] | None = None
        self._reported: bool | None = None

    async def start(self) -> None:
        """Report the readiness, and follow it."""
        await self._report()
        self._following = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """Report NOT_SERVING, for good."""
        if self._following is not None:
            self._following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._following
        await self.enter_graceful_shutdown()

    async def Check(self, request: HealthCheckRequest, context: "Context") -> Any:  # noqa: N802
        """The readiness at this moment."""
        await self._report()
        return await super().Check(request, context)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            await self._report()

    async def _report(self) -> None:
        ready = self._live.readiness.state == "ready"
        if ready == self._reported:
            return
        self._reported = ready
        status = HealthCheckResponse.SERVING if ready else HealthCheckResponse.NOT_SERVING
        for service in self._services:
            await self.set(service, status)


class GrpcServer:
    """Serves `sightfix.v1`, health and reflection.

    Args:
        localization: localizes.
        port: to listen on; 0 takes a free one.
        jobs: re-indexes; None leaves `JobService` out.
    """

    def __init__(self, localization: LocalizationService, port: int, jobs: JobService | None = None) -> None:
        self._localization = localization
        self._port = port
        self._jobs = jobs
        self._server: grpc.aio.Server | None = None
        self._calls: Calls | None = None
        self._health: ReadinessHealth | None = None

    async def start(self) -> int:
        """Listen; what comes before the model is loaded is answered with UNAVAILABLE.

        Returns:
            the port.

        Raises:
            ServerError: the address cannot be listened on.
            ApiKeyError: the API keys cannot be read.
        """
        localization, settings = self._localization, self._localization.settings
        services = [_LOCALIZATION] if self._jobs is None else [_LOCALIZATION, _JOBS]
        calls = Calls(localization.observer, settings.access_log, localization.rejections)
        keys = KeyRing(settings.api_keys) if settings.api_keys is not None else None
        server = grpc.aio.server(
            options=_options(settings),
            # Each may hold a whole photo; calls beyond the queue are rejected with our own errors.
            maximum_concurrent_rpcs=max(4 * settings.max_waiting, 64),
        )
        guard = RpcGuard(calls, keys, settings.body_timeout_s)
        guard.add(server, _LOCALIZATION, LocalizationServicer(localization, calls.stopping), "localize")
        if self._jobs is not None:
            guard.add(server, _JOBS, JobServicer(self._jobs), "admin")
        names = [service.full_name for service in services]
        health = ReadinessHealth(localization.live, names)
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        reflection.enable_server_reflection([*names, health_name, reflection.SERVICE_NAME], server)
        port = _listen(server, settings, self._port)
        await health.start()
        await server.start()
        self._server, self._calls, self._health = server, calls, health
        _log.info("gRPC at %s:%d%s", host_in_url(settings.host), port, " with TLS" if settings.tls else "")
        return port

    async def stop(self, timeout_s: float) -> None:
        """Accept no more calls, answer the pending ones, and cut off what is left.

        Args:
            timeout_s: how long to wait for pending calls.
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
        # Two servers on one port would share its calls silently.
        ("grpc.so_reuseport", 0),
        ("grpc.http2.lookahead_bytes", _LOOKAHEAD_BYTES),
        ("grpc.keepalive_time_ms", _PING_EVERY_MS),
        ("grpc.keepalive_timeout_ms", _PING_ANSWER_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _CLIENT_PING_EVERY_MS),
    ]


def _listen(server: grpc.aio.Server, settings: ServerSettings, port: int) -> int:
    host = host_in_url(settings.host)
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
