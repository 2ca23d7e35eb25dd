"""Where map tiles may come from, and what must be said with them."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from retrieval.errors import ParameterError
from service.settings import MapTiles, ServerSettings
from sightfix.cli import app


@pytest.mark.parametrize(
    ("url", "source"),
    [
        ("https://tile.example.org/{z}/{x}/{y}.png", "https://tile.example.org"),
        ("https://{s}.tile.example.org:8443/a/{z}/{x}/{y}{r}.png?key=x", "https://*.tile.example.org:8443"),
        ("http://10.0.0.7:8080/{z}/{x}/{-y}", "http://10.0.0.7:8080"),
        ("/tiles/{z}/{x}/{y}.png", None),
    ],
)
def test_what_the_page_may_load(url: str, source: str | None) -> None:
    assert MapTiles(url, "me", 19).csp_source == source


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://tile.example.org/{z}/{x}.png", r"lacks \{z\}, \{x\} or \{y\}"),
        ("https://tile.example.org/{z}/{x}/{y}.png?k={key}", r"unknown part \{key\}"),
        ("ftp://tile.example.org/{z}/{x}/{y}.png", "neither http, https nor a path"),
        ("javascript:alert({x}{y}{z})", "neither http, https nor a path"),
        ("//tile.example.org/{z}/{x}/{y}.png", "neither http, https nor a path"),
        ("/\\tile.example.org/{z}/{x}/{y}.png", "neither http, https nor a path"),
        ("tiles/{z}/{x}/{y}.png", "neither http, https nor a path"),
        ("https:///{z}/{x}/{y}.png", "neither http, https nor a path"),
        ("https://a.org;script-src%20*/{z}/{x}/{y}.png", "neither http, https nor a path"),
        ("https://a.org *.b.org/{z}/{x}/{y}.png", "neither http, https nor a path"),
        ("https://*/{z}/{x}/{y}.png", "neither http, https nor a path"),
        ("https://user:word@a.org/{z}/{x}/{y}.png", "neither http, https nor a path"),
        ("https://a.{s}.org/{z}/{x}/{y}.png", "neither http, https nor a path"),
        ("https://[::1/{z}/{x}/{y}.png", "cannot be read"),
    ],
)
def test_what_is_refused(url: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        MapTiles(url, "me", 19)


def test_there_are_none_unless_an_operator_names_some_and_who_made_them() -> None:
    assert ServerSettings().map_tiles is None
    url = "https://tile.example.org/{z}/{x}/{y}.png"
    with pytest.raises(ParameterError, match="map tiles need an attribution"):
        _ = ServerSettings(tile_url=url).map_tiles
    named = ServerSettings(tile_url=url, tile_attribution="© me", tile_max_zoom=17).map_tiles
    assert named == MapTiles(url, "© me", 17)


def test_check_config_tries_them(tmp_path: Path) -> None:
    tiles = ["--tile-url", "https://tile.example.org/{z}/{x}", "--tile-attribution", "me"]
    output = CliRunner().invoke(app, ["serve", *tiles, "--indexes", str(tmp_path), "--check-config"]).output
    (wrong,) = [line for line in output.splitlines() if line.startswith("wrong map tiles")]
    assert "https://tile.example.org/{z}/{x}: the URL of map tiles lacks {z}, {x} or {y}" in wrong
