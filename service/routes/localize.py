"""POST /localize: one photo in, matches and a fix out."""

from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.responses import Response

from retrieval.answer import LocalizeAnswer, Problem, TimingsAnswer
from service import geojson
from service.live_localizer import LiveLocalizer
from service.localize_request import IMAGE_MEDIA_TYPES, LocalizeBody, LocalizeParameters, read_localize_request
from service.presence import while_present
from service.problems import MEDIA_TYPE, request_id_of
from service.urgency import URGENCY_PARAMETERS, urgency_of

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

GEO_PRIOR_PARAMETER: Final[dict[str, Any]] = {
    "name": "geo_prior",
    "in": "query",
    # No example value: the documentation page would send it along with every trial.
    "description": "Circle in which the answer must lie: lat,lon,radius_m, such as 55.6983,13.1951,500",
    "schema": {"type": "string"},
}
_PRIOR_EXAMPLE: Final = {"lat": 55.6983, "lon": 13.1951, "radius_m": 500}


def add_localize_routes(app: FastAPI, live: LiveLocalizer) -> None:
    """Add POST /localize, also as /v1/localize."""

    async def localize(request: Request) -> Response:
        urgency = urgency_of(request, live)
        live.check_room(urgency.lane, urgency.deadline)
        parsed = await read_localize_request(request, live.limits, live.in_decoder)
        work = live.localize(
            parsed.image, parsed.options, request_id_of(request), lane=urgency.lane, deadline=urgency.deadline
        )
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


def answer_response(request: Request, answer: LocalizeAnswer) -> Response:
    """An answer as JSON, or as GeoJSON for who asks for it."""
    headers = {"X-Request-Id": answer.request_id, "Server-Timing": server_timing(answer.timings_ms)}
    if geojson.MEDIA_TYPE in request.headers.get("accept", ""):
        return Response(geojson.text(answer), media_type=geojson.MEDIA_TYPE, headers=headers)
    return Response(answer.model_dump_json(), media_type="application/json", headers=headers)


def server_timing(timings: TimingsAnswer) -> str:
    """The `Server-Timing` header (W3C): stages in milliseconds."""
    return ", ".join(f"{name};dur={value:.1f}" for name, value in timings.model_dump().items())


def problem_responses() -> dict[int | str, dict[str, Any]]:
    """What the API's description says about errors."""
    return {
        status: {"model": Problem, "description": text, "content": {MEDIA_TYPE: {}}}
        for status, text in PROBLEMS.items()
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
            GEO_PRIOR_PARAMETER,
            {"name": "min_score", "in": "query", "schema": properties["min_score"]},
            *URGENCY_PARAMETERS,
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
