"""POST /geopose: the OSCP GeoPose protocol, so that an AR client or robot can use this server as it is."""

import asyncio
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.responses import Response

from retrieval.errors import SightfixError
from retrieval.images import ImageLimits
from retrieval.localize.fix import FixStatus
from retrieval.localize.localizer import LocalizeOptions, Located
from service.answer import timings_answer
from service.geopose.localization import photo_of, pose_of
from service.geopose.protocol import MEDIA_TYPE, GeoPoseRequest, GeoPoseResponse, version_of
from service.http.requests import (
    JSON,
    URGENCY_PARAMETERS,
    json_schema,
    media_type_of,
    parse_json,
    urgency_of,
    while_present,
)
from service.http.routes.localize import problem_responses, server_timing
from service.problems import RequestError, problem_response, request_id_of
from service.serving.admission import Urgency
from service.serving.localization import LocalizationService

# The path in the protocol, and the default of its JavaScript client.
PATHS: Final = ("/geopose", "/v1/geopose", "/scrs/geopose")

_PRIORS: Final = ("geolocation", "off")

# Version 1 has one list for readings of every kind.
_VERSION_1: Final[dict[str, Any]] = {
    "title": "Version 1",
    "type": "array",
    "items": {"type": "object", "properties": {"reading": {"type": "object"}}},
}


def request_schema() -> dict[str, Any]:
    """The JSON schema of a request, of version 2 or 1; the protocol's authors have TypeScript interfaces only."""
    schema = json_schema(GeoPoseRequest)
    readings = schema["properties"]["sensorReadings"]
    schema["properties"]["sensorReadings"] = {"oneOf": [{**readings, "title": "Version 2"}, _VERSION_1]}
    return schema


def add_geopose_routes(app: FastAPI, localization: LocalizationService) -> None:
    """Add POST /geopose, and GET /geopose, which reports that it is running."""

    async def geopose(request: Request) -> Response:
        version = version_of(request.headers.get("accept", ""))
        use_prior = _uses_prior(request)
        urgency = urgency_of(request, localization)
        localization.check_room(urgency)
        media_type_of(request, (JSON, MEDIA_TYPE))
        body = await request.body()
        asked, photos = await localization.in_decoder(lambda: _read(body, localization.limits))
        options = LocalizeOptions(geo_prior=asked.prior() if use_prior else None)
        settings = localization.live.require().fix_maker.settings
        located = await while_present(request, _best_of(localization, photos, options, request_id_of(request), urgency))
        if located.status is not FixStatus.LOCATED or located.fix is None:
            return _not_localized(request, located, options)
        pose, accuracy = pose_of(located, settings)
        response = GeoPoseResponse(id=asked.id, timestamp=asked.timestamp_ms(), accuracy=accuracy, geopose=pose)
        wants_oscp = MEDIA_TYPE in request.headers.get("accept", "").lower()
        return Response(
            response.model_dump_json(),
            media_type=f"{MEDIA_TYPE}; version={version}" if wants_oscp else "application/json",
            headers={
                "X-Request-Id": located.request_id,
                "Server-Timing": server_timing(timings_answer(located.timings)),
            },
        )

    async def running() -> dict[str, str]:
        return {"status": "running"}

    for path in PATHS:
        first = path == PATHS[0]
        app.add_api_route(path, running, methods=["GET"], summary="Is there a /geopose?", include_in_schema=first)
        app.add_api_route(
            path,
            geopose,
            methods=["POST"],
            summary="Localize by the OSCP GeoPose protocol, version 1 or 2",
            response_model=GeoPoseResponse,
            responses={200: {"content": {MEDIA_TYPE: {}}}, **problem_responses()},
            openapi_extra=_geopose_openapi(),
            include_in_schema=first,
        )


def _uses_prior(request: Request) -> bool:
    unknown = next((name for name in request.query_params if name != "prior"), None)
    if unknown is not None:
        raise RequestError(f"query parameter {unknown!r} is unknown", code="validation_error", remedy="prior is known")
    prior = request.query_params.get("prior", "geolocation")
    if prior not in _PRIORS:
        raise RequestError(f"/prior {prior!r} is none", code="validation_error", remedy=f"Send {' or '.join(_PRIORS)}")
    return prior == "geolocation"


def _read(body: bytes, limits: ImageLimits) -> "tuple[GeoPoseRequest, list[bytes | SightfixError]]":
    asked = parse_json(GeoPoseRequest, body)
    return asked, [photo_of(camera, number, limits) for number, camera in asked.cameras()]


async def _best_of(
    localization: LocalizationService,
    photos: "list[bytes | SightfixError]",
    options: LocalizeOptions,
    request_id: str,
    urgency: Urgency,
) -> Located:
    """The most confident of the results for photos taken at one moment.

    Raises:
        SightfixError: none of them could be answered; the first one's reason.
    """

    async def one(photo: "bytes | SightfixError") -> "Located | SightfixError":
        if isinstance(photo, SightfixError):
            return photo
        try:
            return await localization.localize(photo, options, request_id, urgency)
        except SightfixError as error:
            return error

    outcomes = await asyncio.gather(*(one(photo) for photo in photos))
    results = [outcome for outcome in outcomes if isinstance(outcome, Located)]
    if not results:
        raise next(outcome for outcome in outcomes if isinstance(outcome, SightfixError))
    return max(results, key=_confidence)


def _confidence(located: Located) -> tuple[bool, float]:
    return located.status is FixStatus.LOCATED, located.fix.confidence if located.fix else -1.0


def _not_localized(request: Request, located: Located, options: LocalizeOptions) -> Response:
    """The protocol cannot mark a pose as uncertain, so an uncertain one is an error."""
    if located.status is FixStatus.AMBIGUOUS:
        what, remedy = "the matches support several places", "Send another photo, or look at it with POST /localize"
    elif options.geo_prior is not None:
        what = f"no reference lies within {options.geo_prior.radius_m:.0f} m of the geolocation reading"
        remedy = "Leave the reading's accuracy at 0 if it is not known, or call with ?prior=off"
    else:
        what, remedy = "no reference matches the photo", "Send another photo"
    response = problem_response(request, RequestError(what, remedy=remedy, code="not_localized"))
    response.headers["Server-Timing"] = server_timing(timings_answer(located.timings))
    return response


def _geopose_openapi() -> dict[str, Any]:
    return {
        "parameters": [
            {
                "name": "prior",
                "in": "query",
                "description": "Whether a geolocation reading with an accuracy bounds the answer",
                "schema": {"type": "string", "enum": list(_PRIORS), "default": _PRIORS[0]},
            },
            *URGENCY_PARAMETERS,
        ],
        "requestBody": {
            "required": True,
            "content": {name: {"schema": request_schema()} for name in (JSON, MEDIA_TYPE)},
        },
    }
