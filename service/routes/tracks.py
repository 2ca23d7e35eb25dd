"""Tracks over HTTP: open one, localize its frames, close it."""

from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field, ValidationError

from retrieval.answer import Problem
from retrieval.images import check_byte_count
from retrieval.localizer import LocalizeOptions
from service.live_localizer import LiveLocalizer
from service.localize_request import IMAGE_MEDIA_TYPES, LocalizeParameters, options_of, parse_json
from service.presence import while_present
from service.problems import MEDIA_TYPE, RequestError, request_id_of, validation_problem
from service.routes.localize import GEO_PRIOR_PARAMETER, problem_responses, server_timing
from service.tracking.answer import TrackedAnswer
from service.tracking.http_tracks import HttpTrack, HttpTracks
from service.tracking.motion import FrameMotion, MotionParameters
from service.tracking.parameters import TrackParameters
from service.urgency import URGENCY_PARAMETERS, Urgency, urgency_of

_PREFIXES: Final = ("", "/v1")


class OpenedTrack(BaseModel):
    """A track that is open."""

    id: str = Field(description="Part of its path: /tracks/{id}/localize")
    idle_s: float = Field(description="It is closed when no frame has come for so long, seconds")


def add_track_routes(app: FastAPI, live: LiveLocalizer) -> None:
    """Add POST /tracks, POST /tracks/{track_id}/localize and DELETE /tracks/{track_id}."""
    tracks = HttpTracks(live.tracks, live.settings.track_idle_s)

    async def open_track(request: Request) -> Response:
        raw = await request.body() or b"{}"
        parameters = await live.in_decoder(lambda: parse_json(TrackParameters, raw))
        opened = await tracks.open(parameters, lambda: live.require().place_index, _owner(request))
        body = OpenedTrack(id=opened.id, idle_s=tracks.idle_s)
        headers = {"X-Request-Id": request_id_of(request), "Location": f"{request.url.path}/{opened.id}"}
        return Response(body.model_dump_json(), 201, headers, "application/json")

    async def localize(request: Request, track_id: str) -> Response:
        urgency = urgency_of(request, live)
        track = tracks.find(track_id, _owner(request))
        _check_content_type(request)
        motion, options = _read_query(request)
        async with track.frame():
            live.check_room(urgency.lane, urgency.deadline)
            image = await request.body()
            check_byte_count(len(image), live.limits)
            work = _localize(live, track, motion, image, options, request_id_of(request), urgency)
            answer = await while_present(request, work)
        headers = {"X-Request-Id": answer.request_id, "Server-Timing": server_timing(answer.timings_ms)}
        return Response(answer.model_dump_json(), media_type="application/json", headers=headers)

    async def close_track(request: Request, track_id: str) -> Response:
        tracks.close(tracks.find(track_id, _owner(request)))
        return Response(status_code=204, headers={"X-Request-Id": request_id_of(request)})

    for prefix in _PREFIXES:
        shown = prefix == ""
        app.add_api_route(
            f"{prefix}/tracks",
            open_track,
            methods=["POST"],
            status_code=201,
            summary="Open a track over the frames of a camera",
            description="It belongs to the API key that opened it.",
            response_model=OpenedTrack,
            responses=_problems(403, 422, 429, 503),
            openapi_extra=_body(TrackParameters),
            include_in_schema=shown,
        )
        app.add_api_route(
            f"{prefix}/tracks/{{track_id}}/localize",
            localize,
            methods=["POST"],
            summary="Localize a frame, and take it into its track",
            description="The photo as raw bytes, in the order they were taken. A request that fails changes "
            "nothing, and one that is repeated with the same captured_at_s moves nothing twice.",
            response_model=TrackedAnswer,
            responses={**problem_responses(), **_problems(404, 409)},
            openapi_extra=_frame_openapi(),
            include_in_schema=shown,
        )
        app.add_api_route(
            f"{prefix}/tracks/{{track_id}}",
            close_track,
            methods=["DELETE"],
            status_code=204,
            summary="Close a track",
            response_class=Response,
            responses=_problems(404),
            include_in_schema=shown,
        )


async def _localize(
    live: LiveLocalizer,
    track: HttpTrack,
    motion: FrameMotion,
    image: bytes,
    options: LocalizeOptions,
    request_id: str,
    urgency: Urgency,
) -> TrackedAnswer:
    async with track.in_turn(urgency.deadline):
        # Before the model has worked for nothing.
        track.track.check_order(motion)
        located = await live.localize_frame(
            image,
            options,
            request_id,
            at_least=track.track.matches,
            lane=urgency.lane,
            deadline=urgency.deadline,
        )
        after = await live.tracks.step(track.track, motion, located)
    return TrackedAnswer(**dict(located.answer), track=after)


def _read_query(request: Request) -> tuple[FrameMotion, LocalizeOptions]:
    given = dict(request.query_params)
    moved = {name: given.pop(name) for name in MotionParameters.model_fields if name in given}
    try:
        motion = MotionParameters.model_validate(moved).motion()
    except ValidationError as error:
        raise validation_problem(error) from error
    return motion, options_of(given)


def _check_content_type(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in IMAGE_MEDIA_TYPES:
        raise RequestError(
            f"content type {media_type!r} is not accepted here",
            code="unsupported_media_type",
            remedy=f"Send the photo's bytes as {', '.join(IMAGE_MEDIA_TYPES)}",
        )


def _owner(request: Request) -> str | None:
    """The name of the API key that the request came with."""
    name: str | None = getattr(request.state, "api_key", None)
    return name


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem, "content": {MEDIA_TYPE: {}}} for status in statuses}


def _body(model: type[BaseModel]) -> dict[str, Any]:
    content = {"application/json": {"schema": model.model_json_schema()}}
    return {"requestBody": {"required": False, "content": content}}


def _frame_openapi() -> dict[str, Any]:
    asked = LocalizeParameters.model_json_schema()["properties"]
    moved = MotionParameters.model_json_schema()
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {
        "parameters": [
            *(
                {"name": name, "in": "query", "required": name in moved["required"], "schema": schema}
                for name, schema in moved["properties"].items()
            ),
            {"name": "top_k", "in": "query", "schema": asked["top_k"]},
            GEO_PRIOR_PARAMETER,
            {"name": "min_score", "in": "query", "schema": asked["min_score"]},
            *URGENCY_PARAMETERS,
        ],
        "requestBody": {"required": True, "content": dict.fromkeys(IMAGE_MEDIA_TYPES, binary)},
    }
