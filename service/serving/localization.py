"""Answers photos and descriptors: admits them, decodes them in bounded threads, and batches them for the model."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from retrieval.describer import Describer, Descriptors
from retrieval.errors import ImageError
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
class PhotoWork:
    """Localize or describe one photo.

    Attributes:
        photo: as `decode` gave it.
        localizer: that it was decoded for.
        decode: gives it; called again for the localizer of another model, should that serve when its turn comes.
        localize: whether to localize it; else it is described.
    """

    photo: DecodedPhoto
    localizer: Localizer
    decode: Callable[[Localizer], DecodedPhoto]
    localize: bool

    def of(self, localizer: Localizer) -> "PhotoWork":
        """The same for a localizer.

        Raises:
            ImageError: its model takes no such photo.
        """
        if localizer.describer is self.localizer.describer:
            return self
        return replace(self, photo=self.decode(localizer), localizer=localizer)


@dataclass(frozen=True, slots=True)
class SearchWork:
    """Search for one descriptor.

    Attributes:
        descriptor: (D,) float32, unit length.
        query: what to ask.
        localizer: of the model that the descriptor is of. It is asked, whatever serves when its turn comes.
    """

    descriptor: Descriptors
    query: Query
    localizer: Localizer


@dataclass(frozen=True, slots=True)
class Description:
    """A described photo.

    Attributes:
        descriptor: (D,) float32, unit length.
        describer: of it.
        decode_ms: milliseconds of decoding.
    """

    descriptor: Descriptors
    describer: Describer
    decode_ms: float


Work = PhotoWork | SearchWork
Outcome = Located | Description | ImageError


@dataclass(frozen=True, slots=True)
class Described:
    """A descriptor and what it cost.

    Attributes:
        descriptor: (D,) float32, unit length.
        describer: of it.
        decode_ms, queue_ms: milliseconds of decoding and of waiting for the model.
    """

    descriptor: Descriptors
    describer: Describer
    decode_ms: float
    queue_ms: float


@dataclass(frozen=True, slots=True)
class _Run:
    """A work that was run.

    Attributes:
        outcome: of it.
        started, queued_at: when its request was complete, and when it was decoded, on `time.perf_counter`.
        waited_s: for the model, seconds.
    """

    outcome: Located | Description
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
            await self._run(lambda localizer: localizer.decode(data, options, request_id), urgency, localize=True)
        )

    async def describe(self, data: bytes, urgency: Urgency) -> Described:
        """The descriptor of one encoded photo.

        Raises:
            ImageError, RequestError: as `localize`.
        """
        run = await self._run(lambda localizer: localizer.decode(data), urgency, localize=False)
        done = run.outcome
        assert isinstance(done, Description)
        self.observer.described(done.decode_ms * 1e-3, run.waited_s, run.queued_at)
        return Described(done.descriptor, done.describer, done.decode_ms, run.waited_s * 1e3)

    async def search(
        self, descriptor: Descriptors, localizer: Localizer, options: LocalizeOptions, request_id: str, urgency: Urgency
    ) -> Located:
        """Localize by one descriptor, (D,) float32, unit length.

        Args:
            descriptor: of the localizer's model.
            localizer: that serves, or did until now.
            options, request_id, urgency: as `localize`.

        Raises:
            RequestError: as `localize`.
        """
        return self._timed(await self._run(SearchWork(descriptor, Query(options, request_id), localizer), urgency))

    def _timed(self, run: _Run) -> Located:
        """The result with the time it waited, and the whole time since its request was complete; it is observed."""
        assert isinstance(run.outcome, Located)
        total_s = time.perf_counter() - run.started
        located = run.outcome.timed(queue_ms=run.waited_s * 1e3, total_ms=total_s * 1e3)
        self.observer.answered(located, run.queued_at)
        return located

    async def _run(
        self, work: SearchWork | Callable[[Localizer], DecodedPhoto], urgency: Urgency, *, localize: bool = True
    ) -> _Run:
        """Admit a work, or a photo that the function decodes, and have the model run it."""
        with self.observer.photo():
            localizer = self.live.require()
            started = time.perf_counter()
            async with self._batcher.admitted(urgency) as ticket:
                if not isinstance(work, SearchWork):
                    # A client that leaves, or a deadline that passes, before a thread is free cancels this.
                    photo = await asyncio.get_running_loop().run_in_executor(self._decoders, work, localizer)
                    ready: Work = PhotoWork(photo, localizer, work, localize)
                else:
                    ready = work
                queued_at = time.perf_counter()
                outcome, waited_s = await ticket.run(ready)
            if isinstance(outcome, ImageError):
                raise outcome
        return _Run(outcome, started, queued_at, waited_s)

    def _run_batch(self, works: Sequence[Work]) -> list[Outcome]:
        """Run a mixed batch, on the owner thread.

        Its photos to localize are described at once. All answers are of the version it began with, whatever is
        published meanwhile. Photos that were decoded for a model that serves no more are decoded again; descriptors of
        it are searched for in the version that it served with.

        Returns:
            in order: what became of each; an error for a photo that could not be decoded again.
        """
        localizer = self.live.localizer
        assert localizer is not None, "nothing is admitted before loading is done"
        outcomes: dict[int, Outcome] = {}
        try:
            to_localize: dict[int, DecodedPhoto] = {}
            to_describe: dict[int, DecodedPhoto] = {}
            for place, work in enumerate(works):
                if isinstance(work, SearchWork):
                    continue
                try:
                    photo = work.of(localizer).photo
                except ImageError as error:
                    outcomes[place] = error
                else:
                    (to_localize if work.localize else to_describe)[place] = photo
            outcomes.update(zip(to_localize, localizer.localize(list(to_localize.values())), strict=True))
            if to_describe:
                descriptors = localizer.describer.describe([photo.image for photo in to_describe.values()])
                for (place, photo), descriptor in zip(to_describe.items(), descriptors, strict=True):
                    outcomes[place] = Description(descriptor, localizer.describer, photo.query.decode_ms)
            outcomes.update(self._searched(works, localizer))
        except Exception:
            self.live.probe_now()  # one bad batch, or a GPU that is lost?
            raise
        return [outcomes[place] for place in range(len(works))]

    def _searched(self, works: Sequence[Work], serving: Localizer) -> dict[int, Located]:
        """The searches of a batch, those of one model at once."""
        searches = {place: work for place, work in enumerate(works) if isinstance(work, SearchWork)}
        found: dict[int, Located] = {}
        by_localizer: dict[Localizer, list[int]] = {}
        for place, work in searches.items():
            same = work.localizer.describer is serving.describer
            by_localizer.setdefault(serving if same else work.localizer, []).append(place)
        for localizer, places in by_localizer.items():
            descriptors = np.stack([searches[place].descriptor for place in places])
            located = localizer.locate(descriptors, [searches[place].query for place in places])
            found.update(zip(places, located, strict=True))
        return found

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
