"""POST /localize: three forms of one request, the same answer."""

import base64
import io
import re

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from retrieval.describer import Describer
from retrieval.geo import GeoPrior, haversine_m
from retrieval.images import ImageLimits
from retrieval.index.place_index import PlaceIndex
from retrieval.localize.localizer import LocalizeOptions, Localizer
from service.answer import LocalizeAnswer, answer_of
from tests.conftest import PublishedPlaces

JPEG = {"Content-Type": "image/jpeg"}


@pytest.fixture
def photo(published: PublishedPlaces) -> bytes:
    return published.places.rows[3].path.read_bytes()


def matches_of(answer: LocalizeAnswer) -> list[tuple[str, float]]:
    return [(match.reference_id, round(match.score, 5)) for match in answer.matches]


def test_a_reference_photo_is_found_where_it_was_taken(
    http: TestClient, published: PublishedPlaces, photo: bytes
) -> None:
    response = http.post("/localize", content=photo, headers=JPEG)
    assert response.status_code == 200
    answer = LocalizeAnswer.model_validate_json(response.content)
    truth = published.places.rows[3].position
    assert truth is not None
    assert answer.status == "LOCATED"
    assert answer.fix is not None
    assert haversine_m(answer.fix.lat, answer.fix.lon, truth.lat, truth.lon) < 0.01
    assert answer.fix.calibrated is False
    assert answer.matches[0].reference_id == "photos/0003.jpg"
    assert answer.matches[0].score == pytest.approx(1.0, abs=1e-3)
    assert [match.rank for match in answer.matches] == list(range(1, 11))
    assert answer.index.name == "places"
    assert answer.index.size == 12


def test_raw_multipart_and_json_give_the_same_answer_as_the_localizer(
    http: TestClient, published: PublishedPlaces, describer: Describer, photo: bytes
) -> None:
    prior = GeoPrior(48.0, 11.0, 650.0)
    index = PlaceIndex.open(published.indexes / published.name)
    localizer = Localizer(describer, index, limits=ImageLimits())
    decoded = localizer.decode(photo, LocalizeOptions(top_k=4, geo_prior=prior, min_score=0.1))
    expected = answer_of(localizer.localize([decoded])[0])
    text = "48.0,11.0,650.0"
    parameters = {"top_k": "4", "geo_prior": text, "min_score": "0.1"}
    as_object = {"lat": 48.0, "lon": 11.0, "radius_m": 650.0}
    responses = [
        http.post("/localize", params={"top_k": 4, "geo_prior": text, "min_score": 0.1}, content=photo, headers=JPEG),
        http.post(
            "/v1/localize", params={"top_k": 4, "geo_prior": text, "min_score": 0.1}, content=photo, headers=JPEG
        ),
        http.post("/localize", files={"image": photo}, data=parameters),
        http.post(
            "/localize",
            files={"image": ("photo.jpg", photo, "image/jpeg")},
            data={"top_k": "4", "geo_prior": '{"lat": 48, "lon": 11, "radius_m": 650}', "min_score": "0.1"},
        ),
        http.post(
            "/localize",
            json={
                "image": {"content": base64.b64encode(photo).decode()},
                "top_k": 4,
                "geo_prior": as_object,
                "min_score": 0.1,
            },
        ),
    ]
    for response in responses:
        assert response.status_code == 200, response.text
        answer = LocalizeAnswer.model_validate_json(response.content)
        assert matches_of(answer) == matches_of(expected)
        assert answer.fix is not None
        assert expected.fix is not None
        assert (answer.fix.lat, answer.fix.lon) == (expected.fix.lat, expected.fix.lon)
    # The photos lie 100 m apart: seven of them within 650 m of the first, of which the best four are told.
    assert len(expected.matches) == 4


