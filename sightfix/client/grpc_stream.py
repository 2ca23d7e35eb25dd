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

from retrieval.errors import ParameterError, ServerError
from retrieval.geo import GeoPrior
from retrieval.images import Preprocessing
from retrieval.localize.answer import LocalizeAnswer
from retrieval.tracking import Odometry
from service.grpc.generated import localization_pb2 as pb
from service.grpc.generated.localization_pb2_grpc import LocalizationServiceStub
from service.tracking.model import TrackAnswer, TrackParameters
from sightfix.client.calls import Lane
from sightfix.client.connection import Certificate
from sightfix.client.grpc_answers import FrameProblem, frame_problem, localize_answer, track_answer
from sightfix.client.grpc_frames import add_odometry, options_message, settings_message
from sightfix.client.photos import Photo, encode_photo

# How often a frame that waits for room looks whether the stream still runs.
_LOOK_S: Final = 0.1
# A robot that drives out of the reach of its network gets no word of it; the server allows a ping every 10 s.
_KEEPALIVE: Final = (("grpc.keepalive_time_ms", 15_000), ("grpc.keepalive_timeout_ms", 10_000))
_LOCAL: Final = ("localhost:", "127.0.0.1:", "[::1]:")


@dataclass(frozen=True, slots=True)
class FrameOutcome:
    """What became of a frame: an answer, or a problem such as `superseded`; and the track after it, if there is one."""

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
        ca: PEM file of the server's authority, or "system" for those that gRPC knows; None speaks without TLS.
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
        settings = settings_message(lane, drop_stale, track)
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
            options=options_message(top_k, geo_prior, min_score),
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
        """What gRPC sends, from a thread of its own."""
        yield pb.LocalizeStreamRequest(settings=settings)
        while not self._ended.is_set():
            try:
                message = self._outbox.get(timeout=_LOOK_S)
            except queue.Empty:
                continue
            if message is None:
                return
            yield message

    def _put(self, message: pb.LocalizeStreamRequest | None) -> None:
        while not self._ended.is_set():
            try:
                self._outbox.put(message, timeout=_LOOK_S)
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
