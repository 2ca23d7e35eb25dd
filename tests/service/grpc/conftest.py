"""One gRPC server in a process of its own, and servers in this one whose insides a test can hold."""

import asyncio
import contextlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from service.grpc.generated.localization_pb2_grpc import LocalizationServiceStub
from service.grpc.server import GrpcServer
from service.serving.localization import LocalizationService
from service.settings import ServerSettings
from tests.conftest import PublishedPlaces
from tests.running_server import RunningServer, running_server


def grpc_address(running: RunningServer) -> str:
    """Where a server process listens for gRPC; it has said so before its HTTP address was of use."""
    found = re.search(r"gRPC at (\S+?)(,| with|$)", running.log.read_text(), re.MULTILINE)
    assert found, running.log.read_text()
    return found.group(1)


@dataclass(frozen=True)
class Served:
    """A localization service in this process and where it answers."""

    localization: LocalizationService
    address: str
    server: GrpcServer
    loop: asyncio.AbstractEventLoop


@contextlib.contextmanager
def served(localization: LocalizationService, *, load: bool = True, **kwargs: object) -> Iterator[Served]:
    """Serve gRPC from a thread with an event loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="grpc-test", daemon=True)
    thread.start()

    def run(coroutine: object, timeout: float = 30.0) -> object:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(timeout)  # type: ignore[arg-type]

    async def make() -> tuple[GrpcServer, int]:
        server = GrpcServer(localization, 0, **kwargs)  # type: ignore[arg-type]
        return server, await server.start()

    if load:
        localization.start()
        localization.live.wait_until_loaded(60)
        assert localization.live.readiness.state == "ready", localization.live.readiness.reason
    server, port = run(make())  # type: ignore[misc]
    try:
        yield Served(localization, f"127.0.0.1:{port}", server, loop)
    finally:
        run(server.stop(5))
        localization.stop()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.fixture(scope="session")
def process(published: PublishedPlaces, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A real server process with gRPC and small limits: 1 MiB and 2 megapixels."""
    log = tmp_path_factory.mktemp("grpc") / "log"
    limits = {"SIGHTFIX_MAX_IMAGE_BYTES": str(1 << 20), "SIGHTFIX_MAX_PIXELS": "2000000"}
    with running_server(log, ["--indexes", str(published.indexes), "--grpc-port", "0"], limits) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture(scope="session")
def channel(process: RunningServer) -> Iterator[grpc.Channel]:
    """A channel to that process."""
    with grpc.insecure_channel(grpc_address(process)) as channel:
        yield channel


@pytest.fixture(scope="session")
def stub(channel: grpc.Channel) -> LocalizationServiceStub:
    """Calls that process."""
    return LocalizationServiceStub(channel)


@pytest.fixture
def inside(published: PublishedPlaces, tmp_path: Path) -> Iterator[Served]:
    """A server in this process, whose batcher takes at most 8 photos."""
    settings = ServerSettings(indexes=published.indexes, threads=1, max_waiting=8, metrics="main")
    with served(LocalizationService(settings)) as running:
        yield running
