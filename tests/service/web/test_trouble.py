"""What goes wrong is said, with the way on."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import httpx
from playwright.sync_api import Route

from sightfix.demo import DemoTown
from tests.running_server import RunningServer, forked_server
from tests.service.web.conftest import Visiting


def test_a_file_that_is_no_photo(visit: Visiting, town: DemoTown) -> None:
    file = town.folder / "letter.txt"
    file.write_text("Dear reader")
    seen = visit().open()
    seen.failing = {415}
    seen.choose(file)
    problem = seen.problem()
    assert "Send JPEG, PNG, WebP or HEIC" in problem
    assert "415 unsupported_media_type" in problem
    assert re.search(r"Request [0-9a-f]{32}", problem)
    assert "Try again" not in problem, "the same file would fail again"
    assert seen.page.is_visible("#preview-none")
    seen.ask(town.queries[0].path)
    assert not seen.page.is_visible("#problem")


def test_a_busy_server_is_asked_again_when_it_said(visit: Visiting, town: DemoTown) -> None:
    seen = visit().open()
    seen.failing = {429}
    asked: list[str] = []

    def busy_at_first(route: Route) -> None:
        asked.append(route.request.method)
        if len(asked) > 1:
            route.continue_()
            return
        problem = '{"title": "Too Many Requests", "detail": "64 photos are waiting", "code": "queue_full"}'
        route.fulfill(status=429, headers={"Retry-After": "2"}, content_type="application/problem+json", body=problem)

    seen.page.route("**/localize?*", busy_at_first)
    seen.choose(town.queries[0].path)
    assert "64 photos are waiting" in seen.problem()
    again = seen.page.locator("#problem button")
    assert again.is_disabled()
    assert re.fullmatch(r"Try again in \d s", again.inner_text())
    again.click()  # Playwright waits until it can be pressed
    seen.page.wait_for_selector("#answer-status:not([hidden])")
    assert asked == ["POST", "POST"]


def test_an_answer_that_comes_too_late_is_not_shown(visit: Visiting, town: DemoTown) -> None:
    seen = visit().open()
    held: list[Route] = []
    seen.page.route("**/localize?*", lambda route: held.append(route))
    seen.choose(town.queries[0].path)
    seen.page.wait_for_selector("#progress:not([hidden])")
    seen.page.click("#cancel")
    seen.page.wait_for_selector("#progress", state="hidden")
    assert seen.page.is_hidden("#answer-status")
    assert seen.page.is_hidden("#problem")
    seen.page.unroute("**/localize?*")
    seen.page.click("#options-details summary")
    seen.page.click("#ask-again")
    seen.page.wait_for_selector("#answer-status:not([hidden])")


def test_a_server_that_goes_away(visit: Visiting, town: DemoTown) -> None:
    log = town.folder / "gone.log"
    with forked_server(log, ["--indexes", str(town.indexes)], {"SIGHTFIX_METRICS": "off"}) as running:
        running.wait_until_ready()
        seen = visit(running.url).open()
        seen.unreachable = True
        assert running.stop() == 0
    seen.choose(town.queries[0].path)
    assert "cannot be reached" in seen.problem()
    assert seen.page.locator("#problem button").inner_text() == "Try again"
    seen.page.wait_for_selector("#state[data-state=failed]")
    assert "cannot be reached" in seen.page.inner_text("#banner")


@contextmanager
def proxy_below(prefix: str, url: str) -> Iterator[str]:
    """A reverse proxy that shows a server below a path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.startswith(f"{prefix}/"):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name: self.headers[name] for name in ("Content-Type", "Accept") if name in self.headers}
            answer = httpx.request(
                self.command, url + self.path.removeprefix(prefix), content=body, headers=headers, timeout=30
            )
            self.send_response(answer.status_code)
            for name in ("content-type", "content-security-policy", "x-content-type-options"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


def test_it_works_below_a_path(visit: Visiting, town: DemoTown, town_server: RunningServer) -> None:
    prefix = "/maps/sightfix"
    with proxy_below(prefix, town_server.url) as url:
        seen = visit(url + prefix).open()
        seen.ask(town.queries[0].path)
        seen.until("document.querySelector('.match img').naturalWidth > 0")
        assert seen.page.evaluate("document.querySelector('nav a').href") == f"{url}{prefix}/docs"
        # The proxy must not go while thumbnails are on their way.
        seen.page.wait_for_load_state("networkidle")
        seen.page.goto("about:blank")
