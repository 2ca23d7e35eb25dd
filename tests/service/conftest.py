"""One localization app and one running server for the tests of the service."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from service.http.app import create_app
from service.serving.localization import LocalizationService
from service.settings import ServerSettings
from tests.conftest import PublishedPlaces
from tests.running_server import RunningServer, running_server


@pytest.fixture(scope="session")
def http(published: PublishedPlaces) -> Iterator[TestClient]:
    """A client of a ready app that serves the twelve places, limits at 1 MiB and 2 megapixels."""
    localization = LocalizationService(
        ServerSettings(indexes=published.indexes, max_image_bytes=1 << 20, max_pixels=2_000_000)
    )
    with TestClient(create_app(localization), raise_server_exceptions=False) as client:
        localization.live.wait_until_loaded(60.0)
        assert localization.live.readiness.state == "ready", localization.live.readiness.reason
        yield client


@pytest.fixture(scope="session")
def server(published: PublishedPlaces, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A real server process with the default limits."""
    log = tmp_path_factory.mktemp("server") / "log"
    with running_server(log, ["--indexes", str(published.indexes)]) as running:
        running.wait_until_ready()
        yield running
