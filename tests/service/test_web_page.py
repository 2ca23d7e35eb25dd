"""The page's files over HTTP: what is sent, with which headers, and that all of it is shipped."""

import hashlib
import re
import tomllib
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.http.app import create_app
from service.http.web_page import FOLDER, content_security_policy
from service.serving.localization import LocalizationService
from service.settings import ServerSettings
from tests.conftest import PublishedPlaces

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for path in FOLDER.rglob("*") if path.is_file())


def served(path: Path) -> str:
    return "/" if path.name == "index.html" else f"/static/{path.relative_to(FOLDER).as_posix()}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_is_served_as_it_is_and_kept_to_itself(http: TestClient, path: Path) -> None:
    response = http.get(served(path))
    assert response.status_code == 200
    assert response.content == path.read_bytes()
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["content-security-policy"] == content_security_policy(None)
    kind = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    assert response.headers["content-type"].startswith(kind.get(path.suffix, "text/plain"))


def test_browsers_may_do_nothing_inline_and_ask_nobody_else() -> None:
    policy = dict(part.strip().split(" ", 1) for part in content_security_policy(None).split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["img-src"] == "'self' blob: data:"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    page = (FOLDER / "index.html").read_text()
    assert "<style" not in page
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|javascript:", page)


@pytest.mark.parametrize("path", [path for path in FILES if "vendor" not in path.parts], ids=lambda path: path.name)
def test_our_own_files_name_no_other_host_and_no_absolute_path(path: Path) -> None:
    text = path.read_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://", text)
    assert not re.search(r"""(?:src|href)="/|from "/|url\(""", text)


def test_what_a_browser_has_already_is_not_sent_again(http: TestClient) -> None:
    first = http.get("/static/css/base.css")
    tag = first.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = http.get("/static/css/base.css", headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
        assert "content-security-policy" in again.headers
    for unknown in ('"other"', tag[:-3] + '"', ""):
        assert http.get("/static/css/base.css", headers={"If-None-Match": unknown}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/static/js/main.js"])
def test_head_tells_the_size_and_sends_nothing(http: TestClient, path: str) -> None:
    head, whole = http.head(path), http.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.content))
    assert head.headers["etag"] == whole.headers["etag"]


@pytest.mark.parametrize(
    "path",
    [
        "/static/", "/static/js", "/static/none.js", "/static/../web_page.py", "/static/%2e%2e/web_page.py",
        "/static/..%2fweb_page.py", "/static//etc/passwd", "/static/js/../../app.py", "/static/js%5c..%5cmain.js",
    ],
)  # fmt: skip
def test_no_path_leads_anywhere_else(http: TestClient, path: str) -> None:
    response = http.get(path)
    assert response.status_code == 404
    assert response.json()["code"] == "not_found"


def test_other_methods_are_refused(http: TestClient) -> None:
    for path in ("/", "/static/css/base.css"):
        response = http.post(path, content=b"x")
        assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")


def test_map_tiles_and_jobs_are_told_to_the_page(http: TestClient, published: PublishedPlaces) -> None:
    assert http.get("/static/page.json").json() == {"tiles": None, "jobs": False}
    settings = ServerSettings(
        indexes=published.indexes, tile_url="https://{s}.tiles.org/{z}/{x}/{y}.png", tile_attribution="<i>me</i>"
    )
    client = TestClient(create_app(LocalizationService(settings)))
    url = "https://{s}.tiles.org/{z}/{x}/{y}.png"
    told = {"url": url, "attribution": "<i>me</i>", "max_zoom": 19}
    assert client.get("/static/page.json").json() == {"tiles": told, "jobs": False}
    assert "img-src 'self' blob: data: https://*.tiles.org;" in client.get("/").headers["content-security-policy"]


def test_leaflet_is_the_one_that_its_readme_names() -> None:
    folder = FOLDER / "vendor" / "leaflet"
    sums = dict(re.findall(r"^\| `([\w.]+)` \| `([0-9a-f]{64})` \|$", (folder / "README.md").read_text(), re.MULTILINE))
    assert sums == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("leaflet.js", "leaflet.css")
    }


def test_all_of_it_is_in_the_wheel() -> None:
    package_data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    shipped = {path for pattern in package_data["service"] for path in FOLDER.parent.glob(pattern)}
    assert set(FILES) <= shipped
