"""Hostile requests to a real server process: always an answer in time, never a 5xx, every error a documented problem.

`python -m benchmarks.serving.hostile` is the same with thousands of cases, other ones each time.
"""

import math
import re
from collections.abc import Iterator

import httpx
import pytest

from service.problems import STATUS_OF_CODE
from tests.conftest import PublishedPlaces
from tests.hypothesis_profiles import examples
from tests.running_server import RunningServer, forked_server
from tests.service.malformed.answer_checks import documented_codes
from tests.service.malformed.request_fuzzer import ENVIRONMENT, RequestFuzzer

JPEG = {"Content-Type": "image/jpeg"}
# Said over gRPC only.
NOT_OVER_HTTP = {"superseded"}


@pytest.fixture(scope="module")
def fuzzed(published: PublishedPlaces, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("fuzzed")
    roots = folder / "roots"
    roots.mkdir()
    jobs = {"SIGHTFIX_JOBS_FOLDER": str(folder / "jobs"), "SIGHTFIX_METRICS": "main"}
    given = ["--indexes", str(published.indexes), "--source-root", str(roots), "--threads", "1"]
    with forked_server(folder / "log", given, {**ENVIRONMENT, **jobs}) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture
def fuzzer(fuzzed: RunningServer, published: PublishedPlaces) -> Iterator[RequestFuzzer]:
    """After which the server is as well as before."""
    fuzzer = RequestFuzzer(fuzzed.url, timeout_s=60.0)
    yield fuzzer
    fuzzer.close()
    assert fuzzed.process.poll() is None
    photo = published.places.rows[2].path.read_bytes()
    answer = httpx.post(f"{fuzzed.url}/localize", content=photo, headers=JPEG, timeout=60)
    assert answer.json()["matches"][0]["reference_id"] == "photos/0002.jpg"
    assert httpx.get(f"{fuzzed.url}/readyz").status_code == 200
    lines = fuzzed.log.read_text().splitlines()
    # No traceback, no warning of a library in a form of its own, and no line for each bad request.
    assert all(re.match(r"\d{4}-\d\d-\d\d \S+ (INFO|WARNING) sightfix\.", line) for line in lines), lines[-20:]
    assert len(lines) < 40


def test_every_sample_image_is_answered_or_refused(fuzzer: RequestFuzzer) -> None:
    fuzzer.samples()
    assert fuzzer.checks.cases > 80


@pytest.mark.parametrize(
    ("area", "cases"),
    [("images", 40), ("batches", 6), ("json", 40), ("multipart", 30), ("raw", 40), ("schema", 20)],
)
def test_malformed_requests_are_answered_in_time_and_never_with_a_server_error(
    fuzzer: RequestFuzzer, area: str, cases: int
) -> None:
    getattr(fuzzer, area)(examples(cases))
    assert fuzzer.checks.cases >= cases / 2  # Hypothesis leaves out what it has made already
    assert fuzzer.checks.codes, "nothing was refused: was it hostile?"


def test_every_code_is_documented() -> None:
    assert set(STATUS_OF_CODE) - NOT_OVER_HTTP <= documented_codes()


def test_the_description_tells_no_error_that_is_no_problem(fuzzed: RunningServer) -> None:
    described = httpx.get(f"{fuzzed.url}/openapi.json").json()
    ids = []
    for path, operations in described["paths"].items():
        for operation in operations.values():
            ids.append(operation["operationId"])
            for status, response in operation["responses"].items():
                if int(status) >= 400 and (path, status) not in (("/livez", "503"), ("/readyz", "503")):
                    assert list(response["content"]) == ["application/problem+json"], (path, status)
    assert len(ids) == len(set(ids))
    assert "HTTPValidationError" not in described["components"]["schemas"]


def test_an_error_of_fastapi_repeats_no_input_and_survives_nan(fuzzed: RunningServer) -> None:
    url = f"{fuzzed.url}/indexes/places/activate"
    for body in (b'{"version": NaN}', b'{"version": "\\ud800"}', b'{"secret": "s3cret"}', b"[" * 100_000, b"\xff\xfe"):
        response = httpx.post(url, content=body, headers={"Content-Type": "application/json"})
        assert response.status_code in (400, 404, 422), body[:40]
        assert response.headers["content-type"] == "application/problem+json"
        assert "s3cret" not in response.text


def test_no_path_of_the_server_is_told(fuzzed: RunningServer, published: PublishedPlaces) -> None:
    for path in ("/indexes/nowhere", "/references/nobody/image"):
        text = httpx.get(f"{fuzzed.url}{path}").text
        assert str(published.indexes) not in text
        assert "Choose among places." in text or "reference_id" in text


def test_what_is_not_http_gets_a_problem_too(fuzzed: RunningServer) -> None:
    fuzzer = RequestFuzzer(fuzzed.url)
    for request, status, code in (
        (b"\x16\x03\x01 this is TLS\r\n\r\n", 400, "malformed_request"),
        (b"POST /localize HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400, "malformed_request"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000, 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: ", 408, "request_timeout"),
    ):
        answer = fuzzer.exchange(request)
        problem = fuzzer.judged("raw HTTP", request, answer, math.nan)
        assert problem is not None
        assert (problem.status, problem.code) == (status, code)
    fuzzer.close()
