"""A camera's frames over one gRPC stream: answers in order, stale frames superseded if wanted.

with FrameStream("127.0.0.1:50051", drop_stale=True) as stream:
    threading.Thread(target=film, args=(stream.send,)).start()
    for outcome in stream:
        print(outcome.frame_id, outcome.answer or outcome.problem)
"""

import itertools
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from retrieval.errors import ParameterError, ServerError
from retrieval.geo import GeoPrior
from retrieval.images import Preprocessing
from retrieval.tracking import Distance, Odometry, Speed
from service.grpc.generated import localization_pb2 as pb
from service.grpc.generated.localization_pb2_grpc import LocalizationServiceStub
from sightfix.client.answers import LocalizeAnswer, TrackAnswer, TrackParameters
from sightfix.client.calls import odometry_values
from sightfix.client.photos import Photo, encode_photo
from sightfix.client.sending import Certificate, Lane

_LANES: Final = {"robot": pb.LANE_ROBOT, "bulk": pb.LANE_BULK}
# How often a frame that waits for room checks that the stream still runs.
_CHECK_S: Final = 0.1
# Without pings, a robot that leaves its network does not notice; the server allows one every 10 s.
_KEEPALIVE: Final = (("grpc.keepalive_time_ms", 15_000), ("grpc.keepalive_timeout_ms", 10_000))
_LOCAL: Final = ("localhost:", "127.0.0.1:", "[::1]:")


@dataclass(frozen=True, slots=True)
class FrameProblem:
    """Why a frame was not localized.

    Attributes:
        code: stable, as in the HTTP interface, such as `superseded`.
        detail: for people.
        retry_after_s: when it is worth trying again, if it is.
    """

    code: str
    detail: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class FrameOutcome:
    """The answer for a frame, or a problem such as `superseded`; and the track after it, if there is one."""

    frame_id: int
    answer: LocalizeAnswer | None = None
    problem: FrameProblem | None = None
    track: TrackAnswer | None = None


