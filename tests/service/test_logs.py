"""Log lines: one form for all, true fields, and nothing of what a client may not have written or wants to keep."""

import io
import json
import logging
import re
import socket
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from service.http.app import create_app
from service.observing.logs import CURRENT, JsonLines, RequestNotes, TextLines, log_to_stderr
from service.serving.localization import LocalizationService
from service.settings import ServerSettings
from tests.conftest import PublishedPlaces
from tests.running_server import forked_server

JPEG = {"Content-Type": "image/jpeg"}
FORGED = "x\n2026-01-01 00:00:00,000 INFO sightfix.service: all is well\r\x1b[2J\x00\u2028\x9b31m"


def line_of(formatter: logging.Formatter, message: str, *arguments: object, **extra: object) -> str:
    record = logging.LogRecord("sightfix.service", logging.ERROR, __file__, 1, message, arguments, None)
    record.__dict__.update(extra)
    return formatter.format(record)


def raised(text: str) -> logging.LogRecord:
    try:
        raise ValueError(text)
    except ValueError:
        return logging.LogRecord("sightfix.service", logging.ERROR, __file__, 1, "failed", (), sys.exc_info())


@pytest.mark.parametrize("formatter", [TextLines(), JsonLines()])
def test_nobody_can_forge_a_line(formatter: logging.Formatter) -> None:
    line = line_of(formatter, "reference %s is unknown", FORGED)
    assert len(line.splitlines()) == 1
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028]", line)
    assert "all is well" in line, "nothing is hidden either"


def test_a_traceback_cannot_forge_a_line_either() -> None:
    lines = TextLines().format(raised(FORGED)).split("\n")
    assert re.match(r"\d{4}-\d\d-\d\d .* ERROR sightfix.service: failed$", lines[0])
    assert len(lines) > 2
    assert all(line.startswith("    ") for line in lines[1:])
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028]", "\n".join(lines))
    entry = json.loads(JsonLines().format(raised(FORGED)))
    assert entry["exception"].startswith("Traceback")


def test_json_has_the_fields_that_were_promised() -> None:
    told = CURRENT.set(RequestNotes("photo-7", trace_id="ab" * 16))
    try:
        entry = json.loads(line_of(JsonLines(), "what %d", 7, status=503, api_key="s3cret", lat=48.0))
    finally:
        CURRENT.reset(told)
    at = datetime.fromisoformat(entry.pop("time"))
    assert at.utcoffset() is not None
    assert entry == {
        "level": "error",
        "logger": "sightfix.service",
        "message": "what 7",
        "request_id": "photo-7",
        "trace_id": "ab" * 16,
        "status": 503,
    }, "an extra that nobody promised is left out"


def test_time_is_rfc_3339_in_utc() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", json.loads(line_of(JsonLines(), "x"))["time"])


@pytest.fixture
def loggers() -> Iterator[None]:
    names = ("", "sightfix", "sightfix.access", "uvicorn", "uvicorn.error", "uvicorn.access")
    kept = [(logging.getLogger(n), logging.getLogger(n).handlers[:], logging.getLogger(n).level) for n in names]
    yield
    for logger, handlers, level in kept:
        logger.handlers[:] = handlers
        logger.setLevel(level)


@pytest.mark.usefixtures("loggers")
def test_uvicorn_s_messages_have_the_same_form(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logging.getLogger("uvicorn.error").addHandler(logging.StreamHandler(io.StringIO()))
    log_to_stderr("info", "json")
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    logging.getLogger("uvicorn.error").info("Started server process")
    logging.getLogger("sightfix.service").info("ready")
    entries = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [entry["logger"] for entry in entries] == ["uvicorn.error", "sightfix.service"]


@pytest.fixture(scope="module")
def client(published: PublishedPlaces) -> Iterator[TestClient]:
    localization = LocalizationService(ServerSettings(indexes=published.indexes, threads=1))
    with TestClient(create_app(localization), raise_server_exceptions=False) as client:
        localization.live.wait_until_loaded(60)
        yield client


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "sightfix.access")
    return caplog


def accesses(records: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in records.records if record.name == "sightfix.access"]


