"""Jobs over HTTP, below /jobs and /v1/jobs."""

import asyncio
from collections import Counter
from typing import Any, Final, TypeVar, get_args

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.answer import FieldProblem, Problem
from service.http.requests import JSON, media_type_of
from service.jobs.model import (
    FINISHED,
    JOB_REQUEST,
    AppendJobRequest,
    FullJobRequest,
    Job,
    JobFailurePage,
    JobKind,
    JobPage,
    JobRequest,
    JobState,
    RemoveJobRequest,
)
from service.jobs.service import JobService, page_number, parse_key
from service.problems import MAX_NAMED_ERRORS, MEDIA_TYPE, RequestError, validation_problem

_MAX_PAGE: Final = 200
_MAX_ERRORS: Final = 20

_KEYS: Final[dict[str, list[str]]] = {
    "full": list(FullJobRequest.model_fields),
    "append": list(AppendJobRequest.model_fields),
    "remove": list(RemoveJobRequest.model_fields),
}

_RETRY_AFTER: Final = {"Retry-After": "2"}

_PROBLEMS: Final[dict[int, str]] = {
    400: "Malformed JSON",
    403: "The server has no source roots",
    404: "No such job",
    409: "The Idempotency-Key was used for another request, or the job cannot be cancelled any more",
    413: "Too many bytes",
    415: "Not JSON",
    422: "An unknown key, a value outside its range, or a source outside the source roots",
    429: "Too many jobs are waiting; see Retry-After",
}


class _PageParameters(BaseModel):
    model_config = ConfigDict(extra="forbid")

    page_size: int = Field(default=50, ge=1, le=_MAX_PAGE)
    page_token: str | None = None


class _ListParameters(_PageParameters):
    state: str | None = None


_ParametersT = TypeVar("_ParametersT", bound=_PageParameters)


def add_job_routes(app: FastAPI, jobs: JobService) -> None:
    """Add the routes of jobs."""
    for prefix in ("", "/v1"):
        app.include_router(_JobRoutes(jobs).router(), prefix=prefix, tags=["jobs"])


class _JobRoutes:
    """The handlers. What waits for the disk runs in a thread."""

    def __init__(self, jobs: JobService) -> None:
        self._jobs = jobs

    def router(self) -> APIRouter:
        router = APIRouter()
        router.add_api_route(
            "/jobs",
            self.submit,
            methods=["POST"],
            status_code=202,
            response_model=Job,
            summary="Re-index photos",
            description="`full` makes an index anew, `append` adds photos, `remove` drops references. With an "
            "`Idempotency-Key` the request can be sent again: for 24 hours it gives the same job.",
            responses={
                200: {"model": Job, "description": "The job that this key gave before"},
                **_problems(*_PROBLEMS),
            },
            openapi_extra=_submit_openapi(),
        )
        router.add_api_route(
            "/jobs",
            self.page,
            response_model=JobPage,
            summary="List jobs, newest first",
            responses=_problems(422),
            openapi_extra={"parameters": [_query("state", "States, separated by commas"), *_PAGE_PARAMETERS]},
        )
        router.add_api_route(
            "/jobs/{job_id}", self.get, response_model=Job, summary="How far a job is", responses=_problems(404)
        )
        router.add_api_route(
            "/jobs/{job_id}/failures",
            self.failures,
            response_model=JobFailurePage,
            summary="Photos that a job could not index",
            responses=_problems(404, 422),
            openapi_extra={"parameters": _PAGE_PARAMETERS},
        )
        for path in ("/jobs/{job_id}/cancel", "/jobs/{job_id}:cancel"):
            router.add_api_route(
                path,
                self.cancel,
                methods=["POST"],
                status_code=202,
                response_model=Job,
                summary="Cancel a job",
                responses=_problems(404, 409),
                include_in_schema=path.endswith("/cancel"),
            )
        return router

    async def submit(self, request: Request) -> Response:
        key = parse_key(request.headers.get("idempotency-key"))
        media_type_of(request, (JSON,))
        asked = parse_job_request(await _read_body(request, self._jobs.settings.max_request_bytes))
        job, is_new = await asyncio.to_thread(self._jobs.submit, asked, key)
        location = f"{request.url.path.rstrip('/')}/{job.id}"
        return _answer(job, 202 if is_new else 200, {"Location": location, **_RETRY_AFTER})

    async def page(self, request: Request) -> Response:
        given = _parameters(_ListParameters, request)
        states = parse_states(given.state)
        page = await asyncio.to_thread(self._jobs.page, states, given.page_size, page_number(given.page_token))
        return _answer(page)

    async def get(self, job_id: str) -> Response:
        job = await asyncio.to_thread(self._jobs.get, job_id)
        return _answer(job, headers={} if job.state in FINISHED else _RETRY_AFTER)

    async def failures(self, job_id: str, request: Request) -> Response:
        given = _parameters(_PageParameters, request)
        after = page_number(given.page_token) or 0
        return _answer(await asyncio.to_thread(self._jobs.failures, job_id, given.page_size, after))

    async def cancel(self, job_id: str) -> Response:
        return _answer(await asyncio.to_thread(self._jobs.cancel, job_id), 202)


