"""Streams as a test drives them."""

import queue
from collections.abc import Iterable, Iterator

import grpc

from service.grpc.generated import localization_pb2 as pb


class Sending:
    """An endless request iterator that a test feeds."""

    def __init__(self, *messages: pb.LocalizeStreamRequest) -> None:
        self._queue: queue.Queue[pb.LocalizeStreamRequest | None] = queue.Queue()
        self.sent = 0
        for message in messages:
            self.send(message)

    def send(self, message: pb.LocalizeStreamRequest) -> None:
        self._queue.put(message)

    def frame(self, frame_id: int, image: bytes, **more: object) -> None:
        self.send(frame(frame_id, image, **more))

    def end(self) -> None:
        self._queue.put(None)

    def __iter__(self) -> Iterator[pb.LocalizeStreamRequest]:
        while (message := self._queue.get(timeout=60)) is not None:
            self.sent += 1
            yield message


def frame(frame_id: int, image: bytes, **more: object) -> pb.LocalizeStreamRequest:
    return pb.LocalizeStreamRequest(frame=pb.Frame(frame_id=frame_id, image=image, **more))  # type: ignore[arg-type]


def settings(**values: object) -> pb.LocalizeStreamRequest:
    return pb.LocalizeStreamRequest(settings=pb.StreamSettings(**values))  # type: ignore[arg-type]


def code_of(response: pb.LocalizeStreamResponse) -> grpc.StatusCode | None:
    """OK is None."""
    if response.WhichOneof("outcome") == "answer":
        return None
    return next(code for code in grpc.StatusCode if code.value[0] == response.error.code)


def ids(responses: Iterable[pb.LocalizeStreamResponse]) -> list[int]:
    return [response.frame_id for response in responses]
