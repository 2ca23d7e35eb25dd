"""POST /geopose speaks the OSCP GeoPose protocol as its own clients write and read it."""

import base64
import io
import json
import math
import time
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from index_builder.update import build_index
from retrieval.describer import Describer
from retrieval.geo import haversine_m
from retrieval.index.place_index import PlaceIndex
from retrieval.localize.evidence import FixSettings
from retrieval.localize.fix import Ranking
from retrieval.localize.localizer import Localizer, Located
from service.geopose.localization import pose_of
from service.http.routes.geopose import request_schema
from tests.conftest import PublishedPlaces
from tests.places import make_places

ACCEPT_2 = {"Accept": "application/vnd.oscp+json;version=2.0;"}
UNSET = 1.7976931348623157e308
PRIVACY = {
    "dataRetention": [],
    "dataAcceptableUse": [],
    "dataSanitizationApplied": [],
    "dataSanitizationRequested": [],
}

# The protocol's TypeScript interface GeoPoseResp as a schema; its Python client fails on any further field.
_NUMBERS = {"type": "number"}


def _exactly(**properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


RESPONSE_SCHEMA = _exactly(
    id={"type": "string"},
    timestamp={"type": "integer", "minimum": 0},
    type={"const": "geopose"},
    accuracy=_exactly(position={**_NUMBERS, "minimum": 0}, orientation={**_NUMBERS, "minimum": 0, "maximum": 180}),
    geopose=_exactly(
        position=_exactly(
            lat={**_NUMBERS, "minimum": -90, "maximum": 90},
            lon={**_NUMBERS, "minimum": -180, "maximum": 180},
            h=_NUMBERS,
        ),
        quaternion=_exactly(x=_NUMBERS, y=_NUMBERS, z=_NUMBERS, w=_NUMBERS),
    ),
)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def photo(published: PublishedPlaces, number: int) -> bytes:
    return published.places.rows[number].path.read_bytes()


def version_1(image: str, **geolocation: float) -> dict[str, Any]:
    """The example that the JavaScript client gives for version 1, with an image in it."""
    return {
        "id": "d9fbf438-b7c6-419a-a75b-1cf79275e58d",
        "timestamp": "2020-12-26T15:19:50.413Z",
        "type": "geopose",
        "sensors": [{"id": "0", "type": "camera"}, {"id": "1", "type": "geolocation"}],
        "sensorReadings": [
            {
                "sensorId": "0",
                "timestamp": "2020-12-26T15:19:50.381Z",
                "privacy": PRIVACY,
                "reading": {
                    "sequenceNumber": 0,
                    "imageFormat": "JPG",
                    "size": [1920, 1080],
                    "imageBytes": image,
                    "imageOrientation": {"mirrored": False, "rotation": 0},
                },
            },
            {
                "sensorId": "1",
                "timestamp": "2020-12-26T15:19:50.381Z",
                "privacy": PRIVACY,
                "reading": {
                    "latitude": 47.61155,
                    "longitude": -122.33705555555555,
                    "altitude": 0,
                    "accuracy": 0,
                    "altitudeAccuracy": 0,
                    "heading": 0,
                    "speed": 0,
                    **geolocation,
                },
            },
        ],
    }


def version_2(*images: str, **camera: Any) -> dict[str, Any]:
    """As the protocol's Python client writes it: every field, a photo declared as RGBA32, rig fields of zeros."""
    rig = {"rigIdentifier": "", "rigRotation": dict.fromkeys("xyzw", 0.0), "rigTranslation": dict.fromkeys("xyz", 0.0)}
    return {
        "type": "geopose",
        "id": "a2f7c3a5-6b0e-4b5e-93d2-0ad5f1f0f2f1",
        "timestamp": 1763891234567.891,
        "sensors": [
            {"type": "camera", "id": "my_camera_sensor", "name": "", "model": "", **rig},
            {"type": "geolocation", "id": "my_gps_sensor", "name": "", "model": "", **rig},
        ],
        "sensorReadings": {
            "cameraReadings": [
                {
                    "timestamp": 1763891234560.5,
                    "sensorId": "my_camera_sensor",
                    "privacy": PRIVACY,
                    "sequenceNumber": 1,
                    "imageFormat": "RGBA32",
                    "size": [96, 72],
                    "imageBytes": image,
                    "imageOrientation": {"mirrored": False, "rotation": 0.0},
                    "params": {
                        "model": "OPENCV",
                        "modelParams": [1499.027, 1499.027, 954.783, 511.957, 0.0, 0.0, 0.0, 0.0],
                        "minMaxDepth": [],
                        "minMaxDisparity": [],
                    },
                    **camera,
                }
                for image in images
            ],
            "geolocationReadings": [
                {
                    "timestamp": 1763891234560.5,
                    "sensorId": "my_gps_sensor",
                    "privacy": PRIVACY,
                    "latitude": 47.61155,
                    "longitude": -122.337056,
                    "altitude": 42.0,
                    "accuracy": 0.0,
                    "altitudeAccuracy": 0.0,
                    "heading": 0.0,
                    "speed": 0.0,
                }
            ],
            "accelerometerReadings": [],
            "gyroscopeReadings": [],
            "magnetometerReadings": [],
            "wifiReadings": [],
            "bluetoothReadings": [],
        },
        "priorPoses": [],
    }


def localized(published: PublishedPlaces, response: Any, number: int) -> dict[str, Any]:
    """The pose, after checking that it is one, and where the photo was taken."""
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    jsonschema.validate(body, RESPONSE_SCHEMA)
    quaternion = body["geopose"]["quaternion"]
    assert math.hypot(*quaternion.values()) == pytest.approx(1.0)
    position, truth = body["geopose"]["position"], published.places.rows[number].position
    assert truth is not None
    assert haversine_m(position["lat"], position["lon"], truth.lat, truth.lon) < 1.0
    return body


def test_version_2_as_the_python_client_sends_it(http: TestClient, published: PublishedPlaces) -> None:
    request = version_2(b64(photo(published, 3)))
    jsonschema.validate(request, request_schema())
    response = http.post("/geopose", json=request, headers=ACCEPT_2)
    body = localized(published, response, 3)
    assert (body["id"], body["timestamp"]) == (request["id"], 1763891234567)
    assert response.headers["content-type"] == "application/vnd.oscp+json; version=2.0"
    assert body["accuracy"]["position"] > 0


def test_version_1_as_the_javascript_client_sends_it(http: TestClient, published: PublishedPlaces) -> None:
    request = version_1(b64(photo(published, 5)))
    jsonschema.validate(request, request_schema())
    response = http.post("/geopose", json=request, headers={"Accept": "application/vnd.oscp+json; version=1.0;"})
    body = localized(published, response, 5)
    assert (body["id"], body["timestamp"]) == (request["id"], 1608995990413)
    assert response.headers["content-type"] == "application/vnd.oscp+json; version=1.0"


@pytest.mark.parametrize("path", ["/geopose", "/v1/geopose", "/scrs/geopose"])
def test_where_clients_look_and_without_a_version(http: TestClient, published: PublishedPlaces, path: str) -> None:
    assert http.get(path).json() == {"status": "running"}
    response = http.post(path, json=version_2(b64(photo(published, 1))))
    localized(published, response, 1)
    assert response.headers["content-type"] == "application/json"


def test_a_version_that_is_not_spoken(http: TestClient) -> None:
    response = http.post("/geopose", json={}, headers={"Accept": "application/vnd.oscp+json;version=3.0"})
    assert (response.status_code, response.json()["code"]) == (400, "malformed_request")


@pytest.fixture(scope="module")
def localization(published: PublishedPlaces, describer: Describer) -> Located:
    index = PlaceIndex.open(published.indexes / published.name)
    return Localizer(describer, index).localize_file(published.places.rows[3].path)


def test_the_heading_of_the_references_becomes_the_yaw(http: TestClient, published: PublishedPlaces) -> None:
    body = localized(published, http.post("/geopose", json=version_2(b64(photo(published, 3)))), 3)
    # The references look east, where x points: nothing to turn.
    assert body["geopose"]["quaternion"] == pytest.approx({"x": 0.0, "y": 0.0, "z": 0.0, "w": 1.0})
    assert body["accuracy"]["orientation"] == 30.0


@pytest.mark.parametrize(
    ("headings", "yaw_deg", "accuracy_deg"),
    [
        ([0.0], 90.0, 30.0),
        ([180.0], -90.0, 30.0),
        ([350.0, 10.0], 90.0, 30.0),
        ([None, 270.0], 180.0, 30.0),
        ([45.0, 135.0], 0.0, math.degrees(math.sqrt(math.log(2)))),
        ([0.0, 180.0], None, 180.0),
        ([None, None], None, 180.0),
    ],
)
def test_yaw_is_counter_clockwise_from_east(
    localization: Located,
    headings: list[float | None],
    yaw_deg: float | None,
    accuracy_deg: float,
) -> None:
    best, alike = localization.matches[0], np.ones(len(headings))
    matches = tuple(replace(best, reference=replace(best.reference, heading_deg=heading)) for heading in headings)
    ranking = Ranking(np.full(len(headings), best.row), alike, alike, None, np.arange(len(headings)))
    pose, accuracy = pose_of(replace(localization, matches=matches, ranking=ranking), FixSettings())
    assert accuracy.orientation == pytest.approx(accuracy_deg)
    quaternion = pose.quaternion
    if yaw_deg is None:
        assert (quaternion.z, quaternion.w) == (0.0, 1.0)
        return
    # Turning the x axis with the quaternion gives where the camera looks.
    z, w = quaternion.z, quaternion.w
    ahead = (1.0 - 2.0 * z * z, 2.0 * z * w)
    assert ahead == pytest.approx((math.cos(math.radians(yaw_deg)), math.sin(math.radians(yaw_deg))), abs=1e-9)


def test_heights_are_those_of_the_references(describer: Describer, tmp_path: Any) -> None:
    places = make_places(tmp_path, 12)
    object.__setattr__(places.rows[3], "altitude_m", 519.0)
    index = PlaceIndex.open(build_index(places, describer, tmp_path / "indexes", "places").folder)
    high, low = (Localizer(describer, index).localize_file(places.rows[number].path) for number in (3, 4))
    assert pose_of(high, FixSettings())[0].position.h == pytest.approx(519.0)
    assert pose_of(low, FixSettings())[0].position.h == 0.0


def test_matches_weigh_as_in_the_fix(localization: Located) -> None:
    """A score 0.02 below the best counts 1/e as much, but 0.2 below where they lie ten times as far apart."""
    best, one = localization.matches[0], np.array([1.0, 0.8])
    low, high = (replace(best, reference=replace(best.reference, altitude_m=height)) for height in (0.0, 100.0))
    ranking = Ranking(np.full(2, best.row), one, one / 10.0, None, np.arange(2))
    pose, _ = pose_of(replace(localization, matches=(low, high), ranking=ranking), FixSettings())
    assert pose.position.h == pytest.approx(100.0 / (1.0 + math.e))


@pytest.mark.parametrize("kind", ["RGBA32", "GRAY8"])
def test_raw_pixels(http: TestClient, published: PublishedPlaces, kind: str) -> None:
    with Image.open(published.places.rows[2].path) as image:
        rgb = image.convert("RGB")
    if kind == "RGBA32":
        # An alpha channel of zeros, as some cameras fill it, is not transparency.
        raw = np.dstack([np.asarray(rgb), np.zeros((rgb.height, rgb.width), np.uint8)]).tobytes()
    else:
        raw = rgb.convert("L").tobytes()
    response = http.post("/geopose", json=version_2(b64(raw), imageFormat=kind, size=[rgb.width, rgb.height]))
    if kind == "RGBA32":
        localized(published, response, 2)
    else:
        assert response.status_code in (200, 422)  # the made-up places differ by little but their colours
        assert response.json().get("code") in (None, "not_localized")


@pytest.mark.parametrize(("rotation", "mirrored"), [(90.0, False), (180, False), (270, True), (0, True), (-90, False)])
@pytest.mark.parametrize("raw", [True, False])
def test_a_turned_image_is_turned_back(
    http: TestClient, published: PublishedPlaces, rotation: float, mirrored: bool, raw: bool
) -> None:
    with Image.open(published.places.rows[4].path) as upright:
        upright.load()
    seen = upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else upright
    seen = seen.rotate(rotation, expand=True)  # Pillow turns counter-clockwise
    buffer = io.BytesIO()
    seen.save(buffer, "PNG")
    data = seen.convert("RGBA").tobytes() if raw else buffer.getvalue()
    orientation = {"mirrored": mirrored, "rotation": rotation}
    request = version_2(b64(data), size=[seen.width, seen.height], imageOrientation=orientation)
    localized(published, http.post("/geopose", json=request), 4)


def test_a_photo_that_says_itself_how_to_turn_it_is_turned_once(http: TestClient, published: PublishedPlaces) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise
    buffer = io.BytesIO()
    with Image.open(published.places.rows[4].path) as upright:
        upright.rotate(90, expand=True).save(buffer, "JPEG", quality=98, exif=exif)
    orientation = {"mirrored": False, "rotation": 90}
    localized(published, http.post("/geopose", json=version_2(b64(buffer.getvalue()), imageOrientation=orientation)), 4)


def test_the_best_of_several_cameras_answers(http: TestClient, published: PublishedPlaces) -> None:
    images = [b64(b"\xff\xd8\xff broken"), b64(photo(published, 6)), ""]
    localized(published, http.post("/geopose", json=version_2(*images)), 6)
    depth = version_2(b64(b"0" * 16), b64(photo(published, 6)))
    depth["sensorReadings"]["cameraReadings"][0]["imageFormat"] = "DEPTH"
    localized(published, http.post("/geopose", json=depth), 6)


@pytest.mark.parametrize("unset", [None, 0, -1.0, UNSET, math.nan, math.inf])
def test_what_a_client_never_set_bounds_nothing(
    http: TestClient, published: PublishedPlaces, unset: float | None
) -> None:
    request = version_2(b64(photo(published, 7)))
    request["sensorReadings"]["geolocationReadings"][0].update(accuracy=unset, heading=unset, altitude=unset)
    text = json.dumps(request)  # with NaN and Infinity, as Python clients write them
    localized(published, http.post("/geopose", content=text, headers={"Content-Type": "application/json"}), 7)


def test_a_position_that_was_never_set_bounds_nothing(http: TestClient, published: PublishedPlaces) -> None:
    request = version_1(b64(photo(published, 7)), latitude=0, longitude=0, accuracy=10)
    localized(published, http.post("/geopose", json=request), 7)


def test_a_photo_is_named_by_its_place_among_all_readings(http: TestClient) -> None:
    request = version_2(b64(b"0" * 16), "***")
    request["sensorReadings"]["cameraReadings"][0]["imageFormat"] = "DEPTH"
    problem = http.post("/geopose", json=request).json()
    assert "/sensorReadings/cameraReadings/1/imageBytes" in problem["detail"]


def test_a_geolocation_with_an_accuracy_bounds_the_answer(http: TestClient, published: PublishedPlaces) -> None:
    far = version_1(b64(photo(published, 7)), accuracy=10)
    refused = http.post("/geopose", json=far)
    assert (refused.status_code, refused.json()["code"]) == (422, "not_localized")
    assert refused.headers["content-type"] == "application/problem+json"
    assert "no reference lies within 50 m of the geolocation reading" in refused.json()["detail"]
    localized(published, http.post("/geopose?prior=off", json=far), 7)
    near = published.places.rows[7].position
    assert near is not None
    here = version_1(b64(photo(published, 7)), accuracy=5, latitude=near.lat, longitude=near.lon)
    localized(published, http.post("/geopose", json=here), 7)


def test_the_javascript_clients_spelling_bounds_the_answer_too(http: TestClient, published: PublishedPlaces) -> None:
    request = version_2(b64(photo(published, 7)))
    readings = request["sensorReadings"]
    readings["geoLocationReadings"] = [{**readings.pop("geolocationReadings")[0], "accuracy": 10}]
    assert http.post("/geopose", json=request).json()["code"] == "not_localized"


def test_a_guess_is_not_sent_as_a_pose(http: TestClient) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (96, 72), "grey").save(buffer, "PNG")
    image = buffer.getvalue()
    answer = http.post("/localize", content=image, headers={"Content-Type": "image/png"}).json()
    assert answer["status"] == "AMBIGUOUS"
    response = http.post("/geopose", json=version_2(b64(image)))
    assert (response.status_code, response.json()["code"]) == (422, "not_localized")
    assert response.json()["status"] == 422
    assert response.headers["x-request-id"] in response.json()["instance"]


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"sensorReadings": {}}, 422, "validation_error"),
        ({"sensorReadings": []}, 422, "validation_error"),
        ({"sensorReadings": [{"sensorId": "0"}, 7, {"reading": None}]}, 422, "validation_error"),
        ({"sensorReadings": {"cameraReadings": None}}, 422, "validation_error"),
        ({"sensorReadings": "none"}, 422, "validation_error"),
        ({"id": None}, 422, "validation_error"),
        ({"sensorReadings": {"cameraReadings": [{"imageBytes": []}]}}, 422, "validation_error"),
        ({"sensorReadings": {"cameraReadings": [{"imageBytes": "***"}]}}, 400, "malformed_request"),
        ({"sensorReadings": {"cameraReadings": [{"imageBytes": ""}]}}, 422, "empty_body"),
        ({"sensorReadings": {"cameraReadings": [{"imageBytes": "bm8="}]}}, 415, "unsupported_media_type"),
        (
            {"sensorReadings": {"cameraReadings": [{"imageBytes": "bm8=", "imageFormat": "RGBA32", "size": [9, 9]}]}},
            422,
            "validation_error",
        ),
        (
            {"sensorReadings": {"cameraReadings": [{"imageBytes": "bm8=", "imageFormat": "GRAY8", "size": None}]}},
            422,
            "validation_error",
        ),
        ({"sensorReadings": {"cameraReadings": [{"imageBytes": "bm8="}] * 9}}, 422, "validation_error"),
    ],
)
def test_requests_that_cannot_be_answered(http: TestClient, change: dict[str, Any], status: int, code: str) -> None:
    response = http.post("/geopose", json={**version_2(), **change})
    assert (response.status_code, response.json()["code"]) == (status, code), response.text
    assert response.headers["content-type"] == "application/problem+json"


