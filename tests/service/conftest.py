"""One localization app for the tests of the service."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from service.http.app import create_app
from service.serving.localization import LocalizationService
from service.settings import ServerSettings
from tests.conftest import PublishedPlaces


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
