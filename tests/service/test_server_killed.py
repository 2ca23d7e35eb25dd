"""`kill -9` of the server at every step, and SIGTERM under load: what was acknowledged is there, what was good serves.

Each server that is killed was started on what the one before it left, so that a start is proof of a recovery, too.
"""

import contextlib
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from index_builder.update import build_index
from retrieval.describer import Describer
from retrieval.index.folder import current_version, published_versions
from tests.conftest import PublishedPlaces
from tests.forked import ForkedProcess, run_forked
from tests.places import Places, make_places
from tests.running_server import RunningServer, forked_server, watched
from tests.service.killed_server import ACTIVATING, LEAVING, STARTING, SUBMITTING, serve_and_die

JPEG = {"Content-Type": "image/jpeg"}
LIMIT_S = 90.0
# Their requests are answered with the new version in place; the others' find the old one.
CHANGED = {"current", "new version opened", "swapped"}


class ServedIndex:
    """Folders of a test, and servers on them."""

    def __init__(self, folder: Path, describer: Describer, versions: int) -> None:
        self.folder = folder
        self.places: Places = make_places(folder / "roots", 6)
        for count in range(6 - versions + 1, 7):
            build_index(Places(self.places.root, self.places.rows[:count]), describer, folder / "indexes", "places")
        self.index = folder / "indexes" / "places"

    @contextlib.contextmanager
    def server(self, step: str = "never", **environment: str) -> Iterator[RunningServer]:
        """A server that dies at a step. It has a socket when this yields, if it lives so long."""
        given = ["--indexes", str(self.folder / "indexes"), "--source-root", str(self.folder / "roots")]
        quick = {"SIGHTFIX_DRAIN_DELAY_S": "0", "SIGHTFIX_METRICS": "off", "SIGHTFIX_WATCH_INTERVAL_S": "3600"}
        log = self.folder / f"{step}.log"
        log.unlink(missing_ok=True)
        arguments = ["--port", "0", *given, "--threads", "1"]
        process = ForkedProcess(serve_and_die, step, arguments, log=log, environment={**quick, **environment})
        with watched(process, log) as running:
            yield running

    def photo(self, number: int) -> bytes:
        """A reference photo."""
        return self.places.rows[number].path.read_bytes()


def wait_until_killed(running: RunningServer) -> None:
    """Wait until it was killed, by itself and by no other fault."""
    assert running.process.wait(timeout=LIMIT_S) == -signal.SIGKILL, running.log.read_text()


def assert_serves(served: ServedIndex, running: RunningServer, version: str) -> None:
    """It is ready, serves a version, and that version is whole."""
    running.wait_until_ready()
    answer = httpx.post(f"{running.url}/localize", content=served.photo(1), headers=JPEG, timeout=LIMIT_S).json()
    assert answer["index"]["version"] == version
    assert answer["matches"][0]["reference_id"] == "photos/0001.jpg"
    assert answer["index"]["size"] == len(answer["matches"])


def test_a_server_killed_while_it_starts_leaves_nothing_behind(tmp_path: Path, describer: Describer) -> None:
    served = ServedIndex(tmp_path, describer, versions=1)
    version = current_version(served.index)
    given = ["--port", "0", "--indexes", str(tmp_path / "indexes"), "--threads", "1"]
    for step in STARTING:
        log = tmp_path / f"{step}.log"
        assert run_forked(serve_and_die, step, given, log=log) == -signal.SIGKILL, (step, log.read_text())
        assert "Traceback" not in log.read_text()
    with served.server() as running:
        assert_serves(served, running, version)
    assert {entry.name for entry in served.index.iterdir()} == {"CURRENT", "versions", ".lock"}


def test_a_server_killed_while_it_changes_the_version_serves_the_old_or_the_new_one(
    tmp_path: Path, describer: Describer
) -> None:
    served = ServedIndex(tmp_path, describer, versions=2)
    versions = published_versions(served.index)
    current = current_version(served.index)
    for step in ACTIVATING:
        other = next(version for version in versions if version != current)
        with served.server(step) as running:
            assert_serves(served, running, current)  # after the kill before
            with pytest.raises(httpx.TransportError):
                httpx.post(f"{running.url}/indexes/places/activate", json={"version": other}, timeout=LIMIT_S)
            wait_until_killed(running)
        current = other if step in CHANGED else current
        assert current_version(served.index) == current, step
    with served.server() as running:
        assert_serves(served, running, current)
        other = next(version for version in versions if version != current)
        body = {"version": other}
        activated = httpx.post(f"{running.url}/indexes/places/activate", json=body, timeout=LIMIT_S)
        assert activated.json()["served"] == other


