"""What answers cost, waiting included."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from retrieval.bundle import open_bundle
from retrieval.describer import Descriptors
from retrieval.errors import SightfixError
from retrieval.images import ImageLimits, RgbImage
from retrieval.index.searchable import PlaceIndexStore
from retrieval.localize.answer import LocalizeAnswer
from retrieval.localize.localizer import DecodedQuery, LocalizeOptions, Localizer, Located
from retrieval.machine import available_cores
from service.observing.live_state import LiveState
from service.observing.observer import Observer
from service.problems import RequestError
from service.serving.admission import Lane, RefusalPace
from service.serving.batcher import MicroBatcher
from service.serving.health import Canary, CanaryReport, CanaryWatch, Readiness, choose_canary, sing
from service.serving.loading import HeapKeeper, IndexWatch, LocalizerParts, leave_device
from service.settings import ServerSettings
from service.tracking.tracks import OpenTracks


@dataclass(frozen=True, slots=True)
class Timed:
    """A descriptor and what it cost.

    Attributes:
        descriptor: (D,) float32, unit length.
        decode_ms, queue_ms: milliseconds of decoding and of waiting for the model.
    """

    descriptor: Descriptors
    decode_ms: float
    queue_ms: float


def timed(answer: LocalizeAnswer, waited_s: float, started: float) -> LocalizeAnswer:
    """The answer with the time it waited, and the whole time since its request was complete."""
    total_ms = (time.perf_counter() - started) * 1e3
    timings = answer.timings_ms.model_copy(update={"queue": waited_s * 1e3, "total": total_ms})
    return answer.model_copy(update={"timings_ms": timings})


# What the owner thread can be asked for: localize a photo (or a frame), describe one, search for a descriptor.


@dataclass(frozen=True, slots=True)
class DescribeWork:
    """Describe one decoded photo."""

    image: RgbImage


@dataclass(frozen=True, slots=True)
class SearchWork:
    """Search for one descriptor: (D,) float32, unit length."""

    descriptor: Descriptors
    options: LocalizeOptions
    request_id: str


@dataclass(frozen=True, slots=True)
class FrameWork:
    """Localize one photo, and say of which matches the answer was made.

    Attributes:
        query: the photo.
        at_least: so many matches are looked for.
    """

    query: DecodedQuery
    at_least: int


Work = DecodedQuery | DescribeWork | SearchWork | FrameWork

Outcome = LocalizeAnswer | Descriptors | Located


def do_works(localizer: Localizer, works: Sequence[Work]) -> list[Outcome]:
    """Do a mixed batch; all photos in it are described at once, and all answers name the same index version.

    Returns:
        in order: a LocalizeAnswer for a query or a search, a (D,) float32 descriptor for a photo to describe, a
        Located for a frame.
    """
    outcomes: dict[int, Outcome] = {}
    queries = {place: work for place, work in enumerate(works) if isinstance(work, DecodedQuery | FrameWork)}
    at_least = max((work.at_least for work in queries.values() if isinstance(work, FrameWork)), default=1)
    asked = [work.query if isinstance(work, FrameWork) else work for work in queries.values()]
    for (place, work), located in zip(queries.items(), localizer.located(asked, at_least), strict=True):
        outcomes[place] = located if isinstance(work, FrameWork) else located.answer
    photos = {place: work.image for place, work in enumerate(works) if isinstance(work, DescribeWork)}
    if photos:
        outcomes.update(zip(photos, localizer.describer.describe(list(photos.values())), strict=True))
    searches = {place: work for place, work in enumerate(works) if isinstance(work, SearchWork)}
    if searches:
        found = localizer.locate(
            np.stack([work.descriptor for work in searches.values()]),
            [work.options for work in searches.values()],
            [work.request_id for work in searches.values()],
        )
        outcomes.update(zip(searches, found, strict=True))
    return [outcomes[place] for place in range(len(works))]


# The one localizer of a server process: loaded in the background, owned by one thread, swapped while it serves.

_log = logging.getLogger("sightfix.service")

Value = TypeVar("Value")

# For the batch in hand; the largest on a slow processor takes half as long.
_SWAP_WAIT_S: Final = 30.0


class LiveLocalizer:
    """Owns the localizer. Photos are decoded in bounded threads; the model and the index belong to one thread.

    Args:
        settings: of the server.
        observer: whom to tell what happens; by default whom the settings ask for.
        store: of the place indexes, to be closed in the end; by default opened as the settings say.

    Raises:
        SightfixError: the store cannot be opened.
    """

    def __init__(
        self, settings: ServerSettings, observer: Observer | None = None, store: PlaceIndexStore | None = None
    ) -> None:
        self.settings = settings
        self.store = store or settings.open_store()
        self.observer = observer or Observer.configured(settings)
        self.limits = ImageLimits(settings.max_image_bytes, settings.max_pixels)
        self._parts = LocalizerParts(settings, self.store, self.limits)
        self.failure: SightfixError | None = None
        self.canary: CanaryReport | None = None
        self.engine_building = False
        self._chosen: Canary | None = None
        self._readiness = Readiness("loading", "the model and the place index are being loaded")
        self._localizer: Localizer | None = None
        self._decoders = ThreadPoolExecutor(settings.decode_threads or available_cores(), "decode")
        # Apart from the decoders: a page full of thumbnails must not hold up a robot.
        self._thumbnailer = ThreadPoolExecutor(1, "thumbnail")
        self.batcher: MicroBatcher[Work, Outcome] = MicroBatcher(
            self._do,
            limit=settings.max_waiting,
            max_delay_s=settings.max_delay_ms / 1e3,
            on_batch=self.observer.batch,
        )
        self.refusals = RefusalPace()
        self.canary_watch = CanaryWatch(
            self.batcher.on_owner_thread,
            self._sing,
            interval_s=settings.canary_interval_s,
            max_age_s=2.0 * settings.canary_interval_s,
            hung_after_s=settings.hung_after_s,
        )
        if self.observer.metrics is not None:
            self.observer.metrics.registry.register(LiveState(self))
        self.tracks = OpenTracks(settings.max_tracks, settings.track_place_m, self.observer.track_step)
        self._heap = HeapKeeper()
        self._loader: threading.Thread | None = None
        self.watch: IndexWatch | None = None

    @property
    def readiness(self) -> Readiness:
        """Whether the server can answer."""
        problem = self.canary_watch.problem if self._readiness.state == "ready" else None
        return Readiness("unhealthy", problem) if problem is not None else self._readiness

    @property
    def localizer(self) -> Localizer | None:
        """What answers now; None before loading is done."""
        return self._localizer

    def start_loading(self) -> None:
        """Load in a thread of its own, so that the socket answers meanwhile."""
        self._loader = threading.Thread(target=self._load, name="load", daemon=True)
        self._loader.start()

    def wait_until_loaded(self, timeout_s: float) -> None:
        """Wait until loading has succeeded or failed, or the time is over; `readiness` tells which."""
        if self._loader is not None:
            self._loader.join(timeout_s)

    def still_loading(self, reason: str) -> None:
        """Say what loading is busy with, to whoever asks for readiness."""
        if self._readiness.state == "loading":
            self._readiness = Readiness("loading", reason)

    def require(self) -> Localizer:
        """The localizer.

        Raises:
            RequestError: it is not ready (``not_ready``, 503).
        """
        if self._localizer is None or self._readiness.state not in ("ready", "stopping"):
            raise RequestError(
                f"the server is not ready: {self._readiness.reason}", code="not_ready", remedy="Try again in a moment"
            )
        return self._localizer

    def deadline(self, seconds: float | None = None) -> float:
        """When an answer must be there, on `time.monotonic`; by default as the settings say."""
        return time.monotonic() + (self.settings.deadline_ms / 1e3 if seconds is None else seconds)

    def check_room(self, lane: Lane, deadline: float) -> None:
        """Refuse at the door, before a body is read.

        Raises:
            RequestError: not ready, or shutting down.
            RefusedError: too many are waiting, or the answer would come too late (``queue_full``, 429).
        """
        with self.observer.photo():
            self.require()
            self.batcher.check_room(lane, deadline)

    async def localize(
        self,
        data: bytes,
        options: LocalizeOptions,
        request_id: str,
        *,
        lane: Lane = "robot",
        deadline: float | None = None,
    ) -> LocalizeAnswer:
        """Answer for one encoded photo.

        Args:
            data: JPEG, PNG, WebP or HEIC.
            options: what to ask.
            request_id: to be named in the answer.
            lane: robot goes before bulk.
            deadline: `time.monotonic` seconds; by default as the settings say.

        Raises:
            ImageError: it cannot be decoded.
            RequestError: not ready, refused (429), or too late (504).
        """
        with self.observer.photo():
            localizer = self.require()
            started = time.perf_counter()
            async with self.batcher.admitted(lane, deadline or self.deadline()) as ticket:
                query = await self._decode(localizer, data, options, request_id)
                queued_at = time.perf_counter()
                answer, waited = await ticket.run(query)
        assert isinstance(answer, LocalizeAnswer)
        answer = timed(answer, waited, started)
        self.observer.answered(answer, queued_at)
        return answer

    async def localize_frame(
        self,
        data: bytes,
        options: LocalizeOptions,
        request_id: str,
        *,
        at_least: int,
        lane: Lane = "robot",
        deadline: float | None = None,
    ) -> Located:
        """As `localize`, with the matches that a track wants.

        Args:
            at_least: so many matches are looked for, however few are asked for.
        """
        with self.observer.photo():
            localizer = self.require()
            started = time.perf_counter()
            async with self.batcher.admitted(lane, deadline or self.deadline()) as ticket:
                query = await self._decode(localizer, data, options, request_id)
                queued_at = time.perf_counter()
                located, waited = await ticket.run(FrameWork(query, at_least))
        assert isinstance(located, Located)
        answer = timed(located.answer, waited, started)
        self.observer.answered(answer, queued_at)
        return replace(located, answer=answer)

    async def describe(self, data: bytes, *, lane: Lane = "robot", deadline: float | None = None) -> Timed:
        """The descriptor of one encoded photo.

        Raises:
            ImageError, RequestError: as `localize`.
        """
        with self.observer.photo():
            localizer = self.require()
            async with self.batcher.admitted(lane, deadline or self.deadline()) as ticket:
                query = await self._decode(localizer, data, LocalizeOptions(), "")
                queued_at = time.perf_counter()
                descriptor, waited = await ticket.run(DescribeWork(query.image))
        assert isinstance(descriptor, np.ndarray)
        self.observer.described(query.decode_ms * 1e-3, waited, queued_at)
        return Timed(descriptor, query.decode_ms, waited * 1e3)

    async def search(
        self,
        descriptor: Descriptors,
        options: LocalizeOptions,
        request_id: str,
        *,
        lane: Lane = "robot",
        deadline: float | None = None,
    ) -> LocalizeAnswer:
        """Answer for one descriptor, (D,) float32, unit length.

        Raises:
            RequestError: as `localize`.
        """
        with self.observer.photo():
            self.require()
            started = time.perf_counter()
            async with self.batcher.admitted(lane, deadline or self.deadline()) as ticket:
                answer, waited = await ticket.run(SearchWork(descriptor, options, request_id))
        assert isinstance(answer, LocalizeAnswer)
        answer = timed(answer, waited, started)
        self.observer.answered(answer, started)
        return answer

    async def in_decoder(self, work: Callable[[], Value]) -> Value:
        """Run work on a request's body in the bounded decode threads."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work)

    async def in_thumbnailer(self, work: Callable[[Path], bytes], path: Path) -> bytes:
        """Run image work that nobody is in a hurry for, one at a time."""
        return await asyncio.get_running_loop().run_in_executor(self._thumbnailer, work, path)

    def drain(self) -> None:
        """Tell whoever asks for readiness that this server is going away; it still answers."""
        if self._readiness.state == "ready":
            self._readiness = Readiness("stopping", "the server is shutting down")

    def stop(self) -> None:
        """Refuse new work and wait for the work in hand."""
        self._readiness = Readiness("stopping", "the server is shutting down")
        if self.watch is not None:
            self.watch.stop()
        self.canary_watch.stop()
        self._heap.stop()
        self.batcher.stop()
        self.tracks.stop()
        for pool in (self._decoders, self._thumbnailer):
            pool.shutdown(wait=True, cancel_futures=True)
        self.store.close()
        self.observer.stop()

    async def _decode(
        self, localizer: Localizer, data: bytes, options: LocalizeOptions, request_id: str
    ) -> DecodedQuery:
        loop = asyncio.get_running_loop()
        # Whoever leaves, or is too late, while it waits for a thread cancels this, and is never decoded.
        return await loop.run_in_executor(self._decoders, localizer.decode, data, options, request_id)

    def _do(self, works: Any) -> list[Outcome]:
        """One batch, on the owner thread: what it begins with, it ends with, whatever is published meanwhile."""
        localizer = self._localizer
        assert localizer is not None, "nobody is let in before loading is done"
        try:
            return do_works(localizer, works)
        except Exception:
            self.canary_watch.hurry()  # one bad batch, or a GPU that is lost?
            raise

    def _sing(self) -> None:
        """On the owner thread, so that localizer and canary belong together."""
        if self._localizer is not None and self._chosen is not None:
            self.canary = sing(self._localizer, self._chosen)

    def _load(self) -> None:
        settings = self.settings
        started = time.perf_counter()
        try:
            bundle = open_bundle(settings.bundle)
            # Before the model: nobody should wait for an engine's build to read that the index is of another model.
            place_index = self._parts.open_index()
            place_index.check_bundle(bundle)
            self._parts.put_on_device(place_index)
            describer = self._parts.open_describer(bundle, self._building)
            self.batcher.take_at_most(self._parts.max_batch(describer))
            localizer = self._parts.localizer(describer, place_index)
            self.still_loading("the model is being warmed up")
            describer.warm_up()
            self.engine_building = False
            self._chosen = choose_canary(localizer, self.limits)
            self.canary = sing(localizer, self._chosen)
        except SightfixError as error:
            self.failure = error
            self._readiness = Readiness("failed", str(error))
            _log.error("loading failed: %s", error)
            return
        except Exception as error:
            self.failure = SightfixError(f"loading failed ({error})", code="internal_error")
            self._readiness = Readiness("failed", "loading failed; the log says why")
            _log.exception("loading failed")
            return
        self._localizer = localizer
        self.batcher.start()
        self.canary_watch.start()
        self._heap.start()
        if self._readiness.state == "loading":
            self._readiness = Readiness("ready")
        self.watch = IndexWatch(
            self.store,
            place_index.name,
            place_index.version,
            self.observer.timed_swap(self._swap),
            settings.watch_interval_s,
        )
        self.watch.start()
        _log.info(
            "ready after %.1f s: index %s, version %s, %d references",
            time.perf_counter() - started,
            place_index.name,
            place_index.version,
            place_index.count,
        )

    def _swap(self, version: str) -> None:
        """Open a newly published version beside the one that serves, try it, and let it serve from the next batch on.

        Raises:
            SightfixError: it is damaged, of another bundle, or fails its canary; the old one goes on serving.
        """
        serving = self.require()
        place_index = self._parts.open_index(serving.place_index.name, version)
        self._parts.put_on_device(place_index)
        try:
            localizer = self._parts.localizer(serving.describer, place_index)
            chosen = choose_canary(localizer, self.limits)
            report = sing(localizer, chosen)
        except BaseException:
            leave_device(place_index)
            raise
        self.tracks.prepare(place_index)
        done: Future[None] = Future()

        def swap() -> None:
            if not done.set_running_or_notify_cancel():
                return
            self._localizer, self._chosen, self.canary = localizer, chosen, report
            self.canary_watch.heard()
            done.set_result(None)

        self.batcher.on_owner_thread(swap)
        with contextlib.suppress(TimeoutError):
            done.result(_SWAP_WAIT_S)
        # Called off for good: what was reported as refused must not be served when the model comes to rest at last.
        if done.cancel():
            leave_device(place_index)
            raise SightfixError(
                f"the model did not come to rest for {_SWAP_WAIT_S:g} s",
                remedy="Activate the version again when the server is less busy",
                code="internal_error",
            )
        done.result()
        self.tracks.swapped(place_index)
        leave_device(serving.place_index)
        _log.info(
            "version %s serves now, %d references; %s did before",
            place_index.version,
            place_index.count,
            serving.place_index.version,
        )

    def _building(self, reason: str) -> None:
        self.engine_building = True
        self.still_loading(reason)
