"""The one localizer of a server process: loaded in the background, called by one thread, with a bounded queue."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retrieval.answer import LocalizeAnswer
from retrieval.bundle import Bundle, open_bundle
from retrieval.describer import Describer
from retrieval.errors import SightfixError
from retrieval.fix import FixSettings
from retrieval.images import ImageLimits
from retrieval.index_folder import find_index
from retrieval.localizer import DecodedQuery, LocalizeOptions, Localizer
from retrieval.machine import available_cores
from retrieval.place_index import PlaceIndex
from service.problems import RequestError
from service.settings import ServerSettings

_log = logging.getLogger("sightfix.service")

State = Literal["loading", "ready", "failed", "stopping"]


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the server can answer, and why not."""

    state: State
    reason: str | None = None


class LiveLocalizer:
    """Owns the localizer. Decoding runs in bounded threads; the model and the index belong to one thread.

    Args:
        settings: of the server.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.failure: SightfixError | None = None
        self._readiness = Readiness("loading", "the model and the place index are being loaded")
        self._localizer: Localizer | None = None
        self._waiting = 0
        self._decoders = ThreadPoolExecutor(settings.decode_threads or available_cores(), "decode")
        self._owner = ThreadPoolExecutor(1, "localize")
        self._loader: threading.Thread | None = None

    @property
    def readiness(self) -> Readiness:
        """Whether the server can answer."""
        return self._readiness

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
        if self._localizer is None or self._readiness.state != "ready":
            raise RequestError(
                f"the server is not ready: {self._readiness.reason}", code="not_ready", remedy="Try again in a moment"
            )
        return self._localizer

    async def localize(self, data: bytes, options: LocalizeOptions, request_id: str) -> LocalizeAnswer:
        """Answer for one encoded photo.

        Raises:
            ImageError: it cannot be decoded.
            RequestError: not ready, or too many photos are waiting (``queue_full``, 429).
        """
        localizer = self.require()
        with self._admitted():
            started = time.perf_counter()
            loop = asyncio.get_running_loop()
            query = await loop.run_in_executor(self._decoders, localizer.decode, data, options, request_id)
            queued = time.perf_counter()
            answer, begun = await loop.run_in_executor(self._owner, _localize_one, localizer, query)
            total_ms = (time.perf_counter() - started) * 1e3
        timings = answer.timings_ms.model_copy(update={"queue": (begun - queued) * 1e3, "total": total_ms})
        return answer.model_copy(update={"timings_ms": timings})

    async def in_decoder(self, work: Callable[[Path], bytes], path: Path) -> bytes:
        """Run other image work in the bounded decode threads."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work, path)

    def stop(self) -> None:
        """Refuse new work and wait for the work in hand."""
        self._readiness = Readiness("stopping", "the server is shutting down")
        self._decoders.shutdown(wait=True, cancel_futures=True)
        self._owner.shutdown(wait=True, cancel_futures=True)

    @contextlib.contextmanager
    def _admitted(self) -> Iterator[None]:
        limit = self.settings.max_waiting
        if self._waiting >= limit:
            raise RequestError(f"{limit} photos are waiting already", code="queue_full", remedy="Try again in a moment")
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    def _load(self) -> None:
        settings = self.settings
        started = time.perf_counter()
        try:
            bundle = open_bundle(settings.bundle)
            # Before the model: nobody should wait for an engine's build to read that the index is of another model.
            place_index = PlaceIndex.open(find_index(settings.indexes, settings.index))
            place_index.check_bundle(bundle)
            describer = self._open_describer(bundle)
            self._localizer = Localizer(
                describer,
                place_index,
                FixSettings(method=settings.fix_method),
                ImageLimits(settings.max_image_bytes, settings.max_pixels),
            )
            self.still_loading("the model is being warmed up")
            describer.warm_up()
        except SightfixError as error:
            self.failure = error
            self._readiness = Readiness("failed", str(error))
            _log.error("loading failed: %s", error)
        except Exception as error:
            self.failure = SightfixError(f"loading failed ({error})", code="internal_error")
            self._readiness = Readiness("failed", "loading failed; the log says why")
            _log.exception("loading failed")
        else:
            self._readiness = Readiness("ready")
            _log.info(
                "ready after %.1f s: index %s, version %s, %d references",
                time.perf_counter() - started,
                place_index.name,
                place_index.version,
                place_index.count,
            )

    def _open_describer(self, bundle: Bundle) -> Describer:
        settings = self.settings
        return Describer(
            bundle,
            provider=settings.provider,
            precision=settings.precision,
            threads=settings.threads,
            allow_cpu_fallback=settings.allow_cpu_fallback,
            gpu_mem_limit=settings.gpu_mem_limit,
            engine_cache=settings.engine_cache,
            on_build=self.still_loading,
        )


def _localize_one(localizer: Localizer, query: DecodedQuery) -> tuple[LocalizeAnswer, float]:
    begun = time.perf_counter()
    return localizer.localize([query])[0], begun
