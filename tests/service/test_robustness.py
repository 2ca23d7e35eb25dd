"""Slow clients, clients that leave, many stalled uploads, and the way down."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.conftest import PublishedPlaces
from tests.running_server import RunningServer, forked_server

JPEG = {"Content-Type": "image/jpeg"}


def connect(running: RunningServer) -> socket.socket:
    host, _, port = running.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=20)


@pytest.fixture(scope="module")
def short_timeouts(published: PublishedPlaces, tmp_path_factory: pytest.TempPathFactory):
    """A server that gives clients half a second to send a photo, and lets four in."""
    environment = {"SIGHTFIX_BODY_TIMEOUT_S": "0.5", "SIGHTFIX_MAX_WAITING": "4", "SIGHTFIX_THREADS": "1"}
    log = tmp_path_factory.mktemp("short_timeouts") / "log"
    with forked_server(log, ["--indexes", str(published.indexes)], environment) as running:
        running.wait_until_ready()
        yield running


def test_a_client_that_sends_too_slowly_is_told_and_cut_off(short_timeouts: RunningServer) -> None:
    with connect(short_timeouts) as slow:
        slow.sendall(
            b"POST /localize HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 9999\r\n\r\nha"
        )
        begun = time.monotonic()
        answer = b""
        while piece := slow.recv(65536):
            answer += piece
    assert time.monotonic() - begun < 10
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"request_timeout" in answer
    assert b"did not arrive within 0.5 s" in answer


@pytest.mark.parametrize(
    ("begin", "piece"),
    [(b"0\r\n", b"X-A: " + b"a" * 1000 + b"\r\n"), (b"0\r\nX-A: ", b"a" * 1000), (b"1;a=", b"a" * 1000)],
    ids=["trailers", "one long trailer", "chunk extension"],
)
def test_what_surrounds_the_chunks_of_a_body_has_a_limit_too(
    short_timeouts: RunningServer, begin: bytes, piece: bytes
) -> None:
    """It was kept without one, and for as long as the client liked."""
    with connect(short_timeouts) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + begin)
        with pytest.raises(ConnectionError):
            connection.sendall(piece * 20_000)


def test_small_chunks_and_a_trailer_are_no_fault(short_timeouts: RunningServer, published: PublishedPlaces) -> None:
    photo = published.places.rows[2].path.read_bytes()
    body = b"".join(b"1\r\n%c\r\n" % byte for byte in photo) + b"0\r\nX-Checksum: 1\r\n\r\n"
    head = b"POST /localize HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connect(short_timeouts) as connection:
        connection.sendall(head + body + b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answers = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answers.count(b"HTTP/1.1 200") == 2, "the connection goes on"


def test_stalled_uploads_do_not_keep_others_out(short_timeouts: RunningServer, published: PublishedPlaces) -> None:
    stalled = [connect(short_timeouts) for _ in range(20)]
    try:
        for one in stalled:
            one.sendall(b"POST /localize HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 99\r\n\r\n")
        photo = published.places.rows[0].path.read_bytes()
        assert httpx.post(f"{short_timeouts.url}/localize", content=photo, headers=JPEG).status_code == 200
    finally:
        for one in stalled:
            one.close()


def test_clients_that_leave_give_their_places_back(short_timeouts: RunningServer, published: PublishedPlaces) -> None:
    photo = published.places.rows[0].path.read_bytes()
    head = f"POST /localize HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(photo)}\r\n\r\n"
    for _ in range(20):
        with connect(short_timeouts) as leaving:
            leaving.sendall(head.encode() + photo)
    for _ in range(100):
        response = httpx.post(f"{short_timeouts.url}/localize", content=photo, headers=JPEG)
        if response.status_code == 200:
            break
        assert response.status_code == 429
        time.sleep(0.05)
    assert response.status_code == 200
    assert "Traceback" not in short_timeouts.log.read_text()


def test_going_away_is_announced_before_it_happens(published: PublishedPlaces, tmp_path: Path) -> None:
    environment = {"SIGHTFIX_DRAIN_DELAY_S": "2", "SIGHTFIX_THREADS": "1"}
    photo = published.places.rows[3].path.read_bytes()
    with forked_server(tmp_path / "log", ["--indexes", str(published.indexes)], environment) as running:
        running.wait_until_ready()
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        ready = httpx.get(f"{running.url}/readyz")
        assert (ready.status_code, ready.json()["state"]) == (503, "stopping")
        assert httpx.get(f"{running.url}/livez").status_code == 200
        answer = httpx.post(f"{running.url}/localize", content=photo, headers=JPEG)
        assert answer.json()["matches"][0]["reference_id"] == "photos/0003.jpg"
        assert running.process.wait(timeout=30) == 0


def test_sigterm_while_starting_is_no_failure(published: PublishedPlaces) -> None:
    command = [sys.executable, "-m", "sightfix.cli", "serve", "--port", "0", "--indexes", str(published.indexes)]
    for delay in (0.3, 0.8):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        time.sleep(delay)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        # Before Python has read the first line of sightfix, nobody can catch it.
        assert process.returncode in (0, -signal.SIGTERM)
        assert "Traceback" not in errors