def test_a_request_is_one_line(
    client: TestClient, records: pytest.LogCaptureFixture, published: PublishedPlaces
) -> None:
    photo = published.places.rows[3].path.read_bytes()
    answer = client.post("/localize", content=photo, headers={**JPEG, "X-Request-Id": "photo-7"}).json()
    (record,) = accesses(records)
    entry = json.loads(JsonLines().format(record))
    assert record.levelno == logging.DEBUG
    assert entry["request_id"] == "photo-7"
    assert (entry["method"], entry["route"], entry["status"]) == ("POST", "/localize", 200)
    assert 0 < entry["duration_ms"] < 60_000
    assert entry["fix_status"] == answer["status"]
    assert entry["index_version"] == answer["index"]["version"]
    assert re.match(r"POST /localize 200 in \d+\.\d ms request_id=photo-7 fix_status=", entry["message"])


def test_several_photos_are_a_number(
    client: TestClient, records: pytest.LogCaptureFixture, published: PublishedPlaces
) -> None:
    photo = published.places.rows[3].path.read_bytes()
    client.post("/localize/batch", files=[("image", ("a.jpg", photo, "image/jpeg"))] * 3)
    entry = json.loads(JsonLines().format(accesses(records)[0]))
    assert entry["photos"] == 3
    assert "fix_status" not in entry


def test_failures_of_ours_are_info_and_the_rest_debug(
    client: TestClient, records: pytest.LogCaptureFixture, published: PublishedPlaces
) -> None:
    client.get("/no/such")
    client.get("/livez")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.http.routes.localize.answer_response", lambda *_: 1 // 0)
        client.post("/localize", content=published.places.rows[3].path.read_bytes(), headers=JPEG)
    levels = [(record.levelno, record.status) for record in accesses(records)]  # type: ignore[attr-defined]
    assert levels == [(logging.DEBUG, 404), (logging.DEBUG, 200), (logging.INFO, 500)]


def test_with_access_log_every_request_but_probes_is_info(
    published: PublishedPlaces, records: pytest.LogCaptureFixture
) -> None:
    client = TestClient(create_app(LocalizationService(ServerSettings(indexes=published.indexes, access_log=True))))
    client.get("/indexes")
    client.get("/readyz")
    assert [record.levelno for record in accesses(records)] == [logging.INFO, logging.DEBUG]


def test_no_line_tells_what_is_private(
    client: TestClient, published: PublishedPlaces, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    photo = published.places.rows[3].path.read_bytes()
    headers = {**JPEG, "Authorization": "Bearer s3cret", "X-API-Key": "s3cret", "Cookie": "s3cret", "Referer": "s3cret"}
    answer = client.post("/localize?geo_prior=48.00012,11.00034,5000", content=photo, headers=headers).json()
    client.get("/references/s3cret/image", headers=headers)
    client.get("/s3cret")
    ours = [record for record in caplog.records if record.name.startswith(("sightfix", "uvicorn"))]
    told = "".join(JsonLines().format(record) + TextLines().format(record) for record in ours)
    assert len(ours) >= 3
    for secret in ("s3cret", "48.00012", "11.00034", "geo_prior", str(answer["fix"]["lat"]), photo[:8].hex()):
        assert secret not in told


@pytest.mark.parametrize("request_id", ["a b", "a\tb", "é", "x" * 129, "a{b}", '"', "a%0ab"])
def test_a_request_id_that_is_not_plain_is_replaced(
    client: TestClient, records: pytest.LogCaptureFixture, request_id: str
) -> None:
    response = client.get("/indexes", headers={"X-Request-Id": request_id.encode()})  # type: ignore[dict-item]
    entry = json.loads(JsonLines().format(accesses(records)[0]))
    assert re.fullmatch("[0-9a-f]{32}", entry["request_id"])
    assert response.status_code == 200


def test_a_running_server_logs_json_lines_only(published: PublishedPlaces, tmp_path: Path) -> None:
    arguments = ["--indexes", str(published.indexes), "--log-format", "json", "--access-log"]
    with forked_server(tmp_path / "log", arguments, {"SIGHTFIX_METRICS_PORT": "0"}) as server:
        server.wait_until_ready()
        for path in ("references/a%1b[2Jb/image", "a%0a%1b[2Jb"):
            httpx.get(f"{server.url}/{path}")
        port = int(server.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(b"NONSENSE\r\n\r\n")
            raw.recv(100)
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(b"GET /info HTTP/1.1\r\nHost: a\r\nX-Request-Id: a\x1bb\r\nConnection: close\r\n\r\n")
            raw.recv(100)
        assert server.stop() == 0
    entries = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert {"sightfix.service", "sightfix.access"} <= {entry["logger"] for entry in entries}
    routes = [entry["route"] for entry in entries if entry["logger"] == "sightfix.access"]
    assert "/references/{reference_id:path}/image" in routes
    assert "/readyz" not in routes
