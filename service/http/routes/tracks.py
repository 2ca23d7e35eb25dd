"""Tracks over HTTP: open one, localize its frames, close it; it is also closed when no frame has come for long."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field, ValidationError

from retrieval.images import check_byte_count
from retrieval.index.searchable import SearchablePlaceIndex
from retrieval.localize.localizer import LocalizeOptions
from service.answer import Problem, answer_of
from service.http.requests import (
    IMAGE_MEDIA_TYPES,
    json_body,
    media_type_of,
    options_of,
    parse_json,
    urgency_of,
    while_present,
)
from service.http.routes.localize import PHOTO_CONTENT, PHOTO_PARAMETERS, problem_responses, server_timing
from service.problems import MEDIA_TYPE, RequestError, request_id_of, validation_problem
from service.serving.admission import Urgency
from service.serving.localization import LocalizationService
from service.tracking.model import TrackedAnswer, TrackParameters
from service.tracking.tracks import FrameMotion, LiveTrack, MotionParameters, OpenTracks

# Frames of one track that are accepted at once: one is localized, the others wait for their turn with their photos.
MAX_PENDING: Final = 4


@dataclass(eq=False, slots=True)
class HttpTrack:
    """A track that was opened over HTTP.

    Attributes:
        id: a secret of 128 bits.
        owner: name of the API key that opened it; None where there are no keys.
        track: that is open.
        used_at: on `time.monotonic`.
        pending: frames that are accepted and not answered.
        turn: held by the frame that is localized.
    """

    id: str
    owner: str | None
    track: LiveTrack
    used_at: float
    pending: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @contextlib.asynccontextmanager
    async def frame(self) -> AsyncIterator[None]:
        """A context in which one frame is pending.

        Raises:
            RequestError: too many are (``track_busy``).
        """
        if self.pending >= MAX_PENDING:
            raise RequestError(
                f"{self.pending} frames of this track are being answered",
                code="track_busy",
                remedy="Send the next frame when one of them is answered",
            )
        self.pending += 1
        try:
            yield
        finally:
            self.pending -= 1
            self.used_at = time.monotonic()

    @contextlib.asynccontextmanager
    async def in_turn(self, deadline: float) -> AsyncIterator[None]:
        """A context in which no other frame of this track is answered.

        Args:
            deadline: on `time.monotonic`.

        Raises:
            RequestError: its turn does not come in time (``deadline_exceeded``).
        """
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await self.turn.acquire()
        except TimeoutError:
            raise RequestError(
                "the deadline passed while earlier frames of the track were answered",
                code="deadline_exceeded",
                remedy="Allow more time, or send the next frame when the one before is answered",
            ) from None
        try:
            yield
        finally:
            self.turn.release()


class HttpTracks:
    """Opens, finds and closes tracks. Used on the event loop only.

    Args:
        tracks: all tracks of the server.
        idle_s: a track is closed when no frame has come for so long.
    """

    def __init__(self, tracks: OpenTracks, idle_s: float) -> None:
        self._tracks = tracks
        self.idle_s = idle_s
        self._by_id: dict[str, HttpTrack] = {}

    async def open(
        self, parameters: TrackParameters, index: Callable[[], SearchablePlaceIndex], owner: str | None
    ) -> HttpTrack:
        """Open a track.

        Args:
            parameters: how to track.
            index: gives the version that is served.
            owner: name of the API key that opens it.

        Raises:
            RequestError: as `OpenTracks.open`.
        """
        track = await self._tracks.open(parameters, index)
        opened = HttpTrack(secrets.token_urlsafe(16), owner, track, time.monotonic())
        self._by_id[opened.id] = opened
        self._schedule_check(opened, self.idle_s)
        return opened

    def find(self, track_id: str, owner: str | None) -> HttpTrack:
        """The track of an id.

        Raises:
            RequestError: there is none, or another key's; the error does not tell which (``track_not_found``).
        """
        found = self._by_id.get(track_id)
        if found is None or found.owner != owner:
            raise RequestError(
                "there is no such track",
                code="track_not_found",
                remedy=f"Open one with POST /tracks; it is closed when no frame comes for {self.idle_s:g} s",
            )
        return found

    def close(self, track: HttpTrack) -> None:
        """Close a track."""
        self._by_id.pop(track.id, None)
        self._tracks.close(track.track)

    def _schedule_check(self, track: HttpTrack, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds, self._close_if_idle, track)

    def _close_if_idle(self, track: HttpTrack) -> None:
        if track.id not in self._by_id:
            return
        left_s = self.idle_s if track.pending else track.used_at + self.idle_s - time.monotonic()
        if left_s <= 0.0:
            self.close(track)
        else:
            self._schedule_check(track, left_s)


class OpenedTrack(BaseModel):
    """A track that is open."""

    id: str = Field(description="Part of its path: /tracks/{id}/localize")
    idle_s: float = Field(description="It is closed when no frame has come for so long, seconds")


def add_track_routes(app: FastAPI, localization: LocalizationService) -> None:
    """Add POST /tracks, POST /tracks/{track_id}/localize and DELETE /tracks/{track_id}."""
    tracks = HttpTracks(localization.tracks, localization.settings.track_idle_s)

    async def open_track(request: Request) -> Response:
        raw = await request.body() or b"{}"
        parameters = await localization.in_decoder(lambda: parse_json(TrackParameters, raw))
        opened = await tracks.open(parameters, lambda: localization.live.require().place_index, _owner(request))
        body = OpenedTrack(id=opened.id, idle_s=tracks.idle_s)
        headers = {"X-Request-Id": request_id_of(request), "Location": f"{request.url.path}/{opened.id}"}
        return Response(body.model_dump_json(), 201, headers, "application/json")

    async def localize(request: Request, track_id: str) -> Response:
        urgency = urgency_of(request, localization)
        track = tracks.find(track_id, _owner(request))
        media_type_of(request, IMAGE_MEDIA_TYPES)
        motion, options = _read_query(request)
        async with track.frame():
            localization.check_room(urgency)
            image = await request.body()
            check_byte_count(len(image), localization.limits)
            work = _localize(localization, track, motion, image, options, request_id_of(request), urgency)
            answer = await while_present(request, work)
        headers = {"X-Request-Id": answer.request_id, "Server-Timing": server_timing(answer.timings_ms)}
        return Response(answer.model_dump_json(), media_type="application/json", headers=headers)

    async def close_track(request: Request, track_id: str) -> Response:
        tracks.close(tracks.find(track_id, _owner(request)))
        return Response(status_code=204, headers={"X-Request-Id": request_id_of(request)})

    for prefix in ("", "/v1"):
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
            openapi_extra=json_body(TrackParameters, required=False),
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
    localization: LocalizationService,
    track: HttpTrack,
    motion: FrameMotion,
    image: bytes,
    options: LocalizeOptions,
    request_id: str,
    urgency: Urgency,
) -> TrackedAnswer:
    async with track.in_turn(urgency.deadline):
        # Before the model runs, not after.
        track.track.check_order(motion)
        options = replace(options, min_ranked=track.track.matches)
        located = await localization.localize(image, options, request_id, urgency)
        after = await localization.tracks.step(track.track, motion, located)
    return TrackedAnswer(**dict(answer_of(located)), track=after)


def _read_query(request: Request) -> tuple[FrameMotion, LocalizeOptions]:
    given = dict(request.query_params)
    moved = {name: given.pop(name) for name in MotionParameters.model_fields if name in given}
    try:
        motion = MotionParameters.model_validate(moved).motion()
    except ValidationError as error:
        raise validation_problem(error) from error
    return motion, options_of(given)


def _owner(request: Request) -> str | None:
    """The name of the API key that the request came with."""
    name: str | None = getattr(request.state, "api_key", None)
    return name


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem, "content": {MEDIA_TYPE: {}}} for status in statuses}


def _frame_openapi() -> dict[str, Any]:
    moved = MotionParameters.model_json_schema()
    motion = [
        {"name": name, "in": "query", "required": name in moved["required"], "schema": schema}
        for name, schema in moved["properties"].items()
    ]
    return {"parameters": [*motion, *PHOTO_PARAMETERS], "requestBody": {"required": True, "content": PHOTO_CONTENT}}
