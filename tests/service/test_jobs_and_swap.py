"""An operator re-indexes while robots ask: a job over HTTP, a new version, no request that fails."""

import json
import threading
import time
from pathlib import Path

import httpx

from index_builder.update import build_index
from retrieval.describer import Describer
from tests.places import make_places
from tests.running_server import forked_server

JPEG = {"Content-Type": "image/jpeg"}


def test_a_job_publishes_a_version_that_serves_under_load(tmp_path: Path, describer: Describer) -> None:
    places = make_places(tmp_path / "old", 5)
    build_index(places, describer, tmp_path / "indexes", "places")
    new = make_places(tmp_path / "roots" / "new", 4, origin=(48.1, 11.0), first_seed=50)
    lines = [f"{row.path.name},{row.position.lat},{row.position.lon}" for row in new.rows if row.position]
    table = tmp_path / "roots" / "new" / "photos" / "refs.csv"
    table.write_text("\n".join(["path,lat,lon", *lines]) + "\n")
    arguments = ["--indexes", str(tmp_path / "indexes"), "--source-root", str(tmp_path / "roots"), "--threads", "1"]
    environment = {"SIGHTFIX_WATCH_INTERVAL_S": "0.1"}
    with forked_server(tmp_path / "log", arguments, environment) as server:
        server.wait_until_ready()
        answers: list[tuple[int, str]] = []
        stop = threading.Event()

        def robot() -> None:
            photo = places.rows[2].path.read_bytes()
            with httpx.Client(base_url=server.url, timeout=60) as client:
                while not stop.is_set():
                    response = client.post("/localize", content=photo, headers=JPEG)
                    best = response.json()["matches"][0]["reference_id"] if response.status_code == 200 else ""
                    answers.append((response.status_code, best))

        robots = [threading.Thread(target=robot) for _ in range(3)]
        for one in robots:
            one.start()
        try:
            with httpx.Client(base_url=server.url, timeout=60) as client:
                body = {"kind": "append", "index": "places", "source": f"csv:{table}"}
                accepted = client.post("/jobs", json=body)
                assert accepted.status_code == 202, accepted.text
                job = accepted.json()
                for _ in range(600):
                    job = client.get(accepted.headers["location"]).json()
                    if job["state"] in ("SUCCEEDED", "FAILED", "CANCELLED"):
                        break
                    time.sleep(0.1)
                assert job["state"] == "SUCCEEDED", json.dumps(job, indent=1)
                for _ in range(300):
                    if client.get("/info").json()["index"]["size"] == 9:
                        break
                    time.sleep(0.1)
                assert client.get("/info").json()["index"]["size"] == 9
                photo = new.rows[1].path.read_bytes()
                found = client.post("/localize", content=photo, headers=JPEG).json()
                assert found["matches"][0]["lat"] == 48.1
        finally:
            stop.set()
            for one in robots:
                one.join(60)
    assert len(answers) > 10
    assert {status for status, _ in answers} == {200}
    assert {best for _, best in answers} == {"photos/0002.jpg"}


def test_without_source_roots_there_are_no_jobs(http: object) -> None:
    response = http.post("/jobs", json={"kind": "full", "index": "x", "source": "photos"})  # type: ignore[attr-defined]
    assert (response.status_code, response.json()["code"]) == (403, "jobs_disabled")
    assert "SIGHTFIX_SOURCE_ROOTS" in response.json()["detail"]
