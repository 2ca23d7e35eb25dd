"""The server as a process: sockets, signals, oversized bodies, overload."""

import asyncio
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.answer import Problem
from tests.conftest import PublishedPlaces
from tests.forked import sightfix
from tests.running_server import RunningServer, forked_server, running_server

JPEG = {"Content-Type": "image/jpeg"}
HUNDRED_MB = 100 * 1024 * 1024


def chunks(total: int) -> Iterator[bytes]:
    piece = b"\xff" * 65536
    for _ in range(total // len(piece)):
        yield piece


def post_oversized(url: str, *, chunked: bool) -> httpx.Response | None:
    """Send 100 MB; None when the server closed the connection before the client had read its answer."""
    headers = dict(JPEG) if chunked else {**JPEG, "Content-Length": str(HUNDRED_MB)}
    try:
        return httpx.post(f"{url}/localize", content=chunks(HUNDRED_MB), headers=headers, timeout=30)
    except httpx.WriteError:
        return None


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
def test_a_body_of_100_mb_is_refused_and_the_server_lives_on(
    server: RunningServer, published: PublishedPlaces, chunked: bool
) -> None:
    response = post_oversized(server.url, chunked=chunked)
    assert response is not None
    problem = Problem.model_validate_json(response.content)
    assert (response.status_code, problem.code) == (413, "body_too_large")
    assert problem.detail == (
        "the request body has more than 44804778 bytes. "
        "Send a smaller photo: the model looks at a small version of it anyway."
    )
    photo = published.places.rows[0].path.read_bytes()
    assert httpx.post(f"{server.url}/localize", content=photo, headers=JPEG).status_code == 200


def test_overload_is_refused_with_retry_after_and_never_with_an_error(
    published: PublishedPlaces, tmp_path: Path
) -> None:
    photo = published.places.rows[2].path.read_bytes()

    async def flood(url: str) -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60) as client:
            return await asyncio.gather(
                *(client.post(f"{url}/localize", content=photo, headers=JPEG) for _ in range(40))
            )

    arguments = ["--indexes", str(published.indexes)]
    with forked_server(tmp_path / "log", arguments, {"SIGHTFIX_MAX_WAITING": "2"}) as running:
        running.wait_until_ready()
        responses = asyncio.run(flood(running.url))
    answered = [response for response in responses if response.status_code == 200]
    refused = [response for response in responses if response.status_code == 429]
    assert answered
    assert refused
    assert len(answered) + len(refused) == 40
    assert all(response.headers["retry-after"] == "1" for response in refused)
    assert refused[0].json()["detail"] == "2 photos are waiting already. Try again in 1 s."
    assert all(response.json()["matches"][0]["reference_id"] == "photos/0002.jpg" for response in answered)


def test_a_client_that_leaves_in_the_middle_disturbs_nobody(server: RunningServer, published: PublishedPlaces) -> None:
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as gone:
        gone.sendall(
            b"POST /localize HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 5000\r\n\r\nhalf"
        )
    photo = published.places.rows[1].path.read_bytes()
    assert httpx.post(f"{server.url}/localize", content=photo, headers=JPEG).status_code == 200
    assert "Traceback" not in server.log.read_text()


def test_sigterm_ends_the_server_with_status_zero(published: PublishedPlaces, tmp_path: Path) -> None:
    with running_server(tmp_path / "log", ["--indexes", str(published.indexes)]) as running:
        running.wait_until_ready()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(timeout=20) == 0
    assert "ready after" in running.log.read_text()
    assert "Traceback" not in running.log.read_text()


def test_without_an_index_the_server_does_not_start(tmp_path: Path) -> None:
    done = sightfix("serve", "--indexes", str(tmp_path / "none"))
    assert done.returncode == 1
    assert done.stderr == (
        f"error {tmp_path / 'none'}: there is no place index. Publish one: sightfix index PHOTOS --name NAME.\n"
    )


def test_a_damaged_index_stops_the_server_with_the_reason(published: PublishedPlaces, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "indexes"
    shutil.copytree(published.indexes, copy)
    vectors = next(copy.glob("places/versions/*/vectors.faiss"))
    content = bytearray(vectors.read_bytes())
    content[len(content) // 2] ^= 1
    vectors.write_bytes(content)
    done = sightfix("serve", "--indexes", str(copy), "--port", "0")
    assert done.returncode == 1
    assert f"error {vectors}: the file is damaged: its SHA-256 is" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_a_clear_error(server: RunningServer, published: PublishedPlaces) -> None:
    port = server.url.rpartition(":")[2]
    done = sightfix("serve", "--indexes", str(published.indexes), "--port", port)
    assert done.returncode == 1
    assert f"error cannot listen on 127.0.0.1:{port} (Address already in use)." in done.stderr


def test_a_setting_outside_its_domain_names_flag_and_variable() -> None:
    done = sightfix("serve", "--port", "70000")
    assert done.returncode == 1
    assert done.stderr == (
        "error --port: Input should be less than or equal to 65535, not 70000. See: sightfix serve --help.\n"
    )
