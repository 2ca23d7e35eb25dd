"""Codes: one table for both interfaces."""

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status

from retrieval.errors import DeviceError, ImageError
from service.answer import FieldProblem
from service.grpc.calls import grpc_code, server_fault, status_of, status_of_problem
from service.problems import STATUS_OF_CODE, RequestError, job_problem, problem_of
from service.serving.admission import RejectedError

CODE = grpc.StatusCode

# As docs/reference/grpc.md says.
EXPECTED = {
    400: {CODE.INVALID_ARGUMENT},
    401: {CODE.UNAUTHENTICATED},
    403: {CODE.PERMISSION_DENIED},
    404: {CODE.NOT_FOUND},
    405: {CODE.UNIMPLEMENTED},
    408: {CODE.DEADLINE_EXCEEDED},
    409: {CODE.ABORTED, CODE.ALREADY_EXISTS, CODE.FAILED_PRECONDITION},
    412: {CODE.FAILED_PRECONDITION},
    413: {CODE.RESOURCE_EXHAUSTED},
    415: {CODE.INVALID_ARGUMENT},
    422: {CODE.INVALID_ARGUMENT},
    429: {CODE.RESOURCE_EXHAUSTED},
    431: {CODE.RESOURCE_EXHAUSTED},
    500: {CODE.INTERNAL},
    503: {CODE.UNAVAILABLE},
    504: {CODE.DEADLINE_EXCEEDED},
    507: {CODE.RESOURCE_EXHAUSTED},
}


def unpacked(status: Status, kind: type[Message]) -> Message | None:
    message = kind()
    return next((message for detail in status.details if detail.Unpack(message)), None)


@pytest.mark.parametrize("code", [*STATUS_OF_CODE, "internal_error", "a_code_that_nobody_knows"])
def test_every_code_of_http_has_one_of_grpc(code: str) -> None:
    http_status = STATUS_OF_CODE.get(code, 500)
    assert grpc_code(code) in EXPECTED[http_status]
    status = status_of(RequestError("it is wrong", code=code), "r-1")
    problem = problem_of(RequestError("it is wrong", code=code), "r-1")
    assert (status.code, status.message) == (grpc_code(code).value[0], problem.detail)
    info = unpacked(status, ErrorInfo)
    assert isinstance(info, ErrorInfo)
    assert (info.reason, info.domain) == (code.upper(), "sightfix")
    request = unpacked(status, RequestInfo)
    assert isinstance(request, RequestInfo)
    assert request.request_id == "r-1"
    # 429 and 503 say when to come again, the others do not.
    assert (unpacked(status, RetryInfo) is not None) == (http_status in (429, 503))


def test_what_http_rounds_up_to_seconds_is_exact() -> None:
    retry = unpacked(status_of(RejectedError("8 photos are waiting already", 0.1204, reason="queue"), "r"), RetryInfo)
    assert isinstance(retry, RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == 121


def test_wrong_fields_are_violations_by_path() -> None:
    errors = [FieldProblem(pointer="/geo_prior/lat", message="is too large")]
    bad = unpacked(status_of(RequestError("no", code="validation_error", errors=errors), "r"), BadRequest)
    assert isinstance(bad, BadRequest)
    assert [(violation.field, violation.description) for violation in bad.field_violations] == [
        ("geo_prior.lat", "is too large")
    ]


def test_long_messages_fit_into_metadata() -> None:
    errors = [FieldProblem(pointer="/" + "x" * 5000, message="é" * 5000)] * 100
    status = status_of(RequestError("é" * 10_000, code="validation_error", errors=errors), "r")
    assert len(status.message) == 800
    assert len(status_of(RequestError("é" * 10_000), "r").SerializeToString()) < 8192 / 3
    bad = unpacked(status, BadRequest)
    assert isinstance(bad, BadRequest)
    assert len(bad.field_violations) == 10


def test_errors_of_other_floors_and_of_jobs() -> None:
    assert status_of(ImageError("no"), "r").code == CODE.INVALID_ARGUMENT.value[0]
    assert status_of(DeviceError("out of memory"), "r").code == CODE.INTERNAL.value[0]
    kept = status_of_problem(job_problem("job-1", "source_not_found", "It is gone."))
    assert (kept.code, kept.message) == (CODE.INVALID_ARGUMENT.value[0], "It is gone.")
    assert unpacked(kept, RequestInfo) is None


def test_a_bug_tells_nothing() -> None:
    assert status_of(server_fault(), "r").message == "the server failed on this request; its log says why."
