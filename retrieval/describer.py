"""Bundle and images in, descriptors out: one engine, whichever provider runs it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle import Bundle, Precision
from retrieval.engines.choosing import ProviderChoice, choose_engine
from retrieval.engines.compiled import default_engine_cache, default_profiles
from retrieval.engines.engine import EngineDescription, EngineRequest, Provider
from retrieval.errors import BundleError, ParameterError
from retrieval.images import RgbImage
from retrieval.machine import available_cores

Descriptors = NDArray[np.float32]

# These compile, search algorithms or take memory for each batch size when they first see it.
_WARM_EVERY_SIZE: Final[frozenset[Provider]] = frozenset({"tensorrt", "cuda"})


class Describer:
    """Describes images with a bundle's graph. Calls may come from any thread; they run one after another.

    Args:
        bundle: the opened bundle.
        provider: where to compute, `auto` for the best there is. A named one that cannot be had is an error, never a
            silent fallback. The default is the one that gives the same descriptors on every machine and never builds.
        precision: which of the bundle's graphs.
        threads: of the CPU; by default every core this process may use.
        max_batch: larger inputs are described in pieces of this many images; compiled engines are built for it.
        allow_cpu_fallback: whether the CPU may take the place of a named provider that cannot be had.
        gpu_mem_limit: of ONNX Runtime's memory arena on a GPU, bytes; None sets no limit.
        engine_cache: where compiled engines are kept; see `default_engine_cache`.
        on_build: called with a message for people when a build of some minutes begins.

    Raises:
        BundleError: the graph cannot be loaded, or does not have the contract's input and output.
        ParameterError: an unknown provider, or max_batch or threads below 1.
        ProviderUnavailableError: the provider is not available on this machine.
        MissingExtraError: its runtime is not installed.
        EngineError, DeviceError: its compiled engine is damaged, or the GPU refuses.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        provider: ProviderChoice = "cpu",
        precision: Precision = "fp32",
        threads: int | None = None,
        max_batch: int = 32,
        allow_cpu_fallback: bool = False,
        gpu_mem_limit: int | None = None,
        engine_cache: Path | None = None,
        on_build: Callable[[str], None] = lambda _: None,
    ) -> None:
        if max_batch < 1:
            raise ParameterError(f"max_batch {max_batch} is below 1")
        if threads is not None and threads < 1:
            raise ParameterError(f"threads {threads} is below 1")
        self.bundle = bundle
        self.precision = precision
        self.threads = threads or available_cores()
        self.max_batch = max_batch
        self._profiles = default_profiles(max_batch)
        self._request = EngineRequest(
            bundle,
            precision,
            self.threads,
            self._profiles,
            engine_cache or default_engine_cache(),
            gpu_mem_limit,
            on_build,
        )
        self._wanted = provider, allow_cpu_fallback
        chosen = choose_engine(self._request, provider, allow_cpu_fallback=allow_cpu_fallback)
        self.passed_over = chosen.passed_over
        self._engine = chosen.engine
        self._one_at_a_time = Lock()

    def with_bundle(self, bundle: Bundle) -> "Describer":
        """Another describer, of another bundle and otherwise like this one, which goes on working.

        Each has an engine of its own, and is closed by whoever opened it.

        Raises:
            SightfixError: as the constructor.
        """
        provider, allow_cpu_fallback = self._wanted
        return Describer(
            bundle,
            provider=provider,
            precision=self.precision,
            threads=self.threads,
            max_batch=self.max_batch,
            allow_cpu_fallback=allow_cpu_fallback,
            gpu_mem_limit=self._request.gpu_mem_limit,
            engine_cache=self._request.cache,
            on_build=self._request.on_build,
        )

    def bundle_moved(self, bundle: Bundle) -> None:
        """Read further files of the bundle from another folder that holds it; the engine goes on as it is.

        Args:
            bundle: the same one, opened there; another is our own mistake.
        """
        assert bundle.manifest == self.bundle.manifest, "another bundle needs another describer"
        self.bundle = bundle

    @property
    def description(self) -> EngineDescription:
        """What really computes."""
        return self._engine.description

    @property
    def provider(self) -> Provider:
        """Where it computes."""
        return self._engine.description.provider

    def describe(self, images: NDArray[np.uint8] | Sequence[RgbImage]) -> Descriptors:
        """Describe images that `decode_image` made with this bundle's preprocessing.

        Args:
            images: (N, H, W, 3) uint8 RGB, or a sequence of (H, W, 3); N may be 0.

        Returns:
            (N, D) float32, unit rows.

        Raises:
            ParameterError: another size or type than the bundle's input.
            BundleError: the graph returned something that is not a number.
            DeviceError: the GPU failed.
        """
        self._check(images)
        if len(images) == 0:
            return np.empty((0, self.bundle.descriptor_dim), np.float32)
        pieces = []
        for start in range(0, len(images), self.max_batch):
            piece = np.ascontiguousarray(images[start : start + self.max_batch])
            with self._one_at_a_time:
                pieces.append(self._engine.run(piece))
        descriptors: Descriptors = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        if not np.isfinite(descriptors).all():
            raise BundleError("the graph returned a descriptor that is not finite", where=str(self.bundle.folder))
        return descriptors

    def warm_up(self) -> None:
        """Describe blank batches, so that no real image pays for lazy initialisation.

        One batch on the CPU; every batch size that can reach a GPU, where each may cost seconds the first time.
        """
        for size in self._profiles.sizes if self.provider in _WARM_EVERY_SIZE else (1,):
            self.describe(np.zeros((size, *self.bundle.image_shape), np.uint8))

    def close(self) -> None:
        """Free the engine's memory; the describer cannot be used afterwards."""
        self._engine.close()

    def _check(self, images: NDArray[np.uint8] | Sequence[RgbImage]) -> None:
        size = self.bundle.image_shape
        if isinstance(images, np.ndarray):
            # One look at an array is enough: all its images have the same size and type.
            kinds = {(images.shape[1:], images.dtype)} if len(images) else set()
        else:
            kinds = {(image.shape, image.dtype) for image in images}
        for shape, dtype in kinds:
            if shape != size or dtype != np.uint8:
                raise ParameterError(
                    f"an image is {shape} {dtype}, the bundle wants {size} uint8",
                    remedy="Decode it with the bundle's preprocessing (retrieval.images.decode_image)",
                )
