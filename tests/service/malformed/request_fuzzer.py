"""Campaigns against a running server: so many cases of a sort, each judged. Shared by the tests and the benchmark."""

import contextlib
import socket
import time
import warnings
from collections.abc import Callable
from typing import Any, Final

import httpx
import hypothesis
import schemathesis
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.answer import Problem
from tests.service.malformed.answer_checks import AnswerChecks, documented_codes
from tests.service.malformed.image_samples import bad, whole
from tests.service.malformed.strategies import any_image, content_types, json_bodies, multipart_bodies, raw_requests

# The limits of the server under test: small, so that waiting for what never comes is short.
ENVIRONMENT: Final = {
    "SIGHTFIX_MAX_IMAGE_BYTES": str(16 << 20),
    "SIGHTFIX_MAX_PIXELS": "4000000",
    "SIGHTFIX_BODY_TIMEOUT_S": "0.5",
    "SIGHTFIX_HEADER_TIMEOUT_S": "0.5",
}
JSON_PATHS: Final = (
    "/localize",
    "/localize/batch",
    "/search",
    "/describe",
    "/jobs",
    "/geopose",
    "/indexes/places/activate",
)


class RequestFuzzer:
    """Hostile requests to one server.

    Args:
        url: of the server.
        seed: of what is left to chance; None repeats the same cases.
        timeout_s: an answer that takes longer is a hang.
    """

    def __init__(self, url: str, seed: int | None = None, timeout_s: float = 20.0) -> None:
        self.url = url
        self.checks = AnswerChecks(timeout_s)
        self._seed = seed
        self._timeout_s = timeout_s
        self._client = httpx.Client(base_url=url, timeout=timeout_s)
        host, _, port = url.removeprefix("http://").partition(":")
        self._address = host, int(port)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def samples(self) -> None:
        """Every photo of the museum: the whole ones are answered, the bad ones refused."""
        for name, photo in whole().items():
            status = self._post("samples", f"whole {name}", "/localize", photo, {"Content-Type": "image/jpeg"})
            assert status == 200, f"{name}: {status}"
        for name, photo in bad().items():
            status = self._post("samples", f"bad {name}", "/localize", photo, {"Content-Type": "image/jpeg"})
            assert 400 <= status < 500, f"{name}: {status}"

    def images(self, cases: int) -> None:
        """Damaged photos as raw bytes with any content type, to each route that takes a photo."""

        def one(photo: bytes, given_type: str, path: str) -> None:
            self._post("images", f"{len(photo)} bytes {given_type!r}", path, photo, {"Content-Type": given_type})

        types = st.just("image/jpeg") | content_types()
        self._run(cases, one, any_image(), types, st.sampled_from(["/localize", "/localize", "/describe"]))

    def batches(self, cases: int) -> None:
        """Several of them in one form: what each gets alone, none takes from another."""

        def one(photos: list[bytes]) -> None:
            parts = [("image", (f"{number}.jpg", photo, "image/jpeg")) for number, photo in enumerate(photos)]
            asked = time.perf_counter()
            response = self._client.post("/localize/batch", files=[*parts, ("image", whole()["jpeg"])])
            seconds = time.perf_counter() - asked
            self.checks.judge(
                "batches",
                f"{len(photos)} photos",
                seconds,
                response.status_code,
                dict(response.headers),
                response.content,
            )
            if response.status_code == 200:
                items = response.json()["items"]
                assert len(items) == len(photos) + 1
                assert items[-1]["status"] in (200, 429, 504)
                for item in items:
                    assert item["status"] < 500 or item["status"] in (503, 504), item
                    if item["status"] != 200:
                        assert item["problem"]["code"] in documented_codes()
                        self.checks.codes[item["problem"]["code"]] += 1

        self._run(cases, one, st.lists(any_image(), min_size=1, max_size=6))

    def json(self, cases: int) -> None:
        """JSON that is none, or says what nobody means."""

        def one(body: bytes, path: str) -> None:
            self._post("JSON", repr(body[:200]), path, body, {"Content-Type": "application/json"})

        self._run(cases, one, json_bodies(), st.sampled_from(JSON_PATHS))

    def multipart(self, cases: int) -> None:
        """Forms that are none."""

        def one(form: tuple[bytes, bytes], path: str) -> None:
            given_type, body = form
            self._post("multipart", repr((given_type, body[:200])), path, body, {b"Content-Type": given_type})

        self._run(cases, one, multipart_bodies(), st.sampled_from(["/localize", "/localize/batch", "/describe"]))

    def raw(self, cases: int) -> None:
        """Bytes that are nearly HTTP."""

        def one(request: bytes) -> None:
            asked = time.perf_counter()
            answer = self.exchange(request)
            self.judged("raw HTTP", request, answer, time.perf_counter() - asked)

        self._run(cases, one, raw_requests())

    def schema(self, cases: int) -> None:
        """schemathesis over /openapi.json: requests that fit the description, and others; so do the answers."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            described = schemathesis.openapi.from_url(f"{self.url}/openapi.json")
            operations = [result.ok() for result in described.get_all_operations()]
        each = max(1, round(cases / (2 * len(operations))))
        for operation in operations:
            for mode in schemathesis.GenerationMode:
                # Where nothing can be sent, nothing can be wrong.
                with contextlib.suppress(hypothesis.errors.Unsatisfiable):
                    self._run(each, self._called, operation.as_strategy(generation_mode=mode))

    def _called(self, case: Any) -> None:
        # What schemathesis makes of a binary body is text; images have methods of their own.
        asked = time.perf_counter()
        response = case.call(timeout=self._timeout_s)
        seconds = time.perf_counter() - asked
        headers = {name.lower(): ", ".join(values) for name, values in response.headers.items()}
        what = f"{case.method} {case.formatted_path}"
        self.checks.judge("OpenAPI", what, seconds, response.status_code, headers, response.content)
        case.validate_response(
            response,
            checks=[
                not_a_server_error,
                status_code_conformance,
                content_type_conformance,
                response_schema_conformance,
            ],
        )

    def _post(self, area: str, what: str, path: str, body: bytes, headers: Any) -> int:
        asked = time.perf_counter()
        response = self._client.post(path, content=body, headers=headers)
        seconds = time.perf_counter() - asked
        status = response.status_code
        self.checks.judge(area, f"{path} {what}", seconds, status, dict(response.headers), response.content)
        return status

    def judged(self, area: str, request: bytes, answer: bytes, seconds: float) -> Problem | None:
        """Judge what came back over a connection.

        Args:
            area: for the count.
            request: as it was sent.
            answer: all that came back until the server hung up; nothing, where it hung up without a word.
            seconds: until then.
        """
        status, headers, body = _parsed(answer) if answer else (0, {}, b"")
        if not answer or request.startswith(b"HEAD"):  # there is nothing to judge but the time
            assert not seconds >= self._timeout_s, f"nothing for {seconds:.1f} s after {request[:300]!r}"
            self.checks.answers[area, status] += 1
            return None
        return self.checks.judge(area, repr(request[:400]), seconds, status, headers, body)

    def exchange(self, request: bytes) -> bytes:
        """Send bytes over a connection of their own; returns all that comes back until the server hangs up."""
        answer = b""
        with socket.create_connection(self._address, timeout=self._timeout_s) as connection:
            # The server may refuse, and close, before it has read all.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(request)
            with contextlib.suppress(ConnectionResetError):
                while piece := connection.recv(65536):
                    answer += piece
        return answer

    def _run(self, cases: int, one: Callable[..., None], *strategies: st.SearchStrategy[Any]) -> None:
        """Have Hypothesis make so many cases."""
        configured = settings(
            max_examples=cases,
            deadline=None,
            database=None,
            derandomize=self._seed is None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
            verbosity=Verbosity.quiet,
        )
        test = configured(given(*strategies)(one))
        if self._seed is not None:
            test = hypothesis.seed(self._seed)(test)
        test()


def _parsed(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the last answer that came; before it there may be a 100."""
    head, _, body = answer.partition(b"\r\n\r\n")
    while head.startswith(b"HTTP/1.1 100"):
        head, _, body = body.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    if "content-length" in headers:
        body = body[: int(headers["content-length"])]
    return int(lines[0].split(" ")[1]), headers, body
