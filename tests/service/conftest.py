"""One live app and one running server for the tests of the service."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from service.http.app import create_app
from service.serving.live_localizer import LiveLocalizer
from service.settings import ServerSettings
from tests.conftest import PublishedPlaces
from tests.running_server import RunningServer, running_server


@pytest.fixture(scope="session")
def http(published: PublishedPlaces) -> Iterator[TestClient]:
    """A client of a ready app that serves the twelve places, limits at 1 MiB and 2 megapixels."""
    live = LiveLocalizer(ServerSettings(indexes=published.indexes, max_image_bytes=1 << 20, max_pixels=2_000_000))
    with TestClient(create_app(live), raise_server_exceptions=False) as client:
        live.wait_until_loaded(60.0)
        assert live.readiness.state == "ready", live.readiness.reason
        yield client


@pytest.fixture(scope="session")
def server(published: PublishedPlaces, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A real server process with the default limits."""
    log = tmp_path_factory.mktemp("server") / "log"
    with running_server(log, ["--indexes", str(published.indexes)]) as running:
        running.wait_until_ready()
        yield running
