"""A server with API keys, jobs, map tiles and a small limit: what the page makes of each."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import httpx
import pytest
from PIL import Image

from service.api_keys import make_key
from sightfix.demo import DemoTown
from tests.running_server import RunningServer, forked_server
from tests.service.web.conftest import Visiting
from tests.service.web.visit import Visit

LIMIT_BYTES = 300_000
ATTRIBUTION = "© <b>Town</b> survey"


@dataclass(frozen=True)
class Guarded:
    """The server, its keys, and where its map's tiles come from."""

    server: RunningServer
    visitor_key: str
    admin_key: str
    tiles: str


@pytest.fixture(scope="module")
def tiles() -> Iterator[str]:
    """A server of map tiles, all alike."""
    buffer = io.BytesIO()
    Image.new("RGB", (256, 256), (200, 220, 190)).save(buffer, "PNG")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.end_headers()
            self.wfile.write(buffer.getvalue())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join(timeout=10)


@pytest.fixture(scope="module")
def guarded(town: DemoTown, tiles: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    keys = folder / "keys.toml"
    visitor, admin = make_key(keys, "visitor", ("localize",)), make_key(keys, "admin", ("admin",))
    arguments = ["--indexes", str(town.indexes), "--api-keys", str(keys), "--source-root", str(town.folder)]
    arguments += ["--tile-url", tiles + "/{z}/{x}/{y}.png", "--tile-attribution", ATTRIBUTION]
    environment = {
        "SIGHTFIX_METRICS": "off",
        "SIGHTFIX_MAX_IMAGE_BYTES": str(LIMIT_BYTES),
        "SIGHTFIX_JOBS_FOLDER": str(folder / "jobs"),
    }
    with forked_server(folder / "log", arguments, environment) as running:
        running.wait_until_ready()
        yield Guarded(running, visitor, admin, tiles)


def enter(visit: Visit, key: str) -> None:
    visit.page.fill("[name=key]", key)
    visit.page.keyboard.press("Enter")


@pytest.fixture
def guest(visit: Visiting, guarded: Guarded) -> Visit:
    seen = visit(guarded.server.url)
    seen.failing = {401, 403}
    seen.hosts = {guarded.tiles}
    return seen


def test_the_key_is_asked_for_and_the_photo_waits_for_it(guest: Visit, guarded: Guarded, town: DemoTown) -> None:
    guest.open("waiting")
    page = guest.page
    assert "requires an API key" in page.inner_text("#banner")
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.method) if "/localize" in request.url else None)
    guest.choose(town.queries[0].path)
    page.wait_for_selector("#key-dialog[open]")
    assert sent == [], "nothing travels in vain"
    assert guest.inaccessible() == []
    enter(guest, "sfx_wrong")
    page.wait_for_selector("#key-why:not([hidden])")
    assert page.inner_text("#key-why").startswith("The API key is unknown")
    enter(guest, guarded.visitor_key)
    page.wait_for_selector("#answer-status:not([hidden])")
    page.wait_for_selector("#state[data-state=ready]")
    assert page.is_hidden("#banner")
    # Thumbnails want the key, too.
    guest.until("document.querySelector('.match img')?.naturalWidth > 0")
    assert page.get_attribute(".match img >> nth=0", "src").startswith("blob:")
    kept = page.evaluate("[JSON.stringify(localStorage), document.cookie, location.href]")
    assert guarded.visitor_key not in " ".join(kept), "for this tab only"
    guest.open()
    assert page.is_hidden("#jobs-part"), "this key may not see jobs"


def test_a_photo_over_the_limit_is_sent_smaller(guest: Visit, guarded: Guarded, town: DemoTown) -> None:
    with Image.open(town.queries[0].path) as small:
        large = small.resize((1800, 1350))
    photo = town.folder / "large.png"
    large.save(photo)
    assert photo.stat().st_size > LIMIT_BYTES
    guest.open("waiting")
    guest.page.click("#key-button")
    enter(guest, guarded.visitor_key)
    guest.page.wait_for_selector("#state[data-state=ready]")
    assert guest.page.inner_text("#limit-text").endswith("300\u00a0kB")
    guest.ask(photo)
    assert "a smaller copy was sent" in guest.page.inner_text("#preview-caption")
    assert guest.page.locator(".match").count() == 10


def test_jobs_are_shown_to_who_may_see_them(guest: Visit, guarded: Guarded) -> None:
    headers = {"Authorization": f"Bearer {guarded.admin_key}"}
    body = {"kind": "remove", "index": "no-town", "reference_ids": ["nobody"]}
    httpx.post(f"{guarded.server.url}/jobs", json=body, headers=headers).raise_for_status()
    guest.open("waiting")
    guest.page.click("#key-button")
    enter(guest, guarded.admin_key)
    guest.page.wait_for_selector("#jobs li")
    assert "remove no-town" in guest.page.inner_text("#jobs")


def test_map_tiles_are_loaded_where_an_operator_names_them(guest: Visit, guarded: Guarded, town: DemoTown) -> None:
    guest.open("waiting")
    page = guest.page
    page.click("#key-button")
    enter(guest, guarded.visitor_key)
    guest.ask(town.queries[0].path)
    page.wait_for_selector("#map.tiled img.leaflet-tile-loaded")
    assert page.inner_text(".leaflet-control-attribution") == ATTRIBUTION, "as text"
    assert page.is_hidden(".grid-labels")
    assert page.get_attribute("img.leaflet-tile >> nth=0", "referrerpolicy") == "origin"
    assert guest.inaccessible() == []


def test_without_its_tiles_the_map_is_a_grid(guest: Visit, guarded: Guarded) -> None:
    guest.unreachable = True
    guest.page.route(f"{guarded.tiles}/**", lambda route: route.abort())
    guest.open("waiting")
    guest.page.click("#key-button")
    enter(guest, guarded.visitor_key)
    guest.page.wait_for_selector("#state[data-state=ready]")
    guest.page.wait_for_timeout(300)
    assert guest.page.is_visible(".grid-labels")
    assert guest.page.locator(".grid-line").count() > 4
    assert guest.page.locator("#map.tiled").count() == 0