def test_what_else_is_refused(http: TestClient) -> None:
    assert http.post("/geopose", content=b"x", headers={"Content-Type": "image/jpeg"}).status_code == 415
    assert http.post("/geopose", content=b"{", headers={"Content-Type": "application/json"}).status_code == 400
    assert http.post("/geopose?prior=maybe", json={}).json()["code"] == "validation_error"
    assert http.post("/geopose?top_k=3", json={}).json()["code"] == "validation_error"


@pytest.mark.parametrize("timestamp", [None, "yesterday", -5, UNSET, 10**400, 1e17, "2020-12-26T15:19:50"])
def test_a_timestamp_is_always_answered_with_a_number(
    http: TestClient, published: PublishedPlaces, timestamp: Any
) -> None:
    request = {**version_2(b64(photo(published, 7))), "timestamp": timestamp}
    response = http.post("/geopose", content=json.dumps(request), headers={"Content-Type": "application/json"})
    if response.status_code == 422:  # a number that no float holds
        assert timestamp == 10**400
        return
    localized(published, response, 7)
    # The naive moment is taken as UTC; the others are not moments, so it is now.
    expected = 1608995990000 if timestamp == "2020-12-26T15:19:50" else pytest.approx(1e3 * time.time(), abs=6e4)
    assert response.json()["timestamp"] == expected


@pytest.mark.parametrize("timestamp", ["1700000000000", "1.7e12", 1700000000000])
def test_milliseconds_may_be_text(http: TestClient, published: PublishedPlaces, timestamp: Any) -> None:
    response = http.post("/geopose", json={**version_2(b64(photo(published, 7))), "timestamp": timestamp})
    assert response.json()["timestamp"] == 1700000000000


def test_the_description_knows_it(http: TestClient) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    post = paths["/geopose"]["post"]
    assert set(post["requestBody"]["content"]) == {"application/json", "application/vnd.oscp+json"}
    assert "application/vnd.oscp+json" in post["responses"]["200"]["content"]
    assert set(paths["/geopose"]) == {"get", "post"}
    assert "/scrs/geopose" not in paths