async def _read_body(request: Request, max_bytes: int) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > max_bytes:
            raise RequestError(
                f"the request body has more than {max_bytes} bytes",
                code="body_too_large",
                remedy="Name fewer references in one job",
            )
    return bytes(body)


def _answer(model: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(model.model_dump_json(), status, headers, "application/json")


def _parameters(model: type[_ParametersT], request: Request) -> _ParametersT:
    counts = Counter(name for name, _ in request.query_params.multi_items())
    twice = next((name for name, count in counts.items() if count > 1), None)
    if twice is not None:
        raise RequestError(f"the parameter {twice!r} is given twice", code="validation_error")
    try:
        return model.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise validation_problem(error) from error


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"model": Problem, "description": _PROBLEMS[status], "content": {MEDIA_TYPE: {}}} for status in statuses
    }


def _query(name: str, description: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema or {"type": "string"}}


_PAGE_PARAMETERS: Final = [
    _query("page_size", "How many", type="integer", minimum=1, maximum=_MAX_PAGE, default=50),
    _query("page_token", "The `next_page_token` of the page before"),
]


def _submit_openapi() -> dict[str, Any]:
    """What FastAPI cannot see because the body is read by hand."""
    schema = JOB_REQUEST.json_schema(ref_template="#/components/schemas/{model}")
    definitions = schema.pop("$defs", {})
    examples = {
        "full": {"value": {"kind": "full", "index": "campus", "source": "exif:campus"}},
        "append": {"value": {"kind": "append", "index": "campus", "source": "exif:campus/2026", "max_unreadable": 5}},
        "remove": {"value": {"kind": "remove", "index": "campus", "reference_ids": ["2026/05.jpg"]}},
    }
    return {
        "parameters": [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "1 to 255 printable ASCII characters",
                "schema": {"type": "string", "minLength": 1, "maxLength": 255},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"oneOf": list(definitions.values())}, "examples": examples}},
        },
    }


def add_no_job_routes(app: FastAPI) -> None:
    """Answer every request about jobs with ``jobs_disabled``, and how to enable them."""

    async def reject(request: Request) -> None:
        raise RequestError(
            "this server accepts no jobs",
            code="jobs_disabled",
            remedy="Start it with the folders that photos may come from: SIGHTFIX_SOURCE_ROOTS or --source-root",
        )

    for path in ("/jobs", "/v1/jobs", "/jobs/{rest:path}", "/v1/jobs/{rest:path}"):
        app.add_api_route(path, reject, methods=["GET", "POST"], include_in_schema=False)


def parse_job_request(body: bytes) -> JobRequest:
    """Parse the JSON of ``POST /jobs``.

    Raises:
        RequestError: no JSON (``malformed_request``), an unknown key or a value outside its range
            (``validation_error``).
    """
    try:
        return JOB_REQUEST.validate_json(body)
    except ValidationError as error:
        raise _problem_of(error) from error


def parse_states(text: str | None) -> tuple[JobState, ...]:
    """States separated by commas.

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
