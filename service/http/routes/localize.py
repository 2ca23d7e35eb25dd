"""POST /localize and POST /localize/batch: photos in, matches and fixes out, as JSON or GeoJSON (RFC 7946)."""

import asyncio
import json
import math
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile

from retrieval.errors import SightfixError
from retrieval.geo import Position, from_local_metres
from retrieval.images import check_byte_count
from retrieval.localize.localizer import LocalizeOptions, Located
from service.answer import FixAnswer, LocalizeAnswer, Problem, TimingsAnswer, answer_of
from service.http.requests import (
    IMAGE_MEDIA_TYPES,
    JSON,
    MULTIPART,
    URGENCY_PARAMETERS,
    ImageBody,
    LocalizeBody,
    LocalizeParameters,
    decode_base64,
    json_schema,
    media_type_of,
    open_form,
    options_of,
    parse_json,
    read_localize_request,
    text_fields,
    urgency_of,
    while_present,
)
from service.problems import MEDIA_TYPE, RequestError, problem_of, request_id_of
from service.serving.admission import Urgency
from service.serving.localization import LocalizationService

GEOJSON_TYPE: Final = "application/geo+json"
_CORNERS: Final = 64
MAX_PHOTOS: Final = 32

PROBLEMS: Final[dict[int | str, str]] = {
    400: "Malformed JSON, multipart or base64",
    408: "The request did not arrive in time",
    413: "Too many bytes or pixels",
    415: "Not a content type or image format we accept",
    422: "An undecodable image, or a parameter outside its range",
    429: "Too many photos are waiting; see Retry-After",
    503: "Not ready, or shutting down; see Retry-After",
    504: "The deadline passed",
}

_PROPERTIES: Final = LocalizeParameters.model_json_schema()["properties"]

PHOTO_PARAMETERS: Final[list[dict[str, Any]]] = [
    {"name": "top_k", "in": "query", "schema": _PROPERTIES["top_k"]},
    {
        "name": "geo_prior",
        "in": "query",
        # No example value: the documentation page would send it along with every trial.
        "description": "Circle in which the answer must lie: lat,lon,radius_m, such as 55.6983,13.1951,500",
        "schema": {"type": "string"},
    },
    {"name": "min_score", "in": "query", "schema": _PROPERTIES["min_score"]},
    *URGENCY_PARAMETERS,
]

_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}

# A photo as raw bytes.
PHOTO_CONTENT: Final[dict[str, Any]] = dict.fromkeys(IMAGE_MEDIA_TYPES, _BINARY)

_PRIOR_EXAMPLE: Final = {"lat": 55.6983, "lon": 13.1951, "radius_m": 500}


def add_localize_routes(app: FastAPI, localization: LocalizationService) -> None:
    """Add POST /localize, also as /v1/localize."""

    async def localize(request: Request) -> Response:
        urgency = urgency_of(request, localization)
        localization.check_room(urgency)
        parsed = await read_localize_request(request, localization.limits, localization.in_decoder)
        work = localization.localize(parsed.image, parsed.options, request_id_of(request), urgency)
        return answer_response(request, await while_present(request, work))

    for path in ("/localize", "/v1/localize"):
        app.add_api_route(
            path,
            localize,
            methods=["POST"],
            summary="Localize a photo",
            description="The photo as raw bytes (parameters in the query string), as multipart, or as base64 in JSON. "
            "With `Accept: application/geo+json` the answer is GeoJSON.",
            response_model=LocalizeAnswer,
            responses=problem_responses(),
            openapi_extra=_localize_openapi(),
            operation_id=path.strip("/").replace("/", "_"),
        )


def answer_response(request: Request, located: Located) -> Response:
    """The answer as JSON, or as GeoJSON if the client accepts that."""
    answer = answer_of(located)
    headers = {"X-Request-Id": answer.request_id, "Server-Timing": server_timing(answer.timings_ms)}
    if GEOJSON_TYPE in request.headers.get("accept", ""):
        return Response(geojson_text(answer), media_type=GEOJSON_TYPE, headers=headers)
    return Response(answer.model_dump_json(), media_type="application/json", headers=headers)


def server_timing(timings: TimingsAnswer) -> str:
    """The `Server-Timing` header (W3C): stages in milliseconds."""
    return ", ".join(f"{name};dur={value:.1f}" for name, value in timings.model_dump().items())


def problem_responses() -> dict[int | str, dict[str, Any]]:
    """The errors in the API's description."""
    return {
        status: {"model": Problem, "description": text, "content": {MEDIA_TYPE: {}}}
        for status, text in PROBLEMS.items()
    }


def _localize_openapi() -> dict[str, Any]:
    """What FastAPI cannot see because the request is read by hand: the three bodies and the query parameters."""
    example = {"image": {"content": "/9j/4AAQSkZJRg..."}, "top_k": 5, "geo_prior": _PRIOR_EXAMPLE}
    return {
        "parameters": PHOTO_PARAMETERS,
        "requestBody": {
            "required": True,
            "content": {
                **PHOTO_CONTENT,
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["image"],
                        "properties": {
                            "image": {"type": "string", "format": "binary"},
                            "top_k": _PROPERTIES["top_k"],
                            "geo_prior": {"type": "string", "description": "lat,lon,radius_m"},
                            "min_score": _PROPERTIES["min_score"],
                        },
                    }
                },
                "application/json": {"schema": json_schema(LocalizeBody), "example": example},
            },
        },
    }


class BatchBody(LocalizeParameters):
    """Several photos as JSON, with the same parameters for all."""

    images: list[ImageBody] = Field(min_length=1, max_length=MAX_PHOTOS)


