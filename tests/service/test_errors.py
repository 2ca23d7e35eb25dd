"""Every bad request has one exact answer: a problem with a stable code."""

import base64
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from service.http.app import create_app
from service.serving.localization import LocalizationService
from service.settings import ServerSettings
from tests.conftest import PublishedPlaces
from tests.places import pattern

JPEG = {"Content-Type": "image/jpeg"}
SMALLER = "Send a smaller photo: the model looks at a small version of it anyway."
INCOMPLETE = "Check that the file is complete; it may have been cut off while copying or sending."
MEDIA_TYPES = (
    "Send image/jpeg, image/jpg, image/png, image/webp, image/heic, image/heif, multipart/form-data "
    "or application/json."
)


def jpeg(seed: int = 1, size: tuple[int, int] = (96, 72)) -> bytes:
    buffer = io.BytesIO()
    pattern(seed, size).save(buffer, "JPEG")
    return buffer.getvalue()


def png_header_bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be huge."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 64)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def gif() -> bytes:
    buffer = io.BytesIO()
    pattern(1).save(buffer, "GIF")
    return buffer.getvalue()


CASES: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "not an image": (
        {"content": b"this is a letter, not a photo", "headers": JPEG},
        415,
        "unsupported_media_type",
        "the image is of an unknown format, which is not accepted. Send JPEG, PNG, WebP or HEIC.",
    ),
    "empty body": (
        {"content": b"", "headers": JPEG},
        422,
        "empty_body",
        "the image is empty (0 bytes). Send the encoded photo.",
    ),
    "truncated JPEG": (
        {"content": jpeg()[:1500], "headers": JPEG},
        422,
        "image_undecodable",
        f"the image cannot be decoded (it ends too early). {INCOMPLETE}",
    ),
    "header bomb": (
        {"content": png_header_bomb(20_000, 20_000), "headers": {"Content-Type": "image/png"}},
        413,
        "too_many_pixels",
        f"the image has more than 2000000 pixels. {SMALLER}",
    ),
    "GIF": (
        {"content": gif(), "headers": JPEG},
        415,
        "unsupported_media_type",
        "the image is a GIF, which is not accepted. Send JPEG, PNG, WebP or HEIC.",
    ),
    "GIF content type": (
        {"content": gif(), "headers": {"Content-Type": "image/gif"}},
        415,
        "unsupported_media_type",
        f"content type 'image/gif' is not accepted. {MEDIA_TYPES}",
    ),
    "wrong content type": (
        {"content": jpeg(), "headers": {"Content-Type": "text/plain; charset=utf-8"}},
        415,
        "unsupported_media_type",
        f"content type 'text/plain' is not accepted. {MEDIA_TYPES}",
    ),
    "no content type": (
        {"content": jpeg()},
        415,
        "unsupported_media_type",
        f"the request has no content type. {MEDIA_TYPES}",
    ),
    "broken base64": (
        {"json": {"image": {"content": "@@not-base64@@"}}},
        400,
        "malformed_request",
        "/image/content is not base64 (Only base64 data is allowed). "
        "Send the photo's bytes as standard base64, without line breaks.",
    ),
    "base64 with wrong padding": (
        {"json": {"image": {"content": "abcde"}}},
        400,
        "malformed_request",
        "/image/content is not base64 (Invalid base64-encoded string: number of data characters (5) cannot be 1 more "
        "than a multiple of 4). Send the photo's bytes as standard base64, without line breaks.",
    ),
    "broken JSON": (
        {"content": b'{"image": ', "headers": {"Content-Type": "application/json"}},
        400,
        "malformed_request",
        "the body is not JSON (EOF while parsing a value at line 1 column 10). Check the request body.",
    ),
    "JSON nested too deeply": (
        {"content": b"[" * 100_000, "headers": {"Content-Type": "application/json"}},
        400,
        "malformed_request",
        "the body is not JSON (recursion limit exceeded at line 1 column 202). Check the request body.",
    ),
    "progressive JPEG of too many scans": (
        {"content": jpeg() + b"\xff\xda" * 101, "headers": JPEG},
        422,
        "image_undecodable",
        "the JPEG has more than 100 scans. Save the photo anew, as a baseline JPEG.",
    ),
    "JSON without image": ({"json": {"top_k": 3}}, 422, "validation_error", "/image: Field required."),
    "JSON with a URL": (
        {"json": {"image": {"url": "http://example.org/photo.jpg"}}},
        422,
        "validation_error",
        "/image/content: Field required.",
    ),
    "multipart without an image part": (
        {"files": {"photo": jpeg()}},
        422,
        "validation_error",
        "there is no file part named image. Send the photo as a file: curl -F image=@photo.jpg.",
    ),
    "multipart with the image as text": (
        {"files": {"note": b"x"}, "data": {"image": "photo.jpg"}},
        422,
        "validation_error",
        "there is no file part named image. Send the photo as a file: curl -F image=@photo.jpg.",
    ),
    "multipart without boundary": (
        {"content": b"whatever", "headers": {"Content-Type": "multipart/form-data"}},
        400,
        "malformed_request",
        "the multipart body cannot be read (Missing boundary in multipart.). "
        "Check the boundary and that the body is complete.",
    ),
    "unknown parameter": (
        {"content": jpeg(), "headers": JPEG, "params": {"topk": "3"}},
        422,
        "validation_error",
        "/topk: Extra inputs are not permitted.",
    ),
    "parameters beside JSON": (
        {"json": {"image": {"content": base64.b64encode(jpeg()).decode()}}, "params": {"top_k": "3"}},
        422,
        "validation_error",
        "query parameter 'top_k' beside a JSON body. Put the parameters into the JSON.",
    ),
    "latitude 95": (
        {"content": jpeg(), "headers": JPEG, "params": {"geo_prior": "95,11,500"}},
        422,
        "validation_error",
        "/geo_prior/lat: Input should be less than or equal to 90.",
    ),
    "radius NaN": (
        {"content": jpeg(), "headers": JPEG, "params": {"geo_prior": "48,11,nan"}},
        422,
        "validation_error",
        "/geo_prior/radius_m: Input should be a finite number.",
    ),
    "radius NaN in JSON": (
        {
            "content": b'{"image": {"content": ""}, "geo_prior": {"lat": 48, "lon": 11, "radius_m": NaN}}',
            "headers": {"Content-Type": "application/json"},
        },
        422,
        "validation_error",
        "/geo_prior/radius_m: Input should be a finite number.",
    ),
    "radius 0": (
        {"content": jpeg(), "headers": JPEG, "params": {"geo_prior": "48,11,0"}},
        422,
        "validation_error",
        "/geo_prior/radius_m: Input should be greater than 0.",
    ),
    "geo prior of two numbers": (
        {"content": jpeg(), "headers": JPEG, "params": {"geo_prior": "48,11"}},
        422,
        "validation_error",
        "/geo_prior '48,11' is not three numbers. Give lat,lon,radius_m, such as geo_prior=55.6983,13.1951,500.",
    ),
    "min_score 2": (
        {"content": jpeg(), "headers": JPEG, "params": {"min_score": "2"}},
        422,
        "validation_error",
        "/min_score: Input should be less than or equal to 1.",
    ),
    **{
        f"top_k {value}": (
            {"content": jpeg(), "headers": JPEG, "params": {"top_k": value}},
            422,
            "validation_error",
            f"/top_k: {message}.",
        )
        for value, message in {
            "0": "Input should be greater than or equal to 1",
            "-1": "Input should be greater than or equal to 1",
            "1000000000": "Input should be less than or equal to 100",
            "many": "Input should be a valid integer, unable to parse string as an integer",
        }.items()
    },
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_has_its_exact_answer(http: TestClient, name: str) -> None:
    request, status, code, detail = CASES[name]
    response = http.post("/localize", **request)
    problem = response.json()
    assert (response.status_code, problem["code"], problem["detail"]) == (status, code, detail)
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["type"] == f"urn:sightfix:problem:{code}"
    assert problem["status"] == status
    assert problem["instance"] == f"urn:request:{response.headers['x-request-id']}"


