"""Run the HTTP server: the socket first, then the model; and the metrics on a port of their own."""

import contextlib
import logging
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Final
from wsgiref.simple_server import WSGIRequestHandler, make_server

import uvicorn
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from retrieval.errors import ServerError
from retrieval.machine import limit_arenas
from service.http.app import create_app
from service.http.limits import bounded_http
from service.jobs.service import JobService
from service.observing.metrics import Metrics
from service.serving.live_localizer import LiveLocalizer
from service.serving.localization import LocalizationService
from service.settings import ServerSettings, host_in_url

if TYPE_CHECKING:
    from service.grpc.server import GrpcServer

_log = logging.getLogger("sightfix.service")

# Of the heap: for Python's requests, the decoders and the model; more only hold more of what was freed.
_ARENAS: Final = 2

_USUAL_METRICS_PORT: Final = 9464  # OpenTelemetry's for Prometheus
_METRICS_READ_LIMIT_S: Final = 10.0


class _Server(uvicorn.Server):
    """uvicorn with a drain delay, and a gRPC server on the same event loop.

    On SIGTERM /readyz turns 503 while requests are still answered for `drain_delay_s`, so that load balancers stop
    sending; then uvicorn stops listening and finishes what it has. A second signal cuts the delay short. The server
    also stops when loading fails: one that can never answer should not look alive.
    """

    def __init__(
        self, config: uvicorn.Config, live: LiveLocalizer, drain_delay_s: float, grpc: "GrpcServer | None" = None
    ) -> None:
        super().__init__(config)
        self._live = live
        self._grpc = grpc
        self._drain_delay_s = drain_delay_s
        self._drained: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain, or stop at once when already draining."""
        if self._drained is not None or self._drain_delay_s == 0.0 or self._live.readiness.state != "ready":
            super().handle_exit(sig, frame)
            return
        self._live.begin_shutdown()
        self._drained = time.monotonic() + self._drain_delay_s
        _log.info("stopping: /readyz reports it for %g s", self._drain_delay_s)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen for gRPC first: a port that is taken must be known before anything is loaded."""
        if self._grpc is not None:
            await self._grpc.start()
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, finish with gRPC, then with HTTP; both together within the one time for it."""
        if self._grpc is not None:
            for server in self.servers:
                server.close()
            begun = time.monotonic()
            allowed_s = self.config.timeout_graceful_shutdown or 0
            await self._grpc.stop(allowed_s)
            self.config.timeout_graceful_shutdown = max(round(allowed_s - (time.monotonic() - begun)), 1)
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        if self._live.failure is not None:
            return True
        if self._drained is not None and time.monotonic() >= self._drained:
            return True
        return await super().on_tick(counter)


def serve(settings: ServerSettings) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        ParameterError: TLS files that do not load, or an address beyond this machine without keys.
        ApiKeyError: the API keys cannot be read.
        IndexNotFoundError: there is no such index (before anything is opened).
        StoreUnavailableError: the engine that holds it cannot be reached.
        ServerError: the address cannot be listened on.
        SightfixError: the bundle or the index cannot be loaded.
    """
    limit_arenas(_ARENAS)  # before there are threads that could have theirs
    settings.check_exposure()
    tls = settings.tls
    if tls is not None:
        tls.check()
    store = settings.open_store()
    index = store.find(settings.index)
    store.current(index)
    listener = open_socket(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    localization = LocalizationService(settings, store=store)
    # Without folders to read from there is nothing to do, and the disk may be read-only.
    jobs = JobService(settings.jobs) if settings.source_roots else None
    config = uvicorn.Config(
        create_app(localization, jobs),
        log_config=None,  # its messages go where ours go, see service.observing.logs
        access_log=False,  # ours has the route, the fix and the trace, and never a path
        timeout_graceful_shutdown=settings.stop_timeout_s,
        server_header=False,
        http=bounded_http(settings.max_header_bytes, settings.header_timeout_s),
        ssl_certfile=tls.certificate if tls else None,
        ssl_keyfile=tls.key if tls else None,
        ssl_ca_certs=str(tls.client_ca) if tls and tls.client_ca else None,
        ssl_cert_reqs=ssl.CERT_REQUIRED if tls and tls.client_ca else ssl.CERT_NONE,
    )
    logging.getLogger("sightfix").setLevel(settings.log_level.upper())
    address = f"{'https' if tls else 'http'}://{host_in_url(host)}:{port}"
    _log.info("listening on %s, serving %s of %s", address, index, store.where)
    # uvicorn drains, then raises the signal again: a requested stop is not a failure.
    signal.signal(signal.SIGTERM, _exit_quietly)
    live = localization.live
    with contextlib.suppress(KeyboardInterrupt), metrics_served(settings, localization.observer.metrics):
        _Server(config, live, settings.drain_delay_s, _grpc_server(localization, jobs)).run(sockets=[listener])
    if live.failure is not None:
        raise live.failure


def _grpc_server(localization: LocalizationService, jobs: JobService | None) -> "GrpcServer | None":
    """The gRPC server if one is wanted; its library is loaded then only."""
    port = localization.settings.grpc_port
    if port is None:
        return None
    from service.grpc.server import GrpcServer

    return GrpcServer(localization, port, jobs)


def _exit_quietly(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def open_socket(host: str, port: int) -> socket.socket:
    """Listen on an address; port 0 takes a free one.

    Raises:
        ServerError: it is taken, or not this machine's.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        raise ServerError(
            f"cannot listen on {host}:{port} ({error.strerror})",
            remedy="Choose another port with --port (0 takes a free one)",
        ) from error
    listener.setblocking(False)
    return listener


class MetricsServer:
    """Answers every GET with the metrics; as OpenMetrics and compressed if the client accepts that.

    Args:
        registry: what to show.
        host, port: where; port 0 takes a free one.

    Raises:
        ServerError: the address cannot be listened on.
    """

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        family = _MetricsWsgiIPv6 if ":" in host else _MetricsWsgi
        try:
            self._server = make_server(host, port, make_wsgi_app(registry), family, _SilentHandler)
        except OSError as error:
            raise ServerError(
                f"cannot listen on {host}:{port} for metrics ({error.strerror})",
                remedy="Choose another port with SIGHTFIX_METRICS_PORT (0 takes a free one), or SIGHTFIX_METRICS=off",
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self.url = f"http://{host_in_url(host)}:{self._server.server_port}/metrics"

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering, and free the port."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join(5.0)
        self._server.server_close()


class _MetricsWsgi(ThreadingWSGIServer):
    """Does not wait for its threads when it closes."""

    daemon_threads = True
    block_on_close = False


class _MetricsWsgiIPv6(_MetricsWsgi):
    address_family = socket.AF_INET6


class _SilentHandler(WSGIRequestHandler):
    """Logs nothing, and drops a client that sends nothing."""

    timeout = _METRICS_READ_LIMIT_S

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Scrapes are not worth a line."""


@contextlib.contextmanager
def metrics_served(settings: ServerSettings, metrics: Metrics | None) -> Iterator[None]:
    """Serve the metrics on their own port while the server runs, if the settings say so.

    Raises:
        ServerError: the port that was asked for cannot be listened on.
    """
    if metrics is None or settings.metrics != "port":
        yield
        return
    server = _open_metrics(settings, metrics.registry)
    server.start()
    _log.info("metrics at %s", server.url)
    try:
        yield
    finally:
        server.stop()


def _open_metrics(settings: ServerSettings, registry: CollectorRegistry) -> MetricsServer:
    host, port = settings.metrics_host, settings.metrics_port
    if port is not None:
        return MetricsServer(registry, host, port)
    try:
        return MetricsServer(registry, host, _USUAL_METRICS_PORT)
    except ServerError:  # a second server on this machine, most likely
        return MetricsServer(registry, host, 0)