class FrameStream:
    """One stream of `sightfix.v1`. Frames are sent from one thread while outcomes are read in another.

    Args:
        target: host and gRPC port of the server.
        drop_stale: the newest frame wins: one that waits while a newer one arrives is `superseded`. Otherwise every
            frame is answered, and `send` waits when the camera is faster than the server.
        lane: robot goes before bulk.
        track: keeps a track over the frames, smoothed by how the camera moves; `TrackParameters()` takes all defaults.
        api_key: for servers that want one.
        ca: PEM file of the server's authority, or "system" for those of gRPC's own list; None connects without TLS.
        cert: our certificate and its key, PEM files, for servers that want one (mTLS).
        preprocessing: of the server's bundle, to shrink frames before they are sent; see `encode_photo`.

    Raises:
        ParameterError: there is no such lane, or a PEM file cannot be read.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        drop_stale: bool = False,
        lane: Lane = "robot",
        track: TrackParameters | None = None,
        api_key: str | None = None,
        ca: Path | Literal["system"] | None = None,
        cert: Certificate | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        settings = _settings_message(lane, drop_stale, track)
        self._target = target
        self._tracks = track is not None
        self._preprocessing = preprocessing
        self._ids = itertools.count(1)
        self._finished = False
        self._closing = threading.Event()
        self._ended = threading.Event()
        # One frame waits here; gRPC takes it when the server reads on. So a camera that is too fast waits in `send`.
        self._outbox: queue.Queue[pb.LocalizeStreamRequest | None] = queue.Queue(maxsize=1)
        self._channel = _channel(target, ca, cert)
        metadata = None if api_key is None else (("authorization", f"Bearer {api_key}"),)
        self._call: Any = LocalizationServiceStub(self._channel).LocalizeStream(
            self._messages(settings), metadata=metadata
        )
        if not self._call.add_callback(self._ended.set):
            self._ended.set()

    def send(
        self,
        photo: Photo,
        *,
        frame_id: int | None = None,
        top_k: int = 10,
        geo_prior: GeoPrior | None = None,
        min_score: float | None = None,
        deadline_ms: int | None = None,
        captured_at_s: float | None = None,
        odometry: Odometry | None = None,
    ) -> int:
        """Send a frame; waits while the server does not take more.

        Args:
            photo: as for `SightfixClient.localize`.
            frame_id: comes back in its outcome; counted up from 1 by default.
            top_k, geo_prior, min_score: as for `SightfixClient.localize`.
            deadline_ms: after its arrival.
            captured_at_s: when it was taken, for the track: seconds on any clock that does not go back; this machine's
                monotonic clock, now, if left out. Do not mix the two.
            odometry: a `Speed`, `Distance` or `Displacement` since the frame before, for the track.

        Returns:
            the frame's id.

        Raises:
            ImageError, ParameterError: as `encode_photo`.
            ServerError: the stream has ended; iterating says why.
        """
        if self._finished:
            raise ServerError("the stream is finished", where=self._target, remedy="Open another one")
        number = next(self._ids) if frame_id is None else frame_id
        if captured_at_s is None and self._tracks:
            captured_at_s = time.monotonic()
        frame = pb.Frame(
            frame_id=number,
            image=encode_photo(photo, self._preprocessing).data,
            options=_options_message(top_k, geo_prior, min_score),
            deadline_ms=deadline_ms,
            captured_at_s=captured_at_s,
        )
        if odometry is not None:
            add_odometry(frame, odometry)
        self._put(pb.LocalizeStreamRequest(frame=frame))
        return number

    def finish(self) -> None:
        """Send no more frames; the outcomes of those that were sent can still be read."""
        if not self._finished:
            self._finished = True
            self._put(None)

    def __iter__(self) -> Iterator[FrameOutcome]:
        """The outcome of each frame, in the order of the frames, until `finish` or `close`.

        Raises:
            ServerError: the server refused the stream, ended it, or cannot be reached.
        """
        try:
            for response in self._call:
                yield _outcome(response)
        except grpc.RpcError as error:
            if not self._closing.is_set():
                raise self._failure(error) from error

    def close(self) -> None:
        """End the stream at once."""
        self._closing.set()
        self._call.cancel()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _messages(self, settings: pb.StreamSettings) -> Iterator[pb.LocalizeStreamRequest]:
        """The messages of the stream; gRPC reads them in a thread of its own."""
        yield pb.LocalizeStreamRequest(settings=settings)
        while not self._ended.is_set():
            try:
                message = self._outbox.get(timeout=_CHECK_S)
            except queue.Empty:
                continue
            if message is None:
                return
            yield message

    def _put(self, message: pb.LocalizeStreamRequest | None) -> None:
        while not self._ended.is_set():
            try:
                self._outbox.put(message, timeout=_CHECK_S)
                return
            except queue.Full:
                continue
        if message is not None:
            raise ServerError("the stream has ended", where=self._target, remedy="Read its outcomes to learn why")

    def _failure(self, error: Any) -> ServerError:
        code: grpc.StatusCode = error.code()
        remedy = "Check the address, and that the server runs: sightfix serve --grpc-port 50051"
        return ServerError(
            f"the stream failed ({error.details()})",
            where=self._target,
            remedy=remedy if code is grpc.StatusCode.UNAVAILABLE else None,
            code=f"grpc_{code.name.lower()}",
        )


def _outcome(response: pb.LocalizeStreamResponse) -> FrameOutcome:
    track = track_answer(response.track) if response.HasField("track") else None
    if response.WhichOneof("outcome") == "answer":
        return FrameOutcome(response.frame_id, answer=localize_answer(response.answer), track=track)
    return FrameOutcome(response.frame_id, problem=frame_problem(response.error), track=track)


def localize_answer(message: pb.LocalizeAnswer) -> LocalizeAnswer:
    """The answer for one photo, as the HTTP clients give it."""
    fields = _fields(message)
    fields["timings_ms"] = {name.removesuffix("_ms"): value for name, value in fields.pop("timings").items()}
    for match in fields["matches"]:
        if "heading_deg" in match:
            match["heading"] = match.pop("heading_deg")
    return LocalizeAnswer.model_validate(fields)


def track_answer(message: pb.TrackAnswer) -> TrackAnswer:
    """The track after a frame."""
    return TrackAnswer.model_validate(_fields(message))


def frame_problem(status: Status) -> FrameProblem:
    """Why a frame was not localized."""
    info, retry = ErrorInfo(), RetryInfo()
    retry_after_s: float | None = None
    for detail in status.details:
        detail.Unpack(info)
        if detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToMilliseconds() / 1e3
    return FrameProblem(info.reason.lower() or "internal_error", status.message, retry_after_s)


def _fields(message: Message) -> dict[str, Any]:
    """The fields of an answer by their names; status, fix and covariance as the HTTP interface writes them."""
    fields = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    fields["status"] = fields["status"].removeprefix("FIX_STATUS_")
    fix = fields.setdefault("fix", None)
    if fix is not None:
        enu = fix["covariance_enu"]
        east_north = enu["east_north_m2"]
        fix["covariance_enu"] = [[enu["east_m2"], east_north], [east_north, enu["north_m2"]]]
    return fields


def _settings_message(lane: Lane, drop_stale: bool, track: TrackParameters | None) -> pb.StreamSettings:
    """The settings of a stream.

    Args:
        lane: robot goes before bulk.
        drop_stale: whether the newest frame wins.
        track: of the camera, or None for none.

    Raises:
        ParameterError: there is no such lane.
    """
    if lane not in _LANES:
        raise ParameterError(f"there is no lane {lane!r}", remedy=f"Choose among {', '.join(_LANES)}")
    message = pb.StreamSettings(lane=_LANES[lane], drop_stale=drop_stale)
    if track is not None:
        message.track.CopyFrom(pb.TrackSettings(**track.model_dump(exclude_none=True)))
    return message


def _options_message(top_k: int, geo_prior: GeoPrior | None, min_score: float | None) -> pb.LocalizeOptions:
    """The options of a frame."""
    message = pb.LocalizeOptions(top_k=top_k, min_score=min_score)
    if geo_prior is not None:
        message.geo_prior.CopyFrom(pb.GeoPrior(lat=geo_prior.lat, lon=geo_prior.lon, radius_m=geo_prior.radius_m))
    return message


def add_odometry(frame: pb.Frame, odometry: Odometry) -> None:
    """Set the motion of the camera since the frame before."""
    values = odometry_values(odometry)
    if isinstance(odometry, Speed):
        frame.speed.CopyFrom(pb.Speed(**values))
    elif isinstance(odometry, Distance):
        frame.distance.CopyFrom(pb.Distance(**values))
    else:
        frame.displacement.CopyFrom(pb.Displacement(**values))


def _channel(target: str, ca: Path | Literal["system"] | None, cert: Certificate | None) -> grpc.Channel:
    # A proxy of the environment is for other hosts.
    proxy = (("grpc.enable_http_proxy", 0),) if target.startswith(_LOCAL) else ()
    options = (*_KEEPALIVE, *proxy)
    if ca is None:
        if cert is not None:
            raise ParameterError(
                "a certificate without TLS", remedy='Give the server\'s authority: ca=pem, or "system"'
            )
        return grpc.insecure_channel(target, options)
    try:
        roots = None if ca == "system" else Path(ca).read_bytes()
        chain, key = (cert[0].read_bytes(), cert[1].read_bytes()) if cert else (None, None)
    except OSError as error:
        raise ParameterError(f"the certificates cannot be read ({error})", remedy="Give PEM files") from error
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(roots, key, chain), options)