def test_a_server_killed_around_a_job_loses_no_job_and_makes_none_twice(tmp_path: Path, describer: Describer) -> None:
    served = ServedIndex(tmp_path, describer, versions=1)
    body = {"kind": "remove", "index": "places", "reference_ids": ["photos/0005.jpg"]}
    key = {"Idempotency-Key": "once"}
    for step in SUBMITTING:
        with served.server(step) as running:
            with pytest.raises(httpx.TransportError):
                httpx.post(f"{running.url}/jobs", json=body, headers=key, timeout=LIMIT_S)
            wait_until_killed(running)
    # The first was never acknowledged nor kept, the second was kept but not acknowledged: asked again, it is the same.
    with served.server() as running:
        again = httpx.post(f"{running.url}/jobs", json=body, headers=key, timeout=LIMIT_S)
        assert again.status_code == 200
        more = {**body, "reference_ids": ["photos/0004.jpg"]}
        accepted = httpx.post(f"{running.url}/jobs", json=more, timeout=LIMIT_S)
        assert accepted.status_code == 202
        os.kill(running.process.pid, signal.SIGKILL)  # with the acknowledgement just sent
        wait_until_killed(running)
    with served.server(SIGHTFIX_WATCH_INTERVAL_S="0.1") as running:
        running.wait_until_ready()
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until:
            jobs = httpx.get(f"{running.url}/jobs", timeout=LIMIT_S).json()["jobs"]
            if all(job["state"] in ("SUCCEEDED", "FAILED", "CANCELLED") for job in jobs):
                break
            time.sleep(0.1)
        assert [job["state"] for job in jobs] == ["SUCCEEDED", "SUCCEEDED"], jobs
        assert {job["id"] for job in jobs} == {again.json()["id"], accepted.json()["id"]}
        while httpx.get(f"{running.url}/info").json()["index"]["size"] != 4 and time.monotonic() < until:
            time.sleep(0.1)
        assert httpx.get(f"{running.url}/info").json()["index"]["size"] == 4


def test_a_server_killed_at_work_or_on_its_way_out_starts_again(tmp_path: Path, describer: Describer) -> None:
    served = ServedIndex(tmp_path, describer, versions=1)
    version = current_version(served.index)
    for step in LEAVING:
        with served.server(step, SIGHTFIX_DRAIN_DELAY_S="0.2") as running:
            running.wait_until_ready()
            if step == "in a batch":
                with pytest.raises(httpx.TransportError):
                    httpx.post(f"{running.url}/localize", content=served.photo(1), headers=JPEG, timeout=LIMIT_S)
            else:
                assert_serves(served, running, version)
                running.process.send_signal(signal.SIGTERM)
            wait_until_killed(running)
    with served.server() as running:
        assert_serves(served, running, version)


def test_sigterm_under_load_loses_no_answer(published: PublishedPlaces, tmp_path: Path) -> None:
    photos = [row.path.read_bytes() for row in published.places.rows]
    statuses: Counter[int] = Counter()
    lost: list[str] = []
    leave = threading.Event()
    lock = threading.Lock()

    def balancer(url: str) -> None:
        """Stops sending when /readyz says so, as Kubernetes does."""
        while httpx.get(f"{url}/readyz").status_code == 200:
            time.sleep(0.02)
        leave.set()

    def robot(url: str, number: int) -> None:
        with httpx.Client(base_url=url, timeout=LIMIT_S) as client:
            while not leave.is_set():
                try:
                    response = client.post("/localize", content=photos[number % 12], headers=JPEG)
                except httpx.HTTPError as error:
                    lost.append(repr(error))
                    return
                with lock:
                    statuses[response.status_code] += 1
                if response.status_code == 200:
                    assert response.json()["matches"][0]["reference_id"] == f"photos/{number % 12:04d}.jpg"

    def bulk(url: str) -> None:
        """Has much in the server when the signal comes."""
        files = [("image", photos[number % 12]) for number in range(32)]
        response = httpx.post(f"{url}/localize/batch", files=files, timeout=LIMIT_S)
        with lock:
            statuses.update(item["status"] for item in response.json()["items"])

    environment = {"SIGHTFIX_DRAIN_DELAY_S": "1", "SIGHTFIX_THREADS": "1"}
    with forked_server(tmp_path / "log", ["--indexes", str(published.indexes)], environment) as running:
        running.wait_until_ready()
        threads = [threading.Thread(target=robot, args=(running.url, number)) for number in range(6)]
        threads += [threading.Thread(target=balancer, args=(running.url,))]
        for thread in threads:
            thread.start()
        while sum(statuses.values()) < 20:
            time.sleep(0.02)
        last = threading.Thread(target=bulk, args=(running.url,))
        last.start()
        running.process.send_signal(signal.SIGTERM)
        for thread in (*threads, last):
            thread.join(LIMIT_S)
            assert not thread.is_alive()
        assert running.process.wait(timeout=LIMIT_S) == 0
    assert not lost
    assert statuses[200] >= 20 + 32 / 2
    assert set(statuses) <= {200, 429}
    assert "Traceback" not in running.log.read_text()


def test_the_worker_of_a_killed_server_ends_with_it(tmp_path: Path, describer: Describer) -> None:
    served = ServedIndex(tmp_path, describer, versions=1)
    with served.server() as running:
        running.wait_until_ready()
        body = {"kind": "full", "index": "other", "source": "exif:photos"}
        httpx.post(f"{running.url}/jobs", json=body, timeout=LIMIT_S).raise_for_status()
        until = time.monotonic() + LIMIT_S
        while not (found := re.search(r"worker started, process (\d+)", running.log.read_text())):
            assert time.monotonic() < until
            time.sleep(0.05)
        worker = Path("/proc") / found.group(1)
        assert worker.exists()
        os.kill(running.process.pid, signal.SIGKILL)
        wait_until_killed(running)
        while worker.exists() and time.monotonic() < until:
            time.sleep(0.05)
        assert not worker.exists()
