"""From the bytes of a request to what is asked, or a problem that names what is wrong."""

from typing import Any, Final, get_args

from fastapi import Request
from pydantic import ValidationError

from retrieval.answer import FieldProblem
from service.jobs.model import (
    JOB_REQUEST,
    AppendJobRequest,
    FullJobRequest,
    JobKind,
    JobRequest,
    JobState,
    RemoveJobRequest,
)
from service.problems import MAX_NAMED_ERRORS, RequestError, validation_problem

_MAX_KEY: Final = 255
_MAX_ERRORS: Final = 20
_MAX_NUMBER_DIGITS: Final = 18

_KEYS: Final[dict[str, list[str]]] = {
    "full": list(FullJobRequest.model_fields),
    "append": list(AppendJobRequest.model_fields),
    "remove": list(RemoveJobRequest.model_fields),
}


async def parse_job_request(request: Request, max_bytes: int) -> JobRequest:
    """Read the body of ``POST /jobs``.

    Raises:
        RequestError: another content type (415), too many bytes (413), no JSON (400), an unknown key or a value outside
            its range (422).
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise RequestError(
            f"content type {media_type!r} is not accepted" if media_type else "the request has no content type",
            code="unsupported_media_type",
            remedy="Send application/json",
        )
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > max_bytes:
            raise RequestError(
                f"the request body has more than {max_bytes} bytes",
                code="body_too_large",
                remedy="Name fewer references in one job",
            )
    try:
        return JOB_REQUEST.validate_json(bytes(body))
    except ValidationError as error:
        raise _problem_of(error) from error


def parse_key(key: str | None) -> str | None:
    """Check an Idempotency-Key.

    Raises:
        RequestError: it is empty, too long, or not printable ASCII (``validation_error``).
    """
    if key is not None and not (0 < len(key) <= _MAX_KEY and key.isascii() and key.isprintable()):
        raise RequestError(
            f"the Idempotency-Key is not 1 to {_MAX_KEY} printable ASCII characters",
            code="validation_error",
            remedy="Send a random UUID",
        )
    return key


def parse_states(text: str | None) -> tuple[JobState, ...]:
    """States divided by commas.

    Raises:
        RequestError: there is no such state (``validation_error``).
    """
    known: dict[str, JobState] = {name: name for name in get_args(JobState)}
    given = [] if text is None else text.split(",")
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        raise RequestError(
            f"there is no state {unknown!r}", code="validation_error", remedy=f"Choose among {', '.join(known)}"
        )
    return tuple(dict.fromkeys(known[name] for name in given))


def page_number(token: str | None) -> int | None:
    """The place that a page token stands for.

    Raises:
        RequestError: no page gave this token (``validation_error``).
    """
    if token is None:
        return None
    if not (token.isascii() and token.isdigit() and len(token) <= _MAX_NUMBER_DIGITS):
        raise RequestError(
            "the page_token is none that a page gave", code="validation_error", remedy="Leave it out for the first page"
        )
    return int(token)


def _problem_of(error: ValidationError) -> RequestError:
    if error.error_count() > MAX_NAMED_ERRORS:
        return validation_problem(error)
    items = error.errors(include_url=False, include_input=False)
    if items[0]["type"] == "json_invalid":
        return RequestError(f"the body is not JSON ({items[0]['msg']})", remedy="Check the request body")
    errors = [_field_problem(item) for item in items[:_MAX_ERRORS]]
    return RequestError(f"{errors[0].pointer}: {errors[0].message}", code="validation_error", errors=errors)


def _field_problem(item: Any) -> FieldProblem:
    """One complaint; pydantic puts the kind before the place."""
    kind, *place = [str(part) for part in item["loc"]] or [""]
    if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return FieldProblem(pointer="/kind", message=f"Choose among {', '.join(get_args(JobKind))}")
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        message = f"There is no such key in a job of kind {kind}; its keys are {', '.join(_KEYS[kind])}"
    return FieldProblem(pointer="/" + "/".join(place), message=message)
