"""Tracks over HTTP: opened, stepped, repeated, refused, expired, and nobody else's."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from retrieval.geo import haversine_m
from service.api_keys import make_key
from service.http.app import create_app
from service.serving.localization import LocalizationService
from service.settings import ServerSettings
from tests.conftest import PublishedPlaces

JPEG = {"Content-Type": "image/jpeg"}
# The made-up places lie 100 m apart: a camera that goes from one to the next in a second.
FAST = {"speed_mps": 40.0, "max_speed_mps": 100.0}


@pytest.fixture
def client(published: PublishedPlaces) -> Iterator[TestClient]:
    with served(ServerSettings(indexes=published.indexes, threads=1, max_tracks=3, metrics="off")) as client:
        yield client


def served(settings: ServerSettings) -> "ServedApp":
    return ServedApp(LocalizationService(settings))


class ServedApp:
    """A client of a ready app; `client.localization` is what it serves."""

    def __init__(self, localization: LocalizationService) -> None:
        self.localization = localization
        self._client = TestClient(create_app(localization), raise_server_exceptions=False)

    def __enter__(self) -> TestClient:
        self._client.__enter__()
        self._client.localization = self.localization  # type: ignore[attr-defined]
        self.localization.live.wait_until_loaded(60)
        assert self.localization.live.readiness.state == "ready", self.localization.live.readiness.reason
        return self._client

    def __exit__(self, *reason: object) -> None:
        self._client.__exit__(None, None, None)


def image(published: PublishedPlaces, number: int) -> bytes:
    return published.places.rows[number].path.read_bytes()


def opened(client: TestClient, **body: float) -> str:
    answer = client.post("/tracks", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def send(client: TestClient, track: str, photo: bytes, **query: object) -> httpx.Response:
    return client.post(f"/tracks/{track}/localize", params=query, content=photo, headers=JPEG)  # type: ignore[arg-type]


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return answer.status_code, answer.json()["code"]


def count(client: TestClient) -> int:
    return int(client.localization.tracks.count)  # type: ignore[attr-defined]


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_a_camera_is_followed_from_place_to_place(client: TestClient, published: PublishedPlaces, prefix: str) -> None:
    answer = client.post(f"{prefix}/tracks", json=FAST)
    assert (answer.status_code, answer.json()["idle_s"]) == (201, 300.0)
    path = answer.headers["location"]
    assert path == f"{prefix}/tracks/{answer.json()['id']}"
    for number in range(2, 6):
        query: dict[str, str] = {"captured_at_s": str(1000.0 + number), "top_k": "3"}
        if number > 2:
            query |= {"east_m": "100", "north_m": "0", "displacement_std_m": "3"}
        answer = client.post(f"{path}/localize", params=query, content=image(published, number), headers=JPEG)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert len(body["matches"]) == 3
        assert body["matches"][0]["reference_id"] == f"photos/{number:04d}.jpg"
        track = body["track"]
        assert (track["frames"], track["matched"], track["lost"]) == (number - 1, True, False)
        true = published.places.rows[number].position
        assert true is not None
        assert haversine_m(track["fix"]["lat"], track["fix"]["lon"], true.lat, true.lon) < 15.0
        assert track["index_version"] == body["index"]["version"]
    assert track["status"] == "LOCATED"
    assert client.delete(path).status_code == 204
    assert count(client) == 0
    assert problem(client.delete(path)) == (404, "track_not_found")


def test_what_fails_changes_nothing_and_what_is_repeated_moves_nothing(
    client: TestClient, published: PublishedPlaces
) -> None:
    track = opened(client, **FAST)
    first = send(client, track, image(published, 2), captured_at_s=10).json()["track"]
    moved = {"captured_at_s": 11, "east_m": 100, "north_m": 0}
    assert problem(send(client, track, b"no photo", **moved)) == (415, "unsupported_media_type")
    assert problem(send(client, track, b"", **moved)) == (422, "empty_body")
    assert problem(send(client, track, image(published, 3), captured_at_s=9.9)) == (409, "frame_out_of_order")
    second = send(client, track, image(published, 3), **moved).json()["track"]
    again = send(client, track, image(published, 3), **moved).json()["track"]
    assert (first["frames"], second["frames"], again["frames"]) == (1, 2, 3)
    assert again["fix"] == second["fix"]
    assert second["fix"]["lon"] > first["fix"]["lon"]


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ({}, "/captured_at_s"),
        ({"captured_at_s": "nan"}, "/captured_at_s"),
        ({"captured_at_s": "1790000000000"}, "/captured_at_s"),
        ({"captured_at_s": "soon"}, "/captured_at_s"),
        ({"captured_at_s": "1", "speed_mps": "inf"}, "/speed_mps"),
        ({"captured_at_s": "1", "speed_mps": "1", "speed_std_mps": "-1"}, "/speed_std_mps"),
        ({"captured_at_s": "1", "distance_m": "1", "speed_mps": "1"}, "/"),
        ({"captured_at_s": "1", "east_m": "1"}, "/"),
        ({"captured_at_s": "1", "heading_deg": "90"}, "/"),
        ({"captured_at_s": "1", "sped_mps": "90"}, "/sped_mps"),
        ({"captured_at_s": "1", "top_k": "0"}, "/top_k"),
    ],
)
def test_wrong_parameters_are_named(http: TestClient, published: PublishedPlaces, query: dict, pointer: str) -> None:
    track = opened(http)
    answer = send(http, track, image(published, 1), **query)
    assert problem(answer) == (422, "validation_error")
    assert answer.json()["errors"][0]["pointer"] == pointer
    assert http.delete(f"/tracks/{track}").status_code == 204


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"max_speed_mps": 1e9}', 422, "validation_error"),
        (b'{"max_speed_mps": NaN}', 422, "validation_error"),
        (b'{"place_m": 1}', 422, "validation_error"),
        (b'{"speed_mps": 9, "max_speed_mps": 8}', 422, "validation_error"),
        (b"[]", 422, "validation_error"),
        (b"{", 400, "malformed_request"),
    ],
)
def test_settings_that_make_no_sense_open_no_track(client: TestClient, body: bytes, status: int, code: str) -> None:
    assert problem(client.post("/tracks", content=body)) == (status, code)
    assert count(client) == 0


def test_only_a_photo_is_a_frame(client: TestClient, published: PublishedPlaces) -> None:
    track = opened(client)
    answer = client.post(f"/tracks/{track}/localize?captured_at_s=1", json={"image": {"content": ""}})
    assert problem(answer) == (415, "unsupported_media_type")
    assert problem(send(client, "nobody", image(published, 1), captured_at_s=1)) == (404, "track_not_found")


def test_only_so_many_tracks_are_open(client: TestClient) -> None:
    tracks = [opened(client) for _ in range(3)]
    refused = client.post("/tracks")
    assert problem(refused) == (429, "too_many_tracks")
    assert refused.headers["retry-after"] == "10"
    assert client.delete(f"/tracks/{tracks[1]}").status_code == 204
    opened(client)
    assert count(client) == 3
    assert client.get("/info").json()["limits"]["max_tracks"] == 3


def test_a_server_without_tracks_says_so(published: PublishedPlaces) -> None:
    with served(ServerSettings(indexes=published.indexes, threads=1, max_tracks=0, metrics="off")) as client:
        assert problem(client.post("/tracks")) == (403, "tracks_disabled")


def test_a_track_that_nobody_uses_is_closed(published: PublishedPlaces) -> None:
    settings = ServerSettings(indexes=published.indexes, threads=1, track_idle_s=1.5, metrics="off")
    with served(settings) as client:
        idle, used = opened(client), opened(client)
        deadline = time.monotonic() + 20
        number = 0
        while count(client) == 2:
            assert time.monotonic() < deadline, "it is never closed"
            assert send(client, used, image(published, 1), captured_at_s=number).status_code == 200
            number += 1
        assert problem(send(client, idle, image(published, 1), captured_at_s=1)) == (404, "track_not_found")
        while count(client) == 1:
            assert time.monotonic() < deadline, "it is never closed"
            time.sleep(0.05)


def test_a_track_belongs_to_the_key_that_opened_it(published: PublishedPlaces, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    mine, other = ({"X-API-Key": make_key(file, name, ("localize",))} for name in ("mine", "other"))
    settings = ServerSettings(indexes=published.indexes, threads=1, api_keys=file, metrics="off")
    with served(settings) as client:
        assert problem(client.post("/tracks")) == (401, "unauthenticated")
        path = client.post("/tracks", headers=mine).headers["location"]
        frame = {"params": {"captured_at_s": "1"}, "content": image(published, 1)}
        assert problem(client.post(f"{path}/localize", headers=JPEG | other, **frame)) == (404, "track_not_found")
        assert problem(client.delete(path, headers=other)) == (404, "track_not_found")
        assert client.post(f"{path}/localize", headers=JPEG | mine, **frame).status_code == 200
        assert client.delete(path, headers=mine).status_code == 204


def test_frames_of_one_track_wait_for_one_another_and_not_too_many(
    client: TestClient, published: PublishedPlaces
) -> None:
    """The model stands still: four are inside, a fifth is refused; all are answered, in some order of one time."""
    track = opened(client)
    localization: LocalizationService = client.localization  # type: ignore[attr-defined]
    go = threading.Event()
    localization._batcher.on_owner_thread(lambda: go.wait(30) and None)
    with ThreadPoolExecutor(5) as pool:
        try:
            sent = [pool.submit(send, client, track, image(published, 1), captured_at_s=5) for _ in range(5)]
            refused = next(answer for answer in _as_done(sent) if answer.status_code != 200)
            assert problem(refused) == (429, "track_busy")
            assert localization._batcher.queue.admitted <= 1
        finally:
            go.set()
        answers = [one.result(30) for one in sent]
    frames = [answer.json()["track"]["frames"] for answer in answers if answer.status_code == 200]
    assert sorted(frames) == [1, 2, 3, 4]


def _as_done(futures: list) -> Iterator[httpx.Response]:
    from concurrent.futures import as_completed

    for future in as_completed(futures, timeout=30):
        yield future.result()


def test_the_description_knows_tracks(http: TestClient) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    assert set(paths["/tracks/{track_id}/localize"]["post"]["requestBody"]["content"]) >= {"image/jpeg"}
    parameters = {one["name"]: one for one in paths["/tracks/{track_id}/localize"]["post"]["parameters"]}
    assert parameters["captured_at_s"]["required"]
    assert "displacement_std_m" in parameters
    assert "delete" in paths["/tracks/{track_id}"]
