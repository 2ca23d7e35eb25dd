"""The track of one stream: what its frames say of their motion, and the track after each of them."""

from typing import Any

from pydantic import ValidationError

from retrieval.localizer import Located
from service.grpc.answers import track_message
from service.grpc.errors import wrong_fields
from service.grpc.generated import localization_pb2 as pb
from service.live_localizer import LiveLocalizer
from service.problems import RequestError
from service.tracking.live_track import LiveTrack
from service.tracking.motion import FrameMotion, MotionParameters
from service.tracking.parameters import TrackParameters


class StreamTrack:
    """A track as a stream has it. Make one with `StreamTrack.open`, and close it.

    Args:
        live: where it is open.
        track: that is open.
    """

    def __init__(self, live: LiveLocalizer, track: LiveTrack) -> None:
        self._live = live
        self._track = track
        self._taken_at_s: float | None = None

    @classmethod
    async def open(cls, live: LiveLocalizer, settings: pb.TrackSettings) -> "StreamTrack":
        """Open a track.

        Raises:
            RequestError: a value outside its range, too many tracks, or a server that is not ready.
        """
        try:
            parameters = TrackParameters.model_validate(_values(settings))
        except ValidationError as error:
            raise wrong_fields(error, "settings.track.") from error
        return cls(live, await live.tracks.open(parameters, lambda: live.require().place_index))

    def motion_of(self, frame: pb.Frame) -> FrameMotion:
        """What a frame says of its time and motion; called for every frame, in their order.

        Raises:
            RequestError: a value that is missing or outside its range (``validation_error``), or a time before that of
                the frame before (``frame_out_of_order``).
        """
        kind = frame.WhichOneof("odometry")
        values = _values(getattr(frame, kind)) if kind is not None else {}
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
        return track_message(await self._live.tracks.step(self._track, motion, located))

    @property
    def matches(self) -> int:
        """How many matches of a frame it can use."""
        return self._track.matches

    def close(self) -> None:
        """Forget the track."""
        self._live.tracks.close(self._track)


def _values(message: Any) -> dict[str, float]:
    """The numbers of a message that are set; those that are not optional always are."""
    return {
        field.name: getattr(message, field.name)
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }
