"""Errors as RFC 9457 problem details with a stable `code`; the server sends no other error body."""

import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from retrieval.errors import SightfixError
from retrieval.localize.localizer import new_request_id
from service.answer import FieldProblem, Problem

_log = logging.getLogger("sightfix.service")
MEDIA_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:sightfix:problem:"

# Codes that are not here are the server's own failure: 500.
STATUS_OF_CODE: Final[Mapping[str, int]] = {
    "malformed_request": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "jobs_disabled": 403,
    "tracks_disabled": 403,
    "reference_not_found": 404,
    "index_not_found": 404,
    "not_found": 404,
    "job_not_found": 404,
    "version_not_found": 404,
    "track_not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "frame_out_of_order": 409,
    "idempotency_conflict": 409,
    "job_not_cancellable": 409,
    "model_mismatch": 409,
    "reference_id_conflict": 409,
    "superseded": 409,
    "version_conflict": 409,
    "body_too_large": 413,
    "too_many_pixels": 413,
    "unsupported_media_type": 415,
    "empty_body": 422,
    "image_undecodable": 422,
    "not_localized": 422,
    "validation_error": 422,
    "source_not_allowed": 422,
    "source_not_found": 422,
    "source_unavailable": 422,
    "reference_data": 422,
    "too_many_unreadable": 422,
    "index_would_be_empty": 422,
    "gate_failed": 422,
    "queue_full": 429,
    "too_many_tracks": 429,
    "track_busy": 429,
    "headers_too_large": 431,
    "not_ready": 503,
    "draining": 503,
    "store_unavailable": 503,
    "deadline_exceeded": 504,
    "storage": 507,
}

MAX_NAMED_ERRORS: Final = 100
_RETRY_AFTER_S: Final[Mapping[int, int]] = {429: 1, 503: 2}


