"""The routes beside /localize: batch, describe, search, indexes, aliases; GeoJSON, timings, lanes and deadlines."""

import base64

import numpy as np
import pytest
from fastapi.testclient import TestClient

from retrieval.describer import Describer
from retrieval.geo import haversine_m
from retrieval.images import read_image
from retrieval.index.folder import current_version
from service.answer import FixAnswer, LocalizeAnswer, Problem
from service.http.routes.localize import geojson
from service.serving.admission import RejectionThrottle
from tests.conftest import PublishedPlaces

JPEG = {"Content-Type": "image/jpeg"}


def photo(published: PublishedPlaces, number: int) -> bytes:
    return published.places.rows[number].path.read_bytes()


def as_json(*photos: bytes, **parameters: object) -> dict[str, object]:
    return {"images": [{"content": base64.b64encode(data).decode()} for data in photos], **parameters}


def test_a_batch_answers_each_photo_with_its_own_status(http: TestClient, published: PublishedPlaces) -> None:
    photos = [photo(published, 3), b"\xff\xd8\xff nothing", photo(published, 1), b""]
    answers = [
        http.post(
            "/localize/batch",
            files=[("image", (f"{n}.jpg", data, "image/jpeg")) for n, data in enumerate(photos)],
            data={"top_k": "2"},
        ),
        http.post("/v1/localize/batch", json=as_json(*photos, top_k=2)),
    ]
    for response in answers:
        assert response.status_code == 200
        items = response.json()["items"]
        assert [item["status"] for item in items] == [200, 422, 200, 422]
        found = [item["answer"]["matches"] for item in items if item["status"] == 200]
        assert [matches[0]["reference_id"] for matches in found] == ["photos/0003.jpg", "photos/0001.jpg"]
        assert [len(matches) for matches in found] == [2, 2]
        problems = [Problem.model_validate(item["problem"]) for item in items if item["status"] != 200]
        assert [problem.code for problem in problems] == ["image_undecodable", "empty_body"]
        assert items[0]["answer"]["request_id"] == f"{response.json()['request_id']}-0"


def test_a_batch_with_broken_base64_fails_that_photo_only(http: TestClient, published: PublishedPlaces) -> None:
    body = as_json(photo(published, 3))
    body["images"].append({"content": "***"})  # type: ignore[attr-defined]
    items = http.post("/localize/batch", json=body).json()["items"]
    assert [item["status"] for item in items] == [200, 400]
    assert items[1]["problem"]["detail"].startswith("/images/1/content is not base64")


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({"json": {"images": []}}, 422, "validation_error"),
        ({"json": {"images": [{"content": ""}] * 33}}, 422, "validation_error"),
        ({"json": {"images": [{"content": ""}], "top": 3}}, 422, "validation_error"),
        ({"files": {"photo": b"x"}}, 422, "validation_error"),
        ({"files": [("image", b"x")] * 33}, 400, "malformed_request"),
        ({"content": b"x", "headers": JPEG}, 415, "unsupported_media_type"),
    ],
)
def test_a_batch_that_cannot_be_read(http: TestClient, request_: dict, status: int, code: str) -> None:
    response = http.post("/localize/batch", **request_)
    assert (response.status_code, response.json()["code"]) == (status, code)


