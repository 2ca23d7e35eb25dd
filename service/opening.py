"""The parts of a server's localizer, opened as its settings say: the model, the place index, and both together."""

from collections.abc import Callable
from typing import Final

from retrieval.bundle import Bundle
from retrieval.describer import Describer
from retrieval.fix import FixSettings
from retrieval.images import ImageLimits
from retrieval.localizer import Localizer
from retrieval.place_index import PlaceIndex
from retrieval.searchable_index import SearchablePlaceIndex
from retrieval.stores.contract import PlaceIndexStore
from retrieval.vectors.gpu import GpuVectors
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
