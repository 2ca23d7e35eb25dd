"""The localizer that a server answers with: loaded in the background, probed at intervals, swapped while it serves."""

import contextlib
import logging
import threading
import time
from concurrent.futures import Future
from typing import Any, Final

from retrieval.describer import Describer
from retrieval.errors import SightfixError
from retrieval.images import ImageLimits
from retrieval.index.searchable import PlaceIndexStore, SearchablePlaceIndex
from retrieval.localize.evidence import FixSettings
from retrieval.localize.localizer import Localizer
from service.observing.observer import Observer
from service.problems import RequestError
from service.serving.batcher import MicroBatcher
from service.serving.health import HealthProbe, Probe, ProbeReport, Readiness, choose_probe, run_probe
from service.serving.loading import (
    HeapTrimmer,
    IndexWatch,
    SwapReport,
    batch_limit,
    free_device,
    open_describer,
    open_index,
)
from service.settings import ServerSettings
from service.tracking.tracks import OpenTracks

_log = logging.getLogger("sightfix.service")

# For the batch that runs; the largest on a slow processor takes half as long.
_SWAP_WAIT_S: Final = 30.0


class LiveLocalizer:
    """Holds the localizer of the version that is served.

    Model and index are used on the batcher's owner thread only. A new version is opened and probed beside the served
    one, with a model of its own where it was described with another bundle, and both take their place between two
    batches.

    Args:
        settings: of the server.
        store: of the place indexes; not closed here.
        batcher: whose owner thread uses the localizer; started when that is loaded.
        tracks: carried over to each new version.
        observer: counts the swaps.

    Attributes:
        store: of the place indexes.
        failure: why loading failed.
        probed: the result of the last probe.
        engine_building: whether an engine is being compiled for the GPU.
    """

    def __init__(
        self,
        settings: ServerSettings,
        store: PlaceIndexStore,
        batcher: MicroBatcher[Any, Any],
        tracks: OpenTracks,
        observer: Observer,
    ) -> None:
        self.store = store
        self.failure: SightfixError | None = None
        self.probed: ProbeReport | None = None
        self.engine_building = False
        self._settings = settings
        self._limits = ImageLimits(settings.max_image_bytes, settings.max_pixels)
        self._batcher = batcher
        self._tracks = tracks
        self._observer = observer
        self._readiness = Readiness("loading", "the model and the place index are being loaded")
        self._localizer: Localizer | None = None
        self._probe: Probe | None = None
        self._health = HealthProbe(
            batcher.on_owner_thread,
            self._run_probe,
            interval_s=settings.canary_interval_s,
            max_age_s=2.0 * settings.canary_interval_s,
            hung_after_s=settings.hung_after_s,
        )
        self._heap = HeapTrimmer()
        self._loader: threading.Thread | None = None
        self._watch: IndexWatch | None = None

    @property
    def readiness(self) -> Readiness:
        """Whether the server can answer."""
        problem = self._health.problem if self._readiness.state == "ready" else None
        return Readiness("unhealthy", problem) if problem is not None else self._readiness

    @property
    def healthy(self) -> bool:
        """Whether a probe has succeeded lately."""
        return self._localizer is not None and self._health.problem is None

    @property
    def probed_at(self) -> float | None:
        """When a probe succeeded last, seconds since 1970."""
        return self._health.succeeded_at

    @property
    def hung(self) -> str | None:
        """Why the process should be restarted, or None."""
        return self._health.hung

    @property
    def last_swap(self) -> SwapReport | None:
        """What became of the version that was published last."""
        return self._watch.last_swap if self._watch is not None else None

    @property
    def localizer(self) -> Localizer | None:
        """What answers now; None before loading is done."""
        return self._localizer

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

    def start_loading(self) -> None:
        """Load in a thread of its own, so that the socket answers meanwhile."""
        self._loader = threading.Thread(target=self._load, name="load", daemon=True)
        self._loader.start()

    def wait_until_loaded(self, timeout_s: float) -> None:
        """Wait until loading has succeeded or failed, or the time is over; see `readiness`."""
        if self._loader is not None:
            self._loader.join(timeout_s)

    def probe_now(self) -> None:
        """Have the health probe run as soon as possible."""
        self._health.probe_now()

    def look_for_new_version(self, *, again: bool = False) -> None:
        """Serve the current version if it is new; see `last_swap`.

        Args:
            again: try also a version that was refused.
        """
        if self._watch is not None:
            self._watch.look(again=again)

    def begin_shutdown(self) -> None:
        """Report that this server is going away; it still answers."""
        if self._readiness.state == "ready":
            self._readiness = Readiness("stopping", "the server is shutting down")

    def stop(self) -> None:
        """End the threads; a swap under way is finished."""
        self._readiness = Readiness("stopping", "the server is shutting down")
        if self._watch is not None:
            self._watch.stop()
        self._health.stop()
        self._heap.stop()

    def _load(self) -> None:
        started = time.perf_counter()
        try:
            place_index = self._open()
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
        self._batcher.start()
        self._health.start()
        self._heap.start()
        self._watch = IndexWatch(
            self.store,
            place_index.name,
            place_index.version,
            self._observer.timed_swap(self._swap),
            self._settings.watch_interval_s,
        )
        if self._readiness.state == "loading":
            self._readiness = Readiness("ready")
        self._watch.start()
        _log.info(
            "ready after %.1f s: index %s, version %s, %d references",
            time.perf_counter() - started,
            place_index.name,
            place_index.version,
            place_index.count,
        )

    def _open(self) -> SearchablePlaceIndex:
        settings = self._settings
        place_index = open_index(settings, self.store)
        describer = open_describer(settings, place_index.open_bundle(settings.bundle), self._report_build)
        self._batcher.limit_batch(batch_limit(settings, describer.provider))
        localizer = self._localizer_of(describer, place_index)
        self._report_loading("the model is being warmed up")
        describer.warm_up()
        self.engine_building = False
        self._probe = choose_probe(localizer, self._limits)
        self.probed = run_probe(localizer, self._probe)
        self._localizer = localizer
        return place_index

    def _localizer_of(self, describer: Describer, place_index: SearchablePlaceIndex) -> Localizer:
        fix_settings = FixSettings(method=self._settings.fix_method)
        return Localizer(describer, place_index, fix_settings, self._limits, rerank=self._settings.reranking)

    def _report_build(self, reason: str) -> None:
        self.engine_building = True
        self._report_loading(reason)

    def _report_loading(self, reason: str) -> None:
        if self._readiness.state == "loading":
            self._readiness = Readiness("loading", reason)

    def _run_probe(self) -> None:
        """On the owner thread, so that localizer and probe belong together."""
        if self._localizer is not None and self._probe is not None:
            self.probed = run_probe(self._localizer, self._probe)

    def _swap(self, version: str) -> None:
        """Serve a newly published version from the next batch on, with its own model if that is another.

        Raises:
            SightfixError: it is damaged, of another bundle than the settings name, or fails its probe; the served one
                goes on.
        """
        serving = self.require()
        before = serving.place_index
        place_index = open_index(self._settings, self.store, before.name, version)
        describer = serving.describer
        try:
            describer = self._describer_of(place_index, serving.describer)
            localizer = self._localizer_of(describer, place_index)
            probe = choose_probe(localizer, self._limits)
            report = run_probe(localizer, probe)
            self._tracks.prepare(place_index)
            self._take_over(localizer, probe, report)
        except BaseException:
            free_device(place_index)
            if describer is not serving.describer:
                describer.close()
            raise
        self._tracks.swapped(place_index)
        free_device(before)
        if describer is not serving.describer:
            serving.describer.close()
            _log.info("the model is %s now; it was %s", describer.bundle.name, serving.describer.bundle.name)
        _log.info(
            "version %s serves now, %d references; %s did before",
            place_index.version,
            place_index.count,
            before.version,
        )

    def _describer_of(self, place_index: SearchablePlaceIndex, serving: Describer) -> Describer:
        """The one that serves, or a new and warm one beside it where a version was described with another bundle."""
        settings = self._settings
        if place_index.manifest.bundle.fingerprint == serving.bundle.fingerprint:
            return serving
        try:
            describer = open_describer(settings, place_index.open_bundle(settings.bundle), self._report_build)
            describer.warm_up()
        finally:
            self.engine_building = False
        return describer

    def _take_over(self, localizer: Localizer, probe: Probe, report: ProbeReport) -> None:
        """Have the next batch answered by a localizer.

        Raises:
            SightfixError: the batch that runs does not end.
        """
        done: Future[None] = Future()

        def swap() -> None:
            if not done.set_running_or_notify_cancel():
                return
            self._localizer, self._probe, self.probed = localizer, probe, report
            self._batcher.limit_batch(batch_limit(self._settings, localizer.describer.provider))
            self._health.record_success()
            done.set_result(None)

        self._batcher.on_owner_thread(swap)
        with contextlib.suppress(TimeoutError):
            done.result(_SWAP_WAIT_S)
        # Cancelled for good: a version that was reported as refused must not be served when the model is idle at last.
        if done.cancel():
            raise SightfixError(
                f"the model was busy for {_SWAP_WAIT_S:g} s",
                remedy="Activate the version again when the server is less busy",
                code="internal_error",
            )
        done.result()