def test_describe_and_search_are_localize_in_two_steps(
    http: TestClient, published: PublishedPlaces, describer: Describer
) -> None:
    path = published.places.rows[4].path
    described = http.post("/describe", content=path.read_bytes(), headers=JPEG)
    descriptor = described.json()["descriptor"]
    expected = describer.describe([read_image(path, describer.bundle.preprocessing)])[0]
    np.testing.assert_allclose(descriptor, expected, atol=1e-5)
    assert described.json()["model"]["fingerprint"] == describer.bundle.fingerprint
    assert described.headers["server-timing"].startswith("decode;dur=")
    octets = http.post(
        "/v1/describe", content=path.read_bytes(), headers={**JPEG, "Accept": "application/octet-stream"}
    )
    np.testing.assert_array_equal(np.frombuffer(octets.content, "<f4"), np.array(descriptor, np.float32))
    assert octets.headers["x-model-fingerprint"] == describer.bundle.fingerprint

    searched = LocalizeAnswer.model_validate_json(
        http.post("/search", json={"descriptor": descriptor, "top_k": 3}).content
    )
    localized = LocalizeAnswer.model_validate_json(
        http.post("/localize?top_k=3", content=path.read_bytes(), headers=JPEG).content
    )
    assert [match.reference_id for match in searched.matches] == [match.reference_id for match in localized.matches]
    np.testing.assert_allclose(
        [match.score for match in searched.matches], [match.score for match in localized.matches], atol=1e-5
    )
    assert searched.timings_ms.describe == 0.0
    of = {"descriptor": descriptor, "top_k": 1}
    assert http.post("/search", json={**of, "fingerprint": describer.bundle.fingerprint}).status_code == 200
    other = http.post("/search", json={**of, "fingerprint": "0" * 64})
    assert (other.status_code, other.json()["code"]) == (409, "model_mismatch")


@pytest.mark.parametrize(
    ("descriptor", "message"),
    [
        ([1.0], "/descriptor has 1 numbers, the model's descriptors have 1280"),
        ([1.0] * 1280, "/descriptor has length 35.78, not 1"),
        ([0.0] * 1280, "/descriptor has length 0, not 1"),
    ],
)
def test_a_descriptor_that_is_none(http: TestClient, descriptor: list[float], message: str) -> None:
    response = http.post("/search", json={"descriptor": descriptor})
    assert (response.status_code, response.json()["code"]) == (422, "validation_error")
    assert response.json()["detail"].startswith(message)
    infinite = http.post("/search", content=b'{"descriptor": [1e999]}', headers={"Content-Type": "application/json"})
    assert infinite.status_code in (400, 422)


def test_geojson_is_longitude_first(http: TestClient, published: PublishedPlaces) -> None:
    response = http.post(
        "/localize?top_k=2",
        content=photo(published, 6),
        headers={**JPEG, "Accept": "application/geo+json, application/json;q=0.5"},
    )
    assert response.headers["content-type"] == "application/geo+json"
    collection = response.json()
    assert collection["type"] == "FeatureCollection"
    kinds = [feature["properties"]["kind"] for feature in collection["features"]]
    assert kinds == ["fix", "radius", "match", "match"]
    best = collection["features"][2]
    position = published.places.rows[6].position
    assert best["geometry"]["coordinates"] == [position.lon, position.lat]
    assert best["properties"]["reference_id"] == "photos/0006.jpg"
    assert collection["sightfix"]["status"] == "LOCATED"


def answer_at(http: TestClient, published: PublishedPlaces, lat: float, lon: float, radius_m: float) -> LocalizeAnswer:
    answer = LocalizeAnswer.model_validate_json(
        http.post("/localize", content=photo(published, 0), headers=JPEG).content
    )
    fix = FixAnswer(
        lat=lat, lon=lon, radius_m=radius_m, confidence=0.5, calibrated=False,
        covariance_enu=((1.0, 0.0), (0.0, 1.0)), method="top1", support=1,
    )  # fmt: skip
    return answer.model_copy(update={"fix": fix})