class RequestError(SightfixError):
    """A request that cannot be answered.

    Args:
        errors: the fields that are wrong.
        retry_after_s: when it is worth trying again, seconds; a default for the status if None.
    """

    default_code = "malformed_request"

    def __init__(
        self,
        what: str,
        *,
        code: str = "malformed_request",
        remedy: str | None = None,
        errors: Sequence[FieldProblem] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(what, remedy=remedy, code=code)
        self.errors = errors
        self.retry_after_s = retry_after_s


def request_id_of(request: Request) -> str:
    """The id of a request: the client's own `X-Request-Id` if it is a plain one, else a random one."""
    known: str | None = getattr(request.state, "request_id", None)
    if known is None:
        known = plain_request_id(request.headers.get("x-request-id", ""))
        request.state.request_id = known
    return known


def plain_request_id(given: str) -> str:
    """The id that a client gave if it is a plain one, else a random one."""
    plain = 0 < len(given) <= 128 and all(sign.isalnum() or sign in "-_." for sign in given) and given.isascii()
    return given if plain else new_request_id()


def validation_problem(error: ValidationError) -> RequestError:
    """A pydantic error as a request error that names each wrong field by JSON pointer, unless there are too many."""
    count = error.error_count()
    if count > MAX_NAMED_ERRORS:
        # Each takes a tenth of a millisecond to format.
        return RequestError(
            f"{count} fields are wrong",
            code="validation_error",
            remedy="Look the request up in the description at /docs",
        )
    return _fields_problem(
        [(item["loc"], item["msg"]) for item in error.errors(include_url=False, include_input=False)]
    )


def _fields_problem(wrong: Sequence[tuple[Sequence[int | str], str]]) -> RequestError:
    errors = [FieldProblem(pointer="/" + "/".join(map(str, place)), message=message) for place, message in wrong]
    first = errors[0]
    return RequestError(f"{first.pointer}: {first.message}", code="validation_error", errors=errors)


def job_problem(job_id: str, code: str, detail: str) -> Problem:
    """An error that ended a job.

    Args:
        job_id: of the job.
        code: stable and machine-readable.
        detail: what, where and the remedy, in sentences.
    """
    status = STATUS_OF_CODE.get(code, 500)
    return Problem(
        type=f"{TYPE_PREFIX}{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        instance=f"urn:job:{job_id}",
        code=code,
    )


def problem_of(error: SightfixError, request_id: str) -> Problem:
    """An error as problem details."""
    retry_after_s = error.retry_after_s if isinstance(error, RequestError) else None
    return _problem(
        STATUS_OF_CODE.get(error.code, 500),
        error.code,
        _client_text(error),
        request_id,
        errors=error.errors if isinstance(error, RequestError) else None,
        retry_after_s=retry_after_s,
    )


def _client_text(error: SightfixError) -> str:
    """The error without the server's own paths, which only its log has."""
    if error.where is None or not error.where.startswith("/"):
        return str(error)
    return f"{error.what}. {error.remedy}." if error.remedy else f"{error.what}."


def problem_response(request: Request, error: SightfixError) -> Response:
    """An error as a response."""
    return _response(request, problem_of(error, request_id_of(request)))


def install_problem_handlers(app: FastAPI, before_refusal: Callable[[], Awaitable[None]]) -> None:
    """Make every error of the app a problem.

    Args:
        app: to install them in.
        before_refusal: is awaited before a 429 is answered.
    """

    async def on_sightfix_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, SightfixError)
        problem = problem_of(error, request_id_of(request))
        if problem.status == 500:
            _log.error("request %s failed: %s", request_id_of(request), error)
        if problem.status == HTTPStatus.TOO_MANY_REQUESTS:
            await before_refusal()
        return _response(request, problem)

    async def on_wrong_parameters(request: Request, error: Exception) -> Response:
        """FastAPI's own check of parameters and bodies; its own answer would repeat the input, and fail on NaN."""
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return problem_response(request, RequestError("the body is not JSON", remedy="Check the request body"))
        # The first part of a location is where FastAPI looked: body, query, path or header.
        return problem_response(
            request, _fields_problem([(item["loc"][1:] or item["loc"], item["msg"]) for item in error.errors()])
        )

    async def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "malformed_request")
        problem = _problem(error.status_code, code, str(error.detail), request_id_of(request))
        return _response(request, problem, error.headers)

    async def on_bug(request: Request, error: Exception) -> Response:
        _log.error("request %s failed", request_id_of(request), exc_info=error)
        detail = "The server failed on this request; its log says why."
        return _response(request, _problem(500, "internal_error", detail, request_id_of(request)))

    async def on_client_gone(request: Request, error: Exception) -> Response:
        detail = "The client left before it was answered."
        return _response(request, _problem(400, "malformed_request", detail, request_id_of(request)))

    app.add_exception_handler(SightfixError, on_sightfix_error)
    app.add_exception_handler(RequestValidationError, on_wrong_parameters)
    app.add_exception_handler(ClientDisconnect, on_client_gone)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(Exception, on_bug)


def _problem(
    status: int,
    code: str,
    detail: str,
    request_id: str,
    *,
    errors: Sequence[FieldProblem] | None = None,
    retry_after_s: float | None = None,
) -> Problem:
    extra: dict[str, Any] = {}
    if status in _RETRY_AFTER_S:
        extra["retry_after_s"] = math.ceil(retry_after_s) if retry_after_s else _RETRY_AFTER_S[status]
    return Problem(
        type=f"{TYPE_PREFIX}{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail.encode("utf-8", "backslashreplace").decode(),  # half a surrogate pair is no UTF-8
        instance=f"urn:request:{request_id}",
        code=code,
        errors=list(errors) if errors else None,
        **extra,
    )


def _response(request: Request, problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    all_headers = {**(headers or {}), "X-Request-Id": request_id_of(request)}
    retry_after = (problem.model_extra or {}).get("retry_after_s")
    if retry_after is not None:
        all_headers["Retry-After"] = str(retry_after)
    return Response(problem.model_dump_json(exclude_none=True), problem.status, all_headers, MEDIA_TYPE)