def test_all_wrong_parameters_are_named_at_once(http: TestClient) -> None:
    problem = http.post(
        "/localize", content=jpeg(), headers=JPEG, params={"top_k": "0", "geo_prior": "95,11,nan"}
    ).json()
    assert [error["pointer"] for error in problem["errors"]] == ["/top_k", "/geo_prior/lat", "/geo_prior/radius_m"]


UNKNOWN_KEYS = b"{" + b",".join(b'"%d":0' % number for number in range(90_000)) + b"}"


@pytest.mark.parametrize(
    ("path", "body", "status", "named"),
    [
        ("/search", b'{"descriptor":[' + b",".join([b'""'] * 90_000) + b"]}", 422, 1),
        ("/search", UNKNOWN_KEYS, 422, None),
        ("/search", b'{"descriptor":[' + b",".join([b"0"] * 100_002) + b"]}", 413, None),
        (
            "/indexes/places/activate",
            b"{" + b",".join(b'"%d":0' % number for number in range(90_000)) + b"}",
            422,
            None,
        ),
        ("/tracks", UNKNOWN_KEYS, 422, None),
    ],
    ids=["wrong numbers", "unknown keys", "too many values", "activation", "track"],
)
def test_a_body_of_nothing_but_mistakes_costs_little(
    http: TestClient, path: str, body: bytes, status: int, named: int | None
) -> None:
    """Each wrong value would be put into words: a body of 2 MB took a minute and a gigabyte."""
    response = http.post(path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == status
    problem = response.json()
    assert problem["code"] == ("body_too_large" if status == 413 else "validation_error")
    assert problem.get("errors") is None if named is None else len(problem["errors"]) == named
    assert len(response.content) < 1000


def test_unknown_paths_and_methods_are_problems_too(http: TestClient) -> None:
    missing, wrong = http.get("/nowhere"), http.get("/localize")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["code"], wrong.headers["allow"]) == (405, "method_not_allowed", "POST")