@pytest.mark.parametrize(("lat", "lon"), [(48.0, 11.0), (-33.0, 179.9999), (-33.0, -179.9999), (70.0, 0.0)])
def test_the_circle_has_the_radius_and_runs_counter_clockwise(
    http: TestClient, published: PublishedPlaces, lat: float, lon: float
) -> None:
    (circle,) = [
        feature
        for feature in geojson(answer_at(http, published, lat, lon, 40.0))["features"]
        if feature["properties"]["kind"] == "radius"
    ]
    ring = np.array(circle["geometry"]["coordinates"][0])
    assert (ring[0] == ring[-1]).all()
    assert np.ptp(ring[:, 0]) < 1
    np.testing.assert_allclose(haversine_m(lat, lon, ring[:, 1], ring[:, 0]), 40.0, rtol=1e-3)
    x, y = ring[:, 0], ring[:, 1]
    assert (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() > 0


def test_no_circle_around_a_pole(http: TestClient, published: PublishedPlaces) -> None:
    answer = answer_at(http, published, 89.9999, 10.0, 500.0)
    assert "radius" not in [feature["properties"]["kind"] for feature in geojson(answer)["features"]]


def test_timings_are_a_header_too(http: TestClient, published: PublishedPlaces) -> None:
    response = http.post("/localize", content=photo(published, 0), headers=JPEG)
    stages = dict(part.split(";dur=") for part in response.headers["server-timing"].split(", "))
    assert set(stages) == {"decode", "queue", "describe", "search", "fix", "total"}
    assert float(stages["total"]) == pytest.approx(response.json()["timings_ms"]["total"], abs=0.06)


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"X-Lane": "express"}, "the header X-Lane 'express' is no lane"),
        ({"X-Deadline-Ms": "soon"}, "the header X-Deadline-Ms 'soon' is not a number of milliseconds above 0"),
        ({"X-Deadline-Ms": "0"}, "the header X-Deadline-Ms '0'"),
        ({"X-Deadline-Ms": "-5"}, "the header X-Deadline-Ms '-5'"),
        ({"X-Deadline-Ms": "nan"}, "the header X-Deadline-Ms 'nan'"),
        ({"X-Deadline-Ms": "600001"}, "the header X-Deadline-Ms '600001'"),
        ({"X-Deadline-Ms": "1e9"}, "the header X-Deadline-Ms '1e9'"),
    ],
)
def test_urgency_must_make_sense(http: TestClient, headers: dict[str, str], message: str) -> None:
    response = http.post("/localize", content=b"x", headers={**JPEG, **headers})
    assert (response.status_code, response.json()["code"]) == (422, "validation_error")
    assert response.json()["detail"].startswith(message)


def test_a_deadline_that_cannot_be_met_is_refused_at_once(
    http: TestClient, published: PublishedPlaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    paced: list[RejectionThrottle] = []
    monkeypatch.setattr(RejectionThrottle, "next_delay_s", lambda pace: paced.append(pace) or 0.0)
    assert http.post("/localize", content=photo(published, 0), headers=JPEG).status_code == 200
    response = http.post("/localize", content=photo(published, 0), headers={**JPEG, "X-Deadline-Ms": "0.001"})
    assert (response.status_code, response.json()["code"]) == (429, "queue_full")
    assert "the deadline is in" in response.json()["detail"]
    assert int(response.headers["retry-after"]) >= 1
    assert len(paced) == 1  # only refusals are held back when they come too fast


@pytest.mark.parametrize("path", ["/livez", "/healthz", "/v2/health/live", "/readyz", "/v2/health/ready"])
def test_health_by_all_its_names(http: TestClient, path: str) -> None:
    assert http.get(path).status_code == 200
    head = http.head(path)
    assert (head.status_code, head.content) == (200, b"")


def test_the_model_is_ready_for_kserve_clients(http: TestClient) -> None:
    assert http.get("/v2/models/any/ready").status_code == 200


def test_indexes_and_their_versions(http: TestClient, published: PublishedPlaces) -> None:
    version = current_version(published.indexes / "places")
    (listing,) = http.get("/indexes").json()
    assert (listing["name"], listing["current"], listing["served"]) == ("places", version, version)
    assert [(v["version"], v["size"]) for v in listing["versions"]] == [(version, 12)]
    assert http.get("/indexes/places").json() == listing
    missing = http.get("/indexes/elsewhere")
    assert (missing.status_code, missing.json()["code"]) == (404, "index_not_found")


def test_what_cannot_be_activated(http: TestClient, published: PublishedPlaces) -> None:
    unknown = http.post("/indexes/places/activate", json={"version": "v1"})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "version_not_found")
    version = current_version(published.indexes / "places")
    conflict = http.post("/indexes/places/activate", json={"version": version}, headers={"If-Match": '"other"'})
    assert (conflict.status_code, conflict.json()["code"]) == (409, "version_conflict")
    same = http.post("/indexes/places/activate", json={"version": version}, headers={"If-Match": f'"{version}"'})
    assert (same.status_code, same.json()["served"]) == (200, version)
