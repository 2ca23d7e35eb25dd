"""The parts of a server's localizer, opened as its settings say: the model, the place index, and both together."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from retrieval.bundle import Bundle
from retrieval.describer import Describer
from retrieval.errors import SightfixError, StoreUnavailableError
from retrieval.images import ImageLimits
from retrieval.index.place_index import PlaceIndex
from retrieval.index.searchable import PlaceIndexStore, SearchablePlaceIndex
from retrieval.index.vectors.gpu import GpuVectors
from retrieval.localize.fix import FixSettings
from retrieval.localize.localizer import Localizer
from retrieval.machine import give_back_free_pages
from service.settings import ServerSettings

# Photos that the model takes at once, unless the settings say. On a CPU eight are as quick, each, as more; and a photo
# that comes when a large batch has just begun waits for all of it, which is what made answers late.
CPU_BATCH: Final = 8

GPU_BATCH: Final = 32


class LocalizerParts:
    """Opens what a localizer is made of.

    Args:
        settings: of the server.
        store: of the place indexes.
        limits: of photos.
    """

    def __init__(self, settings: ServerSettings, store: PlaceIndexStore, limits: ImageLimits) -> None:
        self._settings = settings
        self._store = store
        self._limits = limits

    def open_index(self, name: str | None = None, version: str | None = None) -> SearchablePlaceIndex:
        """A place index.

        Args:
            name: by default the one that the settings name, or the only one.
            version: by default the current one.

        Raises:
            SightfixError: it is missing or damaged.
        """
        return self._store.open(self._store.find(self._settings.index) if name is None else name, version)

    def put_on_device(self, place_index: SearchablePlaceIndex) -> None:
        """Move its vectors to where the settings have them searched.

        Raises:
            DeviceError: they do not fit.
        """
        if self._settings.search_device == "gpu" and isinstance(place_index, PlaceIndex):
            place_index.vectors = GpuVectors(place_index.vectors)

    def open_describer(self, bundle: Bundle, on_build: Callable[[str], None]) -> Describer:
        """The model, not yet warm.

        Args:
            bundle: of the model.
            on_build: is told when an engine has to be built first, and why.

        Raises:
            SightfixError: the bundle, or what the settings want it computed by, does not work here.
        """
        settings = self._settings
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

    def max_batch(self, describer: Describer) -> int:
        """How many photos this model should be given at once."""
        on_cpu = describer.provider in ("cpu", "openvino")
        return self._settings.max_batch or (CPU_BATCH if on_cpu else GPU_BATCH)

    def localizer(self, describer: Describer, place_index: SearchablePlaceIndex) -> Localizer:
        """Both together.

        Raises:
            SightfixError: they do not belong together, or the index lacks what re-ranking needs.
        """
        fix_settings = FixSettings(method=self._settings.fix_method)
        return Localizer(describer, place_index, fix_settings, self._limits, rerank=self._settings.reranking)


def leave_device(place_index: SearchablePlaceIndex) -> None:
    """Free what `LocalizerParts.put_on_device` took."""
    if isinstance(place_index, PlaceIndex) and isinstance(place_index.vectors, GpuVectors):
        place_index.vectors.close()


# Watches which version of an index is current, and has a newly published one served without a restart.

_log = logging.getLogger("sightfix.service")


@dataclass(frozen=True, slots=True)
class SwapReport:
    """What became of a version that was published.

    Attributes:
        version: its name.
        result: it is served now, or was refused and the version before goes on.
        reason: why it was refused.
    """

    version: str
    result: Literal["served", "refused"]
    reason: str | None = None


class IndexWatch:
    """Asks the store every so often, on a thread of its own.

    A version that was refused is tried once; it is tried again only after another one was current, when somebody asks
    for it, or where it was the store that could not be asked.

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
        """Look now, and serve what is current if that is new.

        Args:
            again: try also a version that was refused.
        """
        with self._looking:
            try:
                version = self._store.current(self._name)
            except SightfixError as error:
                # A hand's doing, or an engine that is away; the served version goes on.
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


# Gives back what the heap has freed, every so often: a server's memory should not tell its busiest minute for ever.

# One turn holds the heap for some milliseconds.
EVERY_S: Final = 60.0

# Python's requests, the decoders and the model: more arenas only hold more of what was freed.
ARENAS: Final = 2


class HeapKeeper:
    """Does so on a thread of its own.

    Args:
        every_s: seconds between two turns.
        give_back: what is done in a turn.
    """

    def __init__(self, every_s: float = EVERY_S, give_back: Callable[[], None] = give_back_free_pages) -> None:
        self._every_s = every_s
        self._give_back = give_back
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="heap", daemon=True)

    def start(self) -> None:
        """Begin with what loading has left."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def _keep(self) -> None:
        while not self._stopped.is_set():
            self._give_back()
            self._stopped.wait(self._every_s)