class BatchItem(BaseModel):
    """The outcome of one photo: an answer, or a problem."""

    status: int = Field(description="The HTTP status that the photo alone would have got", examples=[200])
    answer: LocalizeAnswer | None = None
    problem: Problem | None = None


class BatchAnswer(BaseModel):
    """One item for each photo, in order."""

    request_id: str
    items: list[BatchItem]


def add_batch_routes(app: FastAPI, localization: LocalizationService) -> None:
    """Add POST /localize/batch, also as /v1/localize/batch."""

    async def localize_batch(request: Request) -> BatchAnswer:
        urgency = urgency_of(request, localization, default_lane="bulk")
        localization.check_room(urgency)
        photos, options = await _read(request, localization)
        request_id = request_id_of(request)

        async def all_of_them() -> list[BatchItem]:
            return await asyncio.gather(
                *(
                    _one(localization, photo, options, f"{request_id}-{number}", urgency)
                    for number, photo in enumerate(photos)
                )
            )

        return BatchAnswer(request_id=request_id, items=await while_present(request, all_of_them()))

    for path in ("/localize/batch", "/v1/localize/batch"):
        app.add_api_route(
            path,
            localize_batch,
            methods=["POST"],
            summary=f"Localize up to {MAX_PHOTOS} photos",
            description="As multipart (parts named `image`) or as JSON. Goes to the bulk lane unless `X-Lane` says "
            "otherwise. The answer is 200 even when some photos fail: each item has a status of its own.",
            responses=problem_responses(),
            openapi_extra={
                "parameters": URGENCY_PARAMETERS,
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {"schema": json_schema(BatchBody)},
                        "multipart/form-data": {
                            "schema": {
                                "type": "object",
                                "required": ["image"],
                                "properties": {
                                    "image": {"type": "array", "items": {"type": "string", "format": "binary"}}
                                },
                            }
                        },
                    },
                },
            },
            operation_id=path.strip("/").replace("/", "_"),
        )


async def _one(
    localization: LocalizationService,
    photo: "bytes | SightfixError",
    options: LocalizeOptions,
    request_id: str,
    urgency: Urgency,
) -> BatchItem:
    try:
        if isinstance(photo, SightfixError):
            raise photo
        check_byte_count(len(photo), localization.limits)
        located = await localization.localize(photo, options, request_id, urgency)
    except SightfixError as error:
        problem = problem_of(error, request_id)
        return BatchItem(status=problem.status, problem=problem)
    return BatchItem(status=200, answer=answer_of(located))


async def _read(
    request: Request, localization: LocalizationService
) -> "tuple[list[bytes | SightfixError], LocalizeOptions]":
    if media_type_of(request, (MULTIPART, JSON)) == JSON:
        body = await request.body()
        return await localization.in_decoder(lambda: _read_json(body))
    async with open_form(request, max_files=MAX_PHOTOS) as form:
        files = [part for name, part in form.multi_items() if name == "image" and isinstance(part, UploadFile)]
        if not files:
            raise RequestError(
                "there is no file part named image",
                code="validation_error",
                remedy="Send each photo as a file: curl -F image=@a.jpg -F image=@b.jpg",
            )
        options = options_of({**request.query_params, **text_fields(form)})
        return [await file.read() for file in files], options


def _read_json(body: bytes) -> "tuple[list[bytes | SightfixError], LocalizeOptions]":
    parsed = parse_json(BatchBody, body)
    return [_decoded(number, image) for number, image in enumerate(parsed.images)], parsed.options()


def _decoded(number: int, image: ImageBody) -> "bytes | SightfixError":
    try:
        return decode_base64(image.content, f"/images/{number}/content")
    except RequestError as error:
        return error


def geojson(answer: LocalizeAnswer) -> dict[str, Any]:
    """A FeatureCollection: the fix as a point, its radius as a polygon, and every match as a point.

    The rest of the answer (status, model, index, timings) is a foreign member of the collection, `sightfix`.
    """
    rest = answer.model_dump(mode="json", exclude={"fix", "matches"})
    features = [] if answer.fix is None else [_fix_point(answer.fix), *_circle(answer.fix)]
    for match in answer.matches:
        properties = match.model_dump(mode="json", exclude={"lat", "lon"})
        features.append(_feature("match", {"type": "Point", "coordinates": [match.lon, match.lat]}, properties))
    return {"type": "FeatureCollection", "features": features, "sightfix": rest}


def geojson_text(answer: LocalizeAnswer) -> str:
    """`geojson` as JSON text."""
    return json.dumps(geojson(answer), allow_nan=False)


def _fix_point(fix: FixAnswer) -> dict[str, Any]:
    properties = fix.model_dump(mode="json", exclude={"lat", "lon"})
    return _feature("fix", {"type": "Point", "coordinates": [fix.lon, fix.lat]}, properties)


def _circle(fix: FixAnswer) -> list[dict[str, Any]]:
    """The circle that holds the truth 68 % of the time; none around a pole, nor above 1000 km."""
    centre = Position(fix.lat, fix.lon)
    if not 0 < fix.radius_m < 1e6 or abs(fix.lat) + fix.radius_m / 110_000 > 89.9:
        return []
    # Counter-clockwise, as RFC 7946 requires of outer rings, and closed.
    angles = [math.tau * corner / _CORNERS for corner in range(_CORNERS)]
    corners = [
        from_local_metres(centre, fix.radius_m * math.cos(angle), fix.radius_m * math.sin(angle)) for angle in angles
    ]
    # Longitudes beyond 180 rather than a ring that runs around the world.
    ring = [[fix.lon + math.remainder(corner.lon - fix.lon, 360.0), corner.lat] for corner in corners]
    return [_feature("radius", {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}, {"radius_m": fix.radius_m})]


def _feature(kind: str, geometry: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": {"kind": kind, **properties}}
