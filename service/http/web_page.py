"""The web page at `/`: its files, read once, with the headers that keep it to itself."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from service.settings import MapTiles

FOLDER: Final = Path(__file__).parents[1] / "web"
_PAGE: Final = "index.html"
_SETTINGS: Final = "page.json"

# Not the system's table: where that is empty, browsers would refuse the scripts.
_MEDIA_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".md": "text/plain; charset=utf-8",
    "": "text/plain; charset=utf-8",
}


def add_web_page(app: FastAPI, tiles: MapTiles | None = None, *, jobs: bool = False) -> None:
    """Serve the page at ``/`` and what it is made of below ``/static/``.

    Args:
        app: gets them.
        tiles: of the page's map; None draws a plain grid and lets the page load nothing from other hosts.
        jobs: whether there are jobs that the page could show.
    """
    files = _WebFiles(FOLDER, tiles, jobs)

    async def page(request: Request) -> Response:
        return files.response(request, _PAGE)

    app.add_api_route("/", page, methods=["GET", "HEAD"], include_in_schema=False)
    app.mount("/static", files, name="static")


@dataclass(frozen=True, slots=True)
class _WebFile:
    """A file as it is sent.

    Attributes:
        tag: its ETag, made of its content: a wheel's files may all have the same date.
    """

    content: bytes
    media_type: str
    tag: str


class _WebFiles:
    """ASGI app of the files of a folder. Only they have a name here, so no path leads anywhere else.

    Args:
        folder: is read whole.
        tiles: for the page, and for browsers as the only other host it may load pictures from.
        jobs: whether the page should ask for jobs.
    """

    def __init__(self, folder: Path, tiles: MapTiles | None, jobs: bool) -> None:
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in _MEDIA_TYPES)
        self._files = {path.relative_to(folder).as_posix(): _web_file(path.suffix, path.read_bytes()) for path in paths}
        page_settings = {"tiles": tiles and asdict(tiles), "jobs": jobs}
        self._files[_SETTINGS] = _web_file(".json", json.dumps(page_settings).encode())
        self._headers = {
            "Content-Security-Policy": content_security_policy(tiles),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            # Names carry no version, so browsers ask each time; 304 is all they get.
            "Cache-Control": "no-cache",
        }

    def response(self, request: Request, name: str) -> Response:
        """A file, or 304 if the client has it already.

        Raises:
            HTTPException: there is none of that name (404), or another method than GET and HEAD (405).
        """
        if request.method not in ("GET", "HEAD"):
            raise HTTPException(405, headers={"Allow": "GET, HEAD"})
        file = self._files.get(name)
        if file is None:
            raise HTTPException(404)
        headers = {**self._headers, "ETag": file.tag}
        # Behind a proxy that compresses, the tag may come back as a weak one; RFC 9110 compares it as such.
        known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if file.tag in known or "*" in known:
            return Response(status_code=304, headers=headers)
        return Response(file.content, headers=headers, media_type=file.media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer for a path below the mount."""
        if scope["type"] != "http":
            raise HTTPException(404)
        name = scope["path"].removeprefix(scope.get("root_path", "")).lstrip("/")
        await self.response(Request(scope), name)(scope, receive, send)


def content_security_policy(tiles: MapTiles | None) -> str:
    """What browsers let the page do (CSP level 3): its own scripts and styles, nothing inline, no other host.

    Args:
        tiles: of its map; pictures from their host are allowed, too.
    """
    # blob: is the photo that was chosen, and thumbnails fetched with an API key. Leaflet's own pictures are data.
    pictures = ["'self'", "blob:", "data:"]
    if tiles is not None and tiles.csp_source is not None:
        pictures.append(tiles.csp_source)
    return (
        f"default-src 'none'; script-src 'self'; style-src 'self'; img-src {' '.join(pictures)}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _web_file(suffix: str, content: bytes) -> _WebFile:
    return _WebFile(content, _MEDIA_TYPES[suffix], f'"{hashlib.sha256(content).hexdigest()[:20]}"')
