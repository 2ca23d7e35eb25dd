"""Metrics on a port of their own, answered by threads of their own: also while the server itself is in trouble."""

import contextlib
import logging
import socket
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from retrieval.errors import ServerError
from service.observing.metrics import Metrics

if TYPE_CHECKING:
    from service.settings import ServerSettings

_log = logging.getLogger("sightfix.service")

USUAL_PORT: Final = 9464  # OpenTelemetry's for Prometheus
_READ_LIMIT_S: Final = 10.0


class MetricsServer:
    """Answers every GET with the metrics; as OpenMetrics and compressed if the client accepts that.

    Args:
        registry: what to show.
        host, port: where; port 0 takes a free one.

    Raises:
        ServerError: the address cannot be listened on.
    """

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        family = _IPv6Server if ":" in host else _Server
        try:
            self._server = make_server(host, port, make_wsgi_app(registry), family, _SilentHandler)
        except OSError as error:
            raise ServerError(
                f"cannot listen on {host}:{port} for metrics ({error.strerror})",
                remedy="Choose another port with SIGHTFIX_METRICS_PORT (0 takes a free one), or SIGHTFIX_METRICS=off",
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_port}/metrics"

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering, and free the port."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join(5.0)
        self._server.server_close()


class _Server(ThreadingWSGIServer):
    """Does not wait for its threads when it closes."""

    daemon_threads = True
    block_on_close = False


class _IPv6Server(_Server):
    address_family = socket.AF_INET6


class _SilentHandler(WSGIRequestHandler):
    """Logs nothing, and drops a client that sends nothing."""

    timeout = _READ_LIMIT_S

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Scrapes are not worth a line."""


@contextlib.contextmanager
def metrics_served(settings: "ServerSettings", metrics: Metrics | None) -> Iterator[None]:
    """Serve the metrics on their own port while the server runs, if the settings say so.

    Raises:
        ServerError: the port that was asked for cannot be listened on.
    """
    if metrics is None or settings.metrics != "port":
        yield
        return
    server = _opened(settings, metrics.registry)
    server.start()
    _log.info("metrics at %s", server.url)
    try:
        yield
    finally:
        server.stop()


def _opened(settings: "ServerSettings", registry: CollectorRegistry) -> MetricsServer:
    host, port = settings.metrics_host, settings.metrics_port
    if port is not None:
        return MetricsServer(registry, host, port)
    try:
        return MetricsServer(registry, host, USUAL_PORT)
    except ServerError:  # a second server on this machine, most likely
        return MetricsServer(registry, host, 0)
