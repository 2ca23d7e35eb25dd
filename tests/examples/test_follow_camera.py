"""examples/python/follow_camera.py against a real server."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from retrieval.errors import ServerError
from tests.conftest import PublishedPlaces
from tests.examples.conftest import EXAMPLES
from tests.running_server import RunningServer, forked_server
from tests.service.grpc.conftest import grpc_address

SCRIPT = EXAMPLES / "python" / "follow_camera.py"


def test_every_frame_has_an_outcome(server: RunningServer, published: PublishedPlaces) -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(SCRIPT),
            str(published.places.root / "photos"),
            "--track",
            "--server",
            grpc_address(server),
        ],
        cwd=EXAMPLES.parent,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(1, 13))
    assert "48.0" in lines[-1]
    assert "track" in lines[-1]


def test_it_goes_on_with_another_server(
    published: PublishedPlaces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server is killed after the third frame, and another one is there at the same place."""
    example: dict[str, Any] = runpy.run_path(str(SCRIPT))
    follow = example["follow"]
    follow.__globals__["RECONNECT_S"] = 0.05
    arguments = ["--indexes", str(published.indexes), "--grpc-port", "0"]
    photos = sorted((published.places.root / "photos").glob("*.jpg"))
    first = forked_server(tmp_path / "log", arguments)
    running = first.__enter__()
    running.wait_until_ready()
    address = grpc_address(running)
    second: list[Any] = []

    def frames() -> Any:
        yield from photos[:3]
        running.process.kill()
        first.__exit__(None, None, None)
        again = ["--indexes", str(published.indexes), "--grpc-port", address.rpartition(":")[2]]
        second.append(forked_server(tmp_path / "log2", again))
        second[0].__enter__().wait_until_ready()
        yield from photos[3:]

    try:
        follow(frames(), address, None, track=False)
    finally:
        for server in second:
            server.__exit__(None, None, None)
    said = capsys.readouterr()
    assert "the stream failed" in said.err
    assert said.out.splitlines()[-1].split()[0] == "12"
    assert "LOCATED" in said.out.splitlines()[-1] or "AMBIGUOUS" in said.out.splitlines()[-1]


def test_a_wrong_key_ends_it(published: PublishedPlaces, tmp_path: Path) -> None:
    """What does not get better is not tried again."""
    from service.api_keys import make_key

    make_key(tmp_path / "keys.toml", "robot", ("localize",))
    arguments = ["--indexes", str(published.indexes), "--grpc-port", "0", "--api-keys", str(tmp_path / "keys.toml")]
    with forked_server(tmp_path / "log", arguments) as running:
        running.wait_until_ready()
        follow = runpy.run_path(str(SCRIPT))["follow"]
        photos = iter([published.places.rows[0].path])
        with pytest.raises(ServerError) as refused:
            follow(photos, grpc_address(running), "wrong", track=False)
    assert refused.value.code == "grpc_unauthenticated"
