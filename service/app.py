"""The HTTP interface: localize, health, and what is being served."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final, Literal

from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse, Response
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, Field

from retrieval.answer import IndexAnswer, LocalizeAnswer, ModelAnswer, Problem
from retrieval.images import ImageLimits
from retrieval.place_index import Bounds
from retrieval.version import __version__
from service.body_limit import BodyLimit
from service.live_localizer import LiveLocalizer, State
from service.localize_request import (
    IMAGE_MEDIA_TYPES,
    LocalizeBody,
    LocalizeParameters,
    read_localize_request,
)
from service.problems import MEDIA_TYPE, RequestError, install_problem_handlers, request_id_of
from service.thumbnails import THUMBNAIL_SIDE, make_thumbnail

_DESCRIPTION: Final = """Where was this photo taken?

Send a photo to `POST /localize`; get the geo-tagged reference photos most like it, and one position fix.
Errors are RFC 9457 problem details with a stable `code`."""


class LivenessAnswer(BaseModel):
    """The process answers."""

    status: Literal["alive"] = "alive"


class ReadinessAnswer(BaseModel):
    """Whether photos can be localized."""

    state: State
    reason: str | None = None


class InfoAnswer(BaseModel):
    """What is being served."""

    sightfix_version: str
    model: ModelAnswer
    passed_over: list[str] = Field(description="Why the model does not compute on a better provider")
    index: IndexAnswer
    bounds: Bounds
    limits: dict[str, int]


def create_app(live: LiveLocalizer) -> FastAPI:
    """The application around one live localizer; loading starts with the server."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        live.start_loading()
        yield
        await asyncio.to_thread(live.stop)

    # Its documentation pages load nothing from other hosts: robots have no internet.
    app = FastAPIOffline(
        redoc_url=None, title="sightfix", version=__version__, description=_DESCRIPTION, lifespan=lifespan
    )
    app.add_middleware(BodyLimit, max_bytes=live.settings.max_body_bytes)
    install_problem_handlers(app)

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return RedirectResponse("/docs")

    _add_localize(app, live)
    _add_health(app, live)
    _add_references(app, live)
    return app


def _add_localize(app: FastAPI, live: LiveLocalizer) -> None:
    limits = ImageLimits(live.settings.max_image_bytes, live.settings.max_pixels)

    async def localize(request: Request) -> Response:
        live.require()
        parsed = await read_localize_request(request, limits)
        answer = await live.localize(parsed.image, parsed.options, request_id_of(request))
        return Response(
            answer.model_dump_json(),
            media_type="application/json",
            headers={"X-Request-Id": answer.request_id},
        )

    for path in ("/localize", "/v1/localize"):
        app.add_api_route(
            path,
            localize,
            methods=["POST"],
            summary="Localize a photo",
            description="The photo as raw bytes (parameters in the query string), as multipart, or as base64 in JSON.",
            response_model=LocalizeAnswer,
            responses={
                **{
                    status: {"model": Problem, "description": text, "content": {MEDIA_TYPE: {}}}
                    for status, text in _PROBLEMS.items()
                }
            },
            openapi_extra=_localize_openapi(),
            operation_id=path.strip("/").replace("/", "_"),
        )


_PRIOR_EXAMPLE: Final = {"lat": 55.6983, "lon": 13.1951, "radius_m": 500}

_PROBLEMS: Final[dict[int | str, str]] = {
    400: "Malformed JSON, multipart or base64",
    413: "Too many bytes or pixels",
    415: "Not a content type or image format we accept",
    422: "An undecodable image, or a parameter outside its range",
    429: "Too many photos are waiting; see Retry-After",
    503: "Not ready; see Retry-After",
}


def _localize_openapi() -> dict[str, Any]:
    """What FastAPI cannot see because the request is read by hand: the three bodies and the query parameters."""
    body = LocalizeBody.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = body.pop("$defs", {})
    properties = LocalizeParameters.model_json_schema()["properties"]
    binary = {"schema": {"type": "string", "format": "binary"}}
    example = {"image": {"content": "/9j/4AAQSkZJRg..."}, "top_k": 5, "geo_prior": _PRIOR_EXAMPLE}
    return {
        "parameters": [
            {"name": "top_k", "in": "query", "schema": properties["top_k"]},
            {
                "name": "geo_prior",
                "in": "query",
                # No example value: the documentation page would send it along with every trial.
                "description": "Circle in which the answer must lie: lat,lon,radius_m, such as 55.6983,13.1951,500",
                "schema": {"type": "string"},
            },
            {"name": "min_score", "in": "query", "schema": properties["min_score"]},
        ],
        "requestBody": {
            "required": True,
            "content": {
                **dict.fromkeys(IMAGE_MEDIA_TYPES, binary),
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["image"],
                        "properties": {
                            "image": {"type": "string", "format": "binary"},
                            "top_k": properties["top_k"],
                            "geo_prior": {"type": "string", "description": "lat,lon,radius_m"},
                            "min_score": properties["min_score"],
                        },
                    }
                },
                "application/json": {"schema": _inlined(body, definitions), "example": example},
            },
        },
    }


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """A JSON schema with its local references replaced by what they refer to."""
    if isinstance(schema, list):
        return [_inlined(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(value, definitions) for key, value in schema.items()}


def _add_health(app: FastAPI, live: LiveLocalizer) -> None:
    @app.get("/livez", summary="Does the process answer?")
    async def livez() -> LivenessAnswer:
        return LivenessAnswer()

    @app.get("/readyz", summary="Can photos be localized?", responses={503: {"model": ReadinessAnswer}})
    async def readyz(response: Response) -> ReadinessAnswer:
        readiness = live.readiness
        if readiness.state != "ready":
            response.status_code = 503
            response.headers["Retry-After"] = "2"
        return ReadinessAnswer(state=readiness.state, reason=readiness.reason)

    @app.get("/info", summary="What is being served?", responses={503: {"model": Problem}})
    async def info() -> InfoAnswer:
        localizer = live.require()
        return InfoAnswer(
            sightfix_version=__version__,
            model=localizer.model_answer,
            passed_over=list(localizer.describer.passed_over),
            index=localizer.index_answer,
            bounds=localizer.place_index.manifest.bounds,
            limits={
                "max_image_bytes": live.settings.max_image_bytes,
                "max_pixels": live.settings.max_pixels,
                "max_waiting": live.settings.max_waiting,
            },
        )


def _add_references(app: FastAPI, live: LiveLocalizer) -> None:
    @app.get(
        "/references/{reference_id:path}/image",
        summary="A small version of a reference photo",
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}}, 404: {"model": Problem}, 503: {"model": Problem}},
    )
    async def reference_image(reference_id: str, request: Request) -> Response:
        index = live.require().place_index
        path = index.references([index.row_of(reference_id)])[0].path
        tag = f'"{index.version}-{THUMBNAIL_SIDE}"'
        headers = {"ETag": tag, "Cache-Control": "private, max-age=3600"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        if not path.is_file():
            raise RequestError(
                f"the photo of reference {reference_id!r} is no longer where it was indexed",
                code="reference_not_found",
                remedy="Put the photos back, or index them again from where they are now",
            )
        return Response(await live.in_decoder(make_thumbnail, path), media_type="image/jpeg", headers=headers)
