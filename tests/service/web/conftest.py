"""A small toy town, servers of it, and a browser to visit them with."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from sightfix.demo import DemoTown, prepare_town
from tests.browser import FLAGS, chromium
from tests.running_server import RunningServer, running_server
from tests.service.web.visit import LIMIT_MS, Visit

Visiting = Callable[..., Visit]


@pytest.fixture(scope="session")
def town(tmp_path_factory: pytest.TempPathFactory) -> DemoTown:
    """A few streets with their photos, indexed."""
    return prepare_town(tmp_path_factory.mktemp("town"), references=24, queries=4)


@pytest.fixture(scope="session")
def town_server(town: DemoTown) -> Iterator[RunningServer]:
    """A server process as `sightfix serve` starts it."""
    with running_server(town.folder / "log", ["--indexes", str(town.indexes)], {"SIGHTFIX_METRICS": "off"}) as running:
        running.wait_until_ready()
        yield running


# No wider: Playwright keeps an event loop in this thread, beside which other tests could not run theirs.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    path = chromium()
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=list(FLAGS), timeout=3 * LIMIT_MS)
        yield started
        started.close()


@pytest.fixture
def visit(browser: Browser, town_server: RunningServer) -> Iterator[Visiting]:
    """Make visits, to the town's server unless another is named; each is looked over when the test ends."""
    visits: list[Visit] = []

    def begin(url: str | None = None, **context: Any) -> Visit:
        visits.append(Visit(browser, url or town_server.url, **context))
        return visits[-1]

    yield begin
    for one in visits:
        one.end()
