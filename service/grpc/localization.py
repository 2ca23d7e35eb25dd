"""`sightfix.v1.LocalizationService`. Errors are raised; the RPC guard turns them into statuses."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING

from service.answer import answer_of, model_answer
from service.grpc.frame_stream import MAX_IN_FLIGHT, FrameStream, StreamRules, StreamTrack, draining, stream_deadline
from service.grpc.generated import localization_pb2 as pb
from service.grpc.generated.localization_pb2_grpc import LocalizationServiceServicer
from service.grpc.messages import answer_message, info_message, lane_of, model_message, options_of
from service.http.requests import MAX_DEADLINE_MS
from service.http.routes.descriptors import checked_descriptor
from service.http.routes.health import info_answer
from service.observing.logs import CURRENT
from service.problems import plain_request_id
from service.serving.admission import Urgency
from service.serving.localization import LocalizationService

if TYPE_CHECKING:
    from service.grpc.calls import Context


class LocalizationServicer(LocalizationServiceServicer):
    """Answers the calls.

    Args:
        localization: localizes; the HTTP interface has the same one.
        stopping: set when streams must end.
    """

    def __init__(self, localization: LocalizationService, stopping: asyncio.Event) -> None:
        self._localization = localization
        self._stopping = stopping

    async def Localize(self, request: pb.LocalizeRequest, context: "Context") -> pb.LocalizeResponse:  # noqa: N802
        """One photo."""
        options = options_of(request.options, "options")
        urgency = self._urgency(request.lane, context)
        located = await self._localization.localize(request.image, options, _request_id(), urgency)
        return pb.LocalizeResponse(answer=answer_message(answer_of(located)))

    async def LocalizeStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.LocalizeStreamRequest], context: "Context"
    ) -> AsyncGenerator[pb.LocalizeStreamResponse, None]:
        """The frames of a camera."""
        messages = aiter(request_iterator)
        first = await self._first_of(messages)
        if first is None:
            return
        settings = first.settings if first.WhichOneof("message") == "settings" else None
        request_id = plain_request_id(settings.request_id) if settings and settings.request_id else _request_id()
        rules = StreamRules(request_id) if settings is None else StreamRules.of(settings, request_id)
        deadline = stream_deadline(context.time_remaining())
        frames = messages if settings is not None else _with_first(first, messages)
        track = None
        if settings is not None and settings.HasField("track"):
            track = await StreamTrack.open(self._localization, settings.track)
        try:
            stream = FrameStream(self._localization, rules, deadline, track)
            async with contextlib.aclosing(stream.responses(frames, self._stopping)) as responses:
                async for response in responses:
                    yield response
        finally:
            if track is not None:
                track.close()

    async def _first_of(self, messages: AsyncIterator[pb.LocalizeStreamRequest]) -> pb.LocalizeStreamRequest | None:
        """The first message of a stream, or None when there is none.

        Raises:
            RequestError: streams must end (``draining``); a silent stream must not delay that.
        """
        reading = asyncio.ensure_future(anext(messages, None))
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({reading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise draining()
            return reading.result()
        finally:
            reading.cancel()
            stopping.cancel()

    async def Describe(self, request: pb.DescribeRequest, context: "Context") -> pb.DescribeResponse:  # noqa: N802
        """One photo's descriptor."""
        described = await self._localization.describe(request.image, self._urgency(request.lane, context))
        return pb.DescribeResponse(
            request_id=_request_id(),
            descriptor_values=described.descriptor,
            model=model_message(model_answer(described.describer)),
            decode_ms=described.decode_ms,
            queue_ms=described.queue_ms,
        )

    async def Search(self, request: pb.SearchRequest, context: "Context") -> pb.SearchResponse:  # noqa: N802
        """One descriptor."""
        options = options_of(request.options, "options")
        urgency = self._urgency(request.lane, context)
        # Its length first: a message may hold eight million numbers, and this is the event loop.
        localizer = self._localization.live.require()
        descriptor = checked_descriptor(
            request.descriptor_values, localizer, request.fingerprint or None, "descriptor_values"
        )
        located = await self._localization.search(descriptor, localizer, options, _request_id(), urgency)
        return pb.SearchResponse(answer=answer_message(answer_of(located)))

    async def GetServerInfo(  # noqa: N802
        self, request: pb.GetServerInfoRequest, context: "Context"
    ) -> pb.GetServerInfoResponse:
        """What is being served."""
        return info_message(info_answer(self._localization), MAX_IN_FLIGHT)

    def _urgency(self, lane: int, context: "Context") -> Urgency:
        """The lane of a message, and the call's deadline or the server's default one."""
        left_s = context.time_remaining()
        seconds = None if left_s is None else min(left_s, MAX_DEADLINE_MS / 1e3)
        return self._localization.urgency(lane_of(lane, "lane"), seconds)


def _request_id() -> str:
    notes = CURRENT.get()
    assert notes is not None, "the RPC guard notes every call"
    return notes.request_id


async def _with_first(
    first: pb.LocalizeStreamRequest, rest: AsyncIterator[pb.LocalizeStreamRequest]
) -> AsyncIterator[pb.LocalizeStreamRequest]:
    yield first
    async for message in rest:
        yield message
