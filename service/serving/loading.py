"""What a server loads: the model and the place index as its settings say, and new versions as they are published."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from retrieval.bundle import Bundle
from retrieval.describer import Describer
from retrieval.errors import SightfixError, StoreUnavailableError
from retrieval.index.place_index import PlaceIndex
from retrieval.index.searchable import PlaceIndexStore, SearchablePlaceIndex
from retrieval.index.vectors.gpu import GpuVectors
from retrieval.machine import give_back_free_pages
from service.settings import ServerSettings

_log = logging.getLogger("sightfix.service")

# Photos that the model takes at once, unless the settings say. On a CPU eight are as quick, each, as more; and a photo
# that comes when a large batch has just begun waits for all of it, which made answers late.
CPU_BATCH: Final = 8

GPU_BATCH: Final = 32

# One turn locks the heap for some milliseconds.
_TRIM_EVERY_S: Final = 60.0


def open_index(
    settings: ServerSettings,
    store: PlaceIndexStore,
    name: str | None = None,
    version: str | None = None,
) -> SearchablePlaceIndex:
    """A place index, ready to be searched where the settings say.

    Args:
        settings: of the server.
        store: of the place indexes.
        name: by default the one that the settings name, or the only one.
        version: by default the current one.

    Raises:
        SightfixError: it is missing or damaged.
        DeviceError: its vectors do not fit on the GPU.
    """
    place_index = store.open(store.find(settings.index) if name is None else name, version)
    if settings.search_device == "gpu" and isinstance(place_index, PlaceIndex):
        return place_index.with_vectors(GpuVectors(place_index.vectors))
    return place_index


def free_device(place_index: SearchablePlaceIndex) -> None:
    """Free what `open_index` took of a GPU; searches under way end on the CPU."""
    if isinstance(place_index, PlaceIndex) and isinstance(place_index.vectors, GpuVectors):
        place_index.vectors.close()


def open_describer(settings: ServerSettings, bundle: Bundle, on_build: Callable[[str], None]) -> Describer:
    """The model, not yet warm.

    Args:
        settings: of the server.
        bundle: of the model.
        on_build: called with the reason when an engine has to be built first.

    Raises:
        SightfixError: the bundle, or the provider that the settings name, does not work here.
    """
    return Describer(
        bundle,
        provider=settings.provider,
        precision=settings.precision,
        threads=settings.threads,
        max_batch=settings.max_batch or GPU_BATCH,
        allow_cpu_fallback=settings.allow_cpu_fallback,
        gpu_mem_limit=settings.gpu_mem_limit,
        engine_cache=settings.engine_cache,
        on_build=on_build,
    )


def batch_limit(settings: ServerSettings, provider: str) -> int:
    """How many photos a model should be given at once.

    Args:
        settings: of the server.
        provider: where the model computes.
    """
    return settings.max_batch or (CPU_BATCH if provider in ("cpu", "openvino") else GPU_BATCH)


@dataclass(frozen=True, slots=True)
class SwapReport:
    """What became of a published version.

    Attributes:
        version: its name.
        result: whether it is served now, or was refused and the version before goes on.
        reason: why it was refused.
    """

    version: str
    result: Literal["served", "refused"]
    reason: str | None = None


class IndexWatch:
    """Looks for new versions at intervals, on a thread of its own, and has them served without a restart.

    A version that was refused is tried again only after another one was current, on request, or if the store could not
    be reached.

    Args:
        store: of the index.
        name: of the index.
        version: that is served now.
        swap: opens, checks and serves a version; raises to refuse it.
        interval_s: seconds between two looks.
    """

    def __init__(
        self, store: PlaceIndexStore, name: str, version: str, swap: Callable[[str], None], interval_s: float
    ) -> None:
        self._store = store
        self._name = name
        self._seen = version
        self._swap = swap
        self._interval_s = interval_s
        self._stopped = threading.Event()
        self._looking = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self.last_swap: SwapReport | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching; a swap under way is finished."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(60.0)

    def look(self, *, again: bool = False) -> None:
        """Look now, and serve the current version if it is new.

        Args:
            again: try also a version that was refused.
        """
        with self._looking:
            try:
                version = self._store.current(self._name)
            except SightfixError as error:
                # CURRENT was damaged by hand, or the engine is away; the served version goes on.
                _log.warning("%s", error)
                return
            last = self.last_swap
            refused = last is not None and (last.version, last.result) == (version, "refused")
            if version == self._seen and not (again and refused):
                return
            before, self._seen = self._seen, version
            try:
                self.last_swap = self._try(version)
            except StoreUnavailableError as error:
                _log.warning("version %s is tried again: %s", version, error)
                self._seen = before
                self.last_swap = SwapReport(version, "refused", str(error))

    def _try(self, version: str) -> SwapReport:
        try:
            self._swap(version)
        except StoreUnavailableError:
            raise
        except SightfixError as error:
            _log.error("version %s is not served: %s", version, error)
            return SwapReport(version, "refused", str(error))
        except Exception as error:
            _log.exception("version %s is not served", version)
            return SwapReport(version, "refused", f"{type(error).__name__}; the log says more")
        return SwapReport(version, "served")

    def _watch(self) -> None:
        while not self._stopped.wait(self._interval_s):
            self.look()


class HeapTrimmer:
    """Returns freed heap pages to the system at intervals, so that memory does not stay at its peak for good.

    Args:
        every_s: seconds between two turns.
        trim: one turn.
    """

    def __init__(self, every_s: float = _TRIM_EVERY_S, trim: Callable[[], None] = give_back_free_pages) -> None:
        self._every_s = every_s
        self._trim = trim
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="heap", daemon=True)

    def start(self) -> None:
        """Begin with what loading has left."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def _loop(self) -> None:
        while not self._stopped.is_set():
            self._trim()
            self._stopped.wait(self._every_s)