def test_every_match_lies_inside_the_geo_prior_even_when_the_photo_does_not(http: TestClient, photo: bytes) -> None:
    response = http.post("/localize", params={"geo_prior": "48.0,11.0,150"}, content=photo, headers=JPEG)
    answer = LocalizeAnswer.model_validate_json(response.content)
    assert {match.reference_id for match in answer.matches} == {"photos/0000.jpg", "photos/0001.jpg"}


def test_an_empty_geo_prior_is_no_match_not_an_error(http: TestClient, photo: bytes) -> None:
    response = http.post("/localize", params={"geo_prior": "-10,100,500"}, content=photo, headers=JPEG)
    answer = LocalizeAnswer.model_validate_json(response.content)
    assert (response.status_code, answer.status, answer.fix, answer.matches) == (200, "NO_MATCH", None, [])


def test_nothing_reaches_a_high_min_score(http: TestClient) -> None:
    grey = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(grey, "PNG")
    response = http.post(
        "/localize", params={"min_score": "0.999"}, content=grey.getvalue(), headers={"Content-Type": "image/png"}
    )
    assert response.json()["status"] == "NO_MATCH"


def test_timings_add_up(http: TestClient, photo: bytes) -> None:
    timings = http.post("/localize", content=photo, headers=JPEG).json()["timings_ms"]
    parts = sum(timings[name] for name in ("decode", "queue", "describe", "search", "fix"))
    assert 0 < parts <= timings["total"] * 1.001


def test_a_request_id_is_echoed_if_it_is_a_plain_one(http: TestClient, photo: bytes) -> None:
    echoed = http.post("/localize", content=photo, headers={**JPEG, "X-Request-Id": "robot-7.42"})
    replaced = http.post("/localize", content=photo, headers={**JPEG, "X-Request-Id": "a b<script>"})
    assert echoed.headers["x-request-id"] == echoed.json()["request_id"] == "robot-7.42"
    assert replaced.json()["request_id"] != "a b<script>"
    assert replaced.headers["x-request-id"] == replaced.json()["request_id"]


def test_thumbnails_are_small_upright_and_carry_no_metadata(http: TestClient, photo: bytes) -> None:
    path = http.post("/localize", content=photo, headers=JPEG).json()["matches"][0]["thumbnail"]
    response = http.get(path)
    assert response.headers["content-type"] == "image/jpeg"
    image = Image.open(io.BytesIO(response.content))
    assert image.size == (96, 72)
    assert not image.getexif()
    again = http.get(path, headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_info_says_what_is_served(http: TestClient, published: PublishedPlaces, describer: Describer) -> None:
    info = http.get("/info").json()
    assert info["model"]["fingerprint"] == describer.bundle.fingerprint
    assert info["index"] == {
        "name": "places",
        "version": PlaceIndex.open(published.indexes / "places").version,
        "size": 12,
        "type": "exact",
    }
    assert info["limits"]["max_image_bytes"] == 1 << 20
    assert info["limits"]["max_batch"] == 8  # on a CPU


def test_the_openapi_document_describes_all_three_bodies_with_examples(http: TestClient) -> None:
    document = http.get("/openapi.json").json()
    operation = document["paths"]["/localize"]["post"]
    content = operation["requestBody"]["content"]
    assert {"image/jpeg", "image/heic", "multipart/form-data", "application/json"} <= set(content)
    assert content["application/json"]["example"]["geo_prior"]["radius_m"] == 500
    assert {parameter["name"] for parameter in operation["parameters"]} == {
        "top_k",
        "geo_prior",
        "min_score",
        "X-Lane",
        "X-Deadline-Ms",
    }
    assert "application/problem+json" in operation["responses"]["422"]["content"]
    assert document["components"]["schemas"]["FixAnswer"]["properties"]["lat"]["examples"] == [55.69829]


def test_the_documentation_pages_load_nothing_from_other_hosts(http: TestClient) -> None:
    page = http.get("/docs").text
    links = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert links
    assert all(link.startswith("/") for link in links)
    assert all(http.get(link).status_code == 200 for link in links)
