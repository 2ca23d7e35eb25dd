"""Answers photos and descriptors: admits them, decodes them in bounded threads, and batches them for the model."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from retrieval.describer import Descriptors
from retrieval.images import ImageLimits
from retrieval.index.searchable import PlaceIndexStore
from retrieval.localize.localizer import DecodedPhoto, LocalizeOptions, Localizer, Located, Query
from retrieval.machine import available_cores
from service.answer import index_answer, model_answer
from service.observing.metrics import ServerState
from service.observing.observer import Observer
from service.serving.admission import LANES, Lane, RejectionThrottle, Urgency
from service.serving.batcher import MicroBatcher
from service.serving.live_localizer import LiveLocalizer
from service.settings import ServerSettings
from service.tracking.tracks import OpenTracks

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class LocalizeWork:
    """Localize one photo."""

    photo: DecodedPhoto


@dataclass(frozen=True, slots=True)
class DescribeWork:
    """Describe one photo."""

    photo: DecodedPhoto


@dataclass(frozen=True, slots=True)
class SearchWork:
    """Search for one descriptor: (D,) float32, unit length."""

    descriptor: Descriptors
    query: Query


Work = LocalizeWork | DescribeWork | SearchWork
Outcome = Located | Descriptors


@dataclass(frozen=True, slots=True)
class Described:
    """A descriptor and what it cost.

    Attributes:
        descriptor: (D,) float32, unit length.
        decode_ms, queue_ms: milliseconds of decoding and of waiting for the model.
    """

    descriptor: Descriptors
    decode_ms: float
    queue_ms: float


@dataclass(frozen=True, slots=True)
class _Run:
    """A work that was run.

    Attributes:
        work: as it was run.
        outcome: of it.
        started, queued_at: when its request was complete, and when it was decoded, on `time.perf_counter`.
        waited_s: for the model, seconds.
    """

    work: Work
    outcome: Outcome
    started: float
    queued_at: float
    waited_s: float


class LocalizationService:
    """What a server does with photos, for every protocol it speaks.

    Args:
        settings: of the server.
        observer: of what happens; by default the one that the settings ask for.
        store: of the place indexes, closed in the end; by default opened as the settings say.

    Attributes:
        live: the localizer that answers, and whether it can.
        tracks: all that are open.
        limits: of photos.
        rejections: delays rejections when there are too many.

    Raises:
        SightfixError: the store cannot be opened.
    """

    def __init__(
        self, settings: ServerSettings, observer: Observer | None = None, store: PlaceIndexStore | None = None
    ) -> None:
        store = store or settings.open_store()
        self.settings = settings
        self.observer = observer or Observer.configured(settings)
        self.limits = ImageLimits(settings.max_image_bytes, settings.max_pixels)
        self.rejections = RejectionThrottle()
        self.tracks = OpenTracks(settings.max_tracks, settings.track_place_m, self.observer.track_step)
        self._decoders = ThreadPoolExecutor(settings.decode_threads or available_cores(), "decode")
        self._batcher: MicroBatcher[Work, Outcome] = MicroBatcher(
            self._run_batch,
            limit=settings.max_waiting,
            max_delay_s=settings.max_delay_ms / 1e3,
            on_batch=self.observer.batch,
        )
        self.live = LiveLocalizer(settings, store, self._batcher, self.tracks, self.observer)
        self.observer.watch_state(self.state)

    @property
    def max_batch(self) -> int:
        """Photos that the model takes at once."""
        return self._batcher.max_batch

    def state(self) -> ServerState:
        """What is served and what waits at this moment; from any thread."""
        live, queue = self.live, self._batcher.queue
        localizer = live.localizer
        return ServerState(
            queue_depth={lane: queue.depth(lane) for lane in LANES},
            queue_limit=queue.limit,
            tracks=self.tracks.count,
            model=model_answer(localizer.describer) if localizer is not None else None,
            index=index_answer(localizer.place_index) if localizer is not None else None,
            healthy=live.healthy,
            probed_at=live.probed_at,
            ready=live.readiness.state == "ready",
            engine_building=live.engine_building,
        )

    def urgency(self, lane: Lane = "robot", seconds: float | None = None) -> Urgency:
        """Lane and deadline of a request that is complete now.

        Args:
            lane: robot goes before bulk.
            seconds: until the deadline; by default as the settings say.
        """
        return Urgency(lane, time.monotonic() + (self.settings.deadline_ms / 1e3 if seconds is None else seconds))

    def check_room(self, urgency: Urgency) -> None:
        """Reject a request before its body is read.

        Raises:
            RequestError: not ready, or shutting down.
            RejectedError: too many are waiting, or the answer would come too late (``queue_full``, 429).
        """
        with self.observer.photo():
            self.live.require()
            self._batcher.check_room(urgency)

    async def localize(self, data: bytes, options: LocalizeOptions, request_id: str, urgency: Urgency) -> Located:
        """Localize one encoded photo.

        Args:
            data: JPEG, PNG, WebP or HEIC.
            options: what to ask.
            request_id: to be named in the answer.
            urgency: lane and deadline.

        Raises:
            ImageError: it cannot be decoded.
            RequestError: not ready, rejected (429), or too late (504).
        """
        return self._timed(
            await self._run(lambda localizer: LocalizeWork(localizer.decode(data, options, request_id)), urgency)
        )

    async def describe(self, data: bytes, urgency: Urgency) -> Described:
        """The descriptor of one encoded photo.

        Raises:
            ImageError, RequestError: as `localize`.
        """
        run = await self._run(lambda localizer: DescribeWork(localizer.decode(data)), urgency)
        assert isinstance(run.work, DescribeWork)
        assert isinstance(run.outcome, np.ndarray)
        decode_ms = run.work.photo.query.decode_ms
        self.observer.described(decode_ms * 1e-3, run.waited_s, run.queued_at)
        return Described(run.outcome, decode_ms, run.waited_s * 1e3)

    async def search(
        self, descriptor: Descriptors, options: LocalizeOptions, request_id: str, urgency: Urgency
    ) -> Located:
        """Localize by one descriptor, (D,) float32, unit length.

        Raises:
            RequestError: as `localize`.
        """
        return self._timed(await self._run(SearchWork(descriptor, Query(options, request_id)), urgency))

    def _timed(self, run: _Run) -> Located:
        """The result with the time it waited, and the whole time since its request was complete; it is observed."""
        assert isinstance(run.outcome, Located)
        total_s = time.perf_counter() - run.started
        located = run.outcome.timed(queue_ms=run.waited_s * 1e3, total_ms=total_s * 1e3)
        self.observer.answered(located, run.queued_at)
        return located

    async def _run(self, work: Work | Callable[[Localizer], Work], urgency: Urgency) -> _Run:
        """Admit a work, decode it if it is a function that does so, and have the model run it."""
        with self.observer.photo():
            localizer = self.live.require()
            started = time.perf_counter()
            async with self._batcher.admitted(urgency) as ticket:
                if callable(work):
                    # A client that leaves, or a deadline that passes, before a thread is free cancels this.
                    work = await asyncio.get_running_loop().run_in_executor(self._decoders, work, localizer)
                queued_at = time.perf_counter()
                outcome, waited_s = await ticket.run(work)
        return _Run(work, outcome, started, queued_at, waited_s)

    def _run_batch(self, works: Sequence[Work]) -> list[Outcome]:
        """Run a mixed batch, on the owner thread.

        Its photos to localize are described at once. All answers are of the version it began with, whatever is
        published meanwhile.

        Returns:
            in order: a Located for a photo to localize or a search, a (D,) float32 descriptor for a photo to describe.
        """
        localizer = self.live.localizer
        assert localizer is not None, "nothing is admitted before loading is done"
        photos = {place: work.photo for place, work in enumerate(works) if isinstance(work, LocalizeWork)}
        described = {place: work.photo.image for place, work in enumerate(works) if isinstance(work, DescribeWork)}
        searches = {place: work for place, work in enumerate(works) if isinstance(work, SearchWork)}
        outcomes: dict[int, Outcome] = {}
        try:
            outcomes.update(zip(photos, localizer.localize(list(photos.values())), strict=True))
            if described:
                outcomes.update(zip(described, localizer.describer.describe(list(described.values())), strict=True))
            if searches:
                descriptors = np.stack([work.descriptor for work in searches.values()])
                found = localizer.locate(descriptors, [work.query for work in searches.values()])
                outcomes.update(zip(searches, found, strict=True))
        except Exception:
            self.live.probe_now()  # one bad batch, or a GPU that is lost?
            raise
        return [outcomes[place] for place in range(len(works))]

    async def in_decoder(self, work: Callable[[], Value]) -> Value:
        """Run work on a request's body in the decode threads."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work)

    def start(self) -> None:
        """Begin to load; requests are answered when that is done."""
        self.live.start_loading()

    def stop(self) -> None:
        """Admit nothing more, and answer what was admitted."""
        self.live.stop()
        self._batcher.stop()
        self.tracks.stop()
        self._decoders.shutdown(wait=True, cancel_futures=True)
        self.live.store.close()
        self.observer.stop()