def test_an_unknown_reference_is_not_found(http: TestClient) -> None:
    response = http.get("/references/photos/9999.jpg/image")
    assert (response.status_code, response.json()["code"]) == (404, "reference_not_found")
    assert response.json()["detail"] == (
        "the index places has no reference 'photos/9999.jpg'. Take a reference_id from an answer."
    )


@pytest.mark.parametrize("path", ["../../../etc/passwd", "%2Fetc%2Fpasswd", "photos/../../secret"])
def test_no_path_from_a_client_is_ever_opened(http: TestClient, path: str) -> None:
    assert http.get(f"/references/{path}/image").status_code == 404


def test_a_bad_photo_does_not_disturb_the_next(http: TestClient, published: PublishedPlaces) -> None:
    photo = published.places.rows[5].path.read_bytes()
    one_pixel = io.BytesIO()
    Image.new("RGB", (1, 1)).save(one_pixel, "PNG")
    assert http.post("/localize", content=jpeg()[:900], headers=JPEG).status_code == 422
    assert (
        http.post("/localize", content=one_pixel.getvalue(), headers={"Content-Type": "image/png"}).status_code == 200
    )
    answer = http.post("/localize", content=photo, headers=JPEG)
    assert answer.json()["matches"][0]["reference_id"] == "photos/0005.jpg"


def test_before_the_model_is_loaded_the_server_says_so(published: PublishedPlaces) -> None:
    # Without the lifespan nothing is loaded: the state between opening the socket and readiness.
    client = TestClient(create_app(LocalizationService(ServerSettings(indexes=published.indexes))))
    assert client.get("/livez").json() == {"status": "alive"}
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["state"], ready.headers["retry-after"]) == (503, "loading", "2")
    response = client.post("/localize", content=jpeg(), headers=JPEG)
    assert (response.status_code, response.json()["code"], response.headers["retry-after"]) == (503, "not_ready", "2")
    assert response.json()["detail"] == (
        "the server is not ready: the model and the place index are being loaded. Try again in a moment."
    )


def test_readiness_tells_why_loading_failed(tmp_path: Path) -> None:
    localization = LocalizationService(ServerSettings(indexes=tmp_path / "nothing"))
    with TestClient(create_app(localization)) as client:
        localization.live.wait_until_loaded(30.0)
        ready = client.get("/readyz")
    assert ready.status_code == 503
    assert ready.json() == {
        "state": "failed",
        "reason": f"{tmp_path / 'nothing'}: there is no place index. Publish one: sightfix index PHOTOS --name NAME.",
    }
