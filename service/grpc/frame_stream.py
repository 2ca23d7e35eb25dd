"""The frames of one gRPC stream: a few in flight, answers in order, stale ones superseded if the client wants that."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, replace
from typing import Final

from pydantic import ValidationError

from retrieval.errors import SightfixError
from retrieval.localize.localizer import Located
from service.answer import answer_of
from service.grpc.calls import server_fault, status_of, wrong_field, wrong_fields
from service.grpc.generated import localization_pb2 as pb
from service.grpc.messages import answer_message, fields_of, lane_of, options_of, track_message
from service.http.requests import MAX_DEADLINE_MS
from service.problems import RequestError
from service.serving.admission import Lane, Urgency
from service.serving.localization import LocalizationService
from service.tracking.model import TrackParameters
from service.tracking.tracks import FrameMotion, LiveTrack, MotionParameters, OpenTracks

_log = logging.getLogger("sightfix.service")
MAX_IN_FLIGHT: Final = 4

# With drop_stale the server always reads. Were the client never to read, what is superseded would pile up.
_MAX_UNWRITTEN: Final = 64


class StreamTrack:
    """The track over the frames of one stream. Make one with `StreamTrack.open`, and close it.

    Args:
        tracks: among which it is open.
        track: that is open.
    """

    def __init__(self, tracks: OpenTracks, track: LiveTrack) -> None:
        self._tracks = tracks
        self._track = track
        self._taken_at_s: float | None = None

    @classmethod
    async def open(cls, localization: LocalizationService, settings: pb.TrackSettings) -> "StreamTrack":
        """Open a track.

        Raises:
            RequestError: a value outside its range, too many tracks, or a server that is not ready.
        """
        try:
            parameters = TrackParameters.model_validate(fields_of(settings))
        except ValidationError as error:
            raise wrong_fields(error, "settings.track.") from error
        tracks = localization.tracks
        return cls(tracks, await tracks.open(parameters, lambda: localization.live.require().place_index))

    def motion_of(self, frame: pb.Frame) -> FrameMotion:
        """The time and motion of a frame; called for every frame, in their order.

        Raises:
            RequestError: a value that is missing or outside its range (``validation_error``), or a time before that of
                the frame before (``frame_out_of_order``).
        """
        kind = frame.WhichOneof("odometry")
        values = fields_of(getattr(frame, kind)) if kind is not None else {}
        if frame.HasField("captured_at_s"):
            values["captured_at_s"] = frame.captured_at_s
        try:
            motion = MotionParameters.model_validate(values).motion()
        except ValidationError as error:
            # A model-wide complaint is about the odometry that was sent.
            moved = {name: f"{kind}.{name}" for name in values if name != "captured_at_s"} | {"": kind or "odometry"}
            raise wrong_fields(error, "frame.", moved) from error
        before = self._taken_at_s
        if before is not None and motion.at_s < before:
            raise RequestError(
                f"frame.captured_at_s: {motion.at_s:.3f} is before {before:.3f} of an earlier frame",
                code="frame_out_of_order",
                remedy="Send frames in the order they were taken, or open another stream",
            )
        self._taken_at_s = motion.at_s
        return motion

    async def after(self, motion: FrameMotion, located: Located | None) -> pb.TrackAnswer:
        """The track after a frame.

        Args:
            motion: of the frame.
            located: its matches; None if it was not answered.
        """
        return track_message(await self._tracks.step(self._track, motion, located))

    @property
    def matches(self) -> int:
        """How many matches of a frame it can use."""
        return self._track.matches

    def close(self) -> None:
        """Close the track."""
        self._tracks.close(self._track)


@dataclass(frozen=True, slots=True)
class StreamRules:
    """How a stream works.

    Attributes:
        request_id: of the stream; its frames get it with their own id behind.
        lane: in which its frames wait.
        drop_stale: whether a newer frame takes the place of one that waits.
        max_in_flight: how many are worked on at once.
    """

    request_id: str
    lane: Lane = "robot"
    drop_stale: bool = False
    max_in_flight: int = MAX_IN_FLIGHT

    @classmethod
    def of(cls, settings: pb.StreamSettings, request_id: str) -> "StreamRules":
        """The rules that the client asks for.

        Args:
            settings: as the client sent them.
            request_id: of the stream.

        Raises:
            RequestError: a value outside its range.
        """
        count = (
            settings.max_in_flight
            if settings.HasField("max_in_flight")
            else 1
            if settings.drop_stale
            else MAX_IN_FLIGHT
        )
        if not 1 <= count <= MAX_IN_FLIGHT:
            raise wrong_field(
                "settings.max_in_flight", f"{count} is outside [1, {MAX_IN_FLIGHT}]", remedy="Leave it out"
            )
        return cls(request_id, lane_of(settings.lane, "settings.lane"), settings.drop_stale, count)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """The response to a frame, and the matches for the track."""

    response: pb.LocalizeStreamResponse
    located: Located | None = None


@dataclass(eq=False, slots=True)
class _PendingFrame:
    """A frame that is not answered yet.

    Attributes:
        frame: as it was received.
        deadline: on `time.monotonic`.
        motion: for the track; None where there is none, or the frame cannot be taken into it.
        outcome: its response, when it is there.
    """

    frame: pb.Frame
    deadline: float
    motion: FrameMotion | None
    outcome: "asyncio.Future[_Outcome]"


class FrameStream:
    """Answers the frames of one stream.

    Args:
        localization: localizes the frames.
        rules: how the stream works.
        deadline: of the whole stream, on `time.monotonic`; None for none.
        track: over its frames; None for none.
    """

    def __init__(
        self,
        localization: LocalizationService,
        rules: StreamRules,
        deadline: float | None,
        track: StreamTrack | None = None,
    ) -> None:
        self._localization = localization
        self._track = track
        self._rules = rules
        self._deadline = deadline
        self._room = asyncio.Semaphore(_MAX_UNWRITTEN if rules.drop_stale else rules.max_in_flight)
        # None: there will be no more.
        self._in_order: asyncio.Queue[_PendingFrame | None] = asyncio.Queue()
        self._running: set[asyncio.Task[None]] = set()
        self._next: _PendingFrame | None = None

    async def responses(
        self, messages: AsyncIterator[pb.LocalizeStreamRequest], stopping: asyncio.Event
    ) -> AsyncGenerator[pb.LocalizeStreamResponse, None]:
        """The response to each frame, in the order of the frames.

        Args:
            messages: all but the settings.
            stopping: when it is set, no more frames are taken; those that were taken are answered.

        Raises:
            RequestError: settings among the frames; the server stops (``draining``).
        """
        reading = asyncio.create_task(self._read(messages))
        waiting_for_stop = asyncio.create_task(stopping.wait())
        waiting_for_stop.add_done_callback(lambda _: reading.cancel())
        try:
            while (waiting := await self._in_order.get()) is not None:
                outcome = await waiting.outcome
                # All frames arrive here in their order, those that were superseded or have failed, too.
                if self._track is not None and waiting.motion is not None:
                    after = await self._track.after(waiting.motion, outcome.located)
                    outcome.response.track.CopyFrom(after)
                yield outcome.response
                self._room.release()
            if reading.cancelled():
                raise draining()
            reading.result()
        finally:
            for task in (waiting_for_stop, reading, *self._running):
                task.cancel()

    async def _read(self, messages: AsyncIterator[pb.LocalizeStreamRequest]) -> None:
        """Take frames while there is room: gRPC holds the client back while nothing is read."""
        try:
            while True:
                await self._room.acquire()
                message = await anext(messages, None)
                if message is None:
                    return
                if message.WhichOneof("message") == "settings":
                    raise wrong_field("settings", "they came after a frame", remedy="Send them first, or not at all")
                self._take(message.frame)
        finally:
            self._in_order.put_nowait(None)

    def _take(self, frame: pb.Frame) -> None:
        waiting = _PendingFrame(frame, self._deadline_of(frame), None, asyncio.get_running_loop().create_future())
        self._in_order.put_nowait(waiting)
        try:
            waiting.motion = None if self._track is None else self._track.motion_of(frame)
        except SightfixError as error:
            waiting.outcome.set_result(self._failure(frame.frame_id, error))
            return
        if len(self._running) < self._rules.max_in_flight:
            self._start(waiting)
            return
        if self._next is not None:
            self._next.outcome.set_result(self._failure(self._next.frame.frame_id, _superseded()))
        self._next = waiting

    def _start(self, waiting: _PendingFrame) -> None:
        task = asyncio.create_task(self._answer(waiting))
        self._running.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if self._next is not None and not task.cancelled():
            self._start(self._next)
            self._next = None

    async def _answer(self, waiting: _PendingFrame) -> None:
        frame = waiting.frame
        try:
            outcome = await self._localize(frame, waiting.deadline)
        except SightfixError as error:
            outcome = self._failure(frame.frame_id, error)
        except Exception:  # a bug on one frame must not end the stream either
            _log.exception("frame %s failed", self._request_id(frame.frame_id))
            outcome = self._failure(frame.frame_id, server_fault())
        waiting.outcome.set_result(outcome)

    async def _localize(self, frame: pb.Frame, deadline: float) -> _Outcome:
        if frame.HasField("deadline_ms") and not 1 <= frame.deadline_ms <= MAX_DEADLINE_MS:
            raise wrong_field("frame.deadline_ms", f"{frame.deadline_ms} is outside [1, {MAX_DEADLINE_MS}]")
        options = options_of(frame.options, "frame.options")
        request_id = self._request_id(frame.frame_id)
        urgency = Urgency(self._rules.lane, deadline)
        if self._track is not None:
            options = replace(options, min_ranked=self._track.matches)
        located = await self._localization.localize(frame.image, options, request_id, urgency)
        response = pb.LocalizeStreamResponse(frame_id=frame.frame_id, answer=answer_message(answer_of(located)))
        return _Outcome(response, located)

    def _deadline_of(self, frame: pb.Frame) -> float:
        seconds = frame.deadline_ms / 1e3 if frame.HasField("deadline_ms") else None
        own = self._localization.urgency(seconds=seconds).deadline
        return own if self._deadline is None else min(own, self._deadline)

    def _failure(self, frame_id: int, error: SightfixError) -> _Outcome:
        status = status_of(error, self._request_id(frame_id))
        return _Outcome(pb.LocalizeStreamResponse(frame_id=frame_id, error=status))

    def _request_id(self, frame_id: int) -> str:
        return f"{self._rules.request_id}-{frame_id}"


def stream_deadline(left_s: float | None) -> float | None:
    """When a stream must be over, on `time.monotonic`.

    Args:
        left_s: seconds left, from gRPC; None without a deadline.
    """
    return None if left_s is None else time.monotonic() + left_s


def draining() -> RequestError:
    """The error that ends a stream of a server that stops."""
    return RequestError(
        "the server is shutting down", code="draining", remedy="Open the stream again, at another server"
    )


def _superseded() -> RequestError:
    return RequestError("a newer frame came before this one's turn", code="superseded")
