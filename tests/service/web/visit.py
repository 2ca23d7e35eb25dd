"""A page as somebody sees it, and what the browser has to say of it."""

import base64
import re
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, Request

LIMIT_MS = 20_000

# Nothing moves, so nobody has to wait for it to arrive.
_USUAL: Final = {"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce"}


class Visit:
    """One visitor's page.

    Args:
        browser: to open it in.
        url: of the server.
        context: of Playwright, such as ``color_scheme``.

    Attributes:
        failing: HTTP statuses that the visitor meets on purpose; Chromium's console reports each as an error.
        hosts: origins beside the server's that may be asked.
        unreachable: whether the visitor's server goes away.
    """

    def __init__(self, browser: Browser, url: str, **context: Any) -> None:
        self.url = url
        self.failing: set[int] = set()
        self.hosts: set[str] = set()
        self.unreachable = False
        self._asked: list[str] = []
        self._said: list[str] = []
        self._context = browser.new_context(**{**_USUAL, **context})
        self._context.set_default_timeout(LIMIT_MS)
        self.page: Page = self._context.new_page()
        self.page.on("request", self._on_request)
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self._said.append(f"uncaught: {error}"))

    def open(self, state: str = "ready") -> "Visit":
        """Go there, until the page says that the server is in that state."""
        self.page.goto(f"{self.url}/")
        self.page.wait_for_selector(f"#state[data-state={state}]")
        return self

    def choose(self, *photos: Path) -> None:
        """Choose photos, as from the dialog."""
        self.page.set_input_files("#file", list(photos))

    def ask(self, photo: Path) -> None:
        """Choose a photo and wait for its answer."""
        self.choose(photo)
        self.page.wait_for_selector("#answer-status:not([hidden])")

    def transfer(self, photo: Path, media_type: str) -> Any:
        """A photo as it is when dragged or pasted."""
        content = base64.b64encode(photo.read_bytes()).decode()
        return self.page.evaluate_handle(
            """([content, name, type]) => {
                const bytes = Uint8Array.from(atob(content), (sign) => sign.charCodeAt(0));
                const transfer = new DataTransfer();
                transfer.items.add(new File([bytes], name, { type }));
                return transfer;
            }""",
            [content, photo.name, media_type],
        )

    def problem(self) -> str:
        """The error that is shown, once there is one."""
        self.page.wait_for_selector("#problem:not([hidden])")
        return self.page.inner_text("#problem")

    def inaccessible(self) -> list[str]:
        """What axe finds wrong with the page as it is now."""
        found = Axe().run(self.page).response["violations"]
        return [f"{one['impact']} {one['id']}: {[node['html'] for node in one['nodes']]}" for one in found]

    def until(self, expression: str) -> None:
        """Wait until JavaScript is true; Playwright's own way needs `eval`, which the page forbids."""
        deadline = time.monotonic() + LIMIT_MS / 1000
        while not self.page.evaluate(expression):
            assert time.monotonic() < deadline, f"never true: {expression}"
            self.page.wait_for_timeout(50)

    def focus_by_tab(self, selector: str, limit: int = 40) -> None:
        """Press Tab until an element that matches has the focus."""
        for _ in range(limit):
            self.page.keyboard.press("Tab")
            if self.page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"{limit} times Tab do not lead to {selector}")

    def end(self) -> None:
        """Leave, and complain about what nobody may see happen."""
        self._context.close()
        strangers = {host for host in self._asked if host != _origin(self.url)} - self.hosts
        assert not strangers, f"other hosts were asked: {strangers}"
        assert not self._said, f"the console says {self._said}"

    def _on_request(self, request: Request) -> None:
        if not request.url.startswith(("data:", "blob:")):
            self._asked.append(_origin(request.url))

    def _on_console(self, message: ConsoleMessage) -> None:
        status = re.search(r"responded with a status of (\d+)", message.text)
        if status and int(status[1]) in self.failing:
            return
        if self.unreachable and "net::ERR_" in message.text:
            return
        self._said.append(f"{message.type}: {message.text}")


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
