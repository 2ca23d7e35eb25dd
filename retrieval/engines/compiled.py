"""What a compiled engine is made for: batch sizes, since any other shape would build for minutes while serving, and a
place in the cache that no other model or machine shares.
"""

import os
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle import Precision
from retrieval.errors import ParameterError

CACHE_VARIABLE: Final = "SIGHTFIX_ENGINE_CACHE"


@dataclass(frozen=True, slots=True)
class BatchProfile:
    """One optimisation profile: the engine accepts min to max images at once and is fastest at opt.

    Raises:
        ParameterError: not 1 ≤ min ≤ opt ≤ max.
    """

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise ParameterError(f"the batch profile {self} is not 1 ≤ min ≤ opt ≤ max")

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


@dataclass(frozen=True, slots=True)
class BatchProfiles:
    """The profiles of an engine, adjoining, from 1 to the largest batch.

    Batches are padded to powers of two (and to the largest), so that few shapes ever reach the runtime.

    Args:
        profiles: the first begins at 1, each next one where the one before ends, plus one.

    Raises:
        ParameterError: none, or gaps or overlaps between them.
    """

    profiles: tuple[BatchProfile, ...]

    def __post_init__(self) -> None:
        expected = 1
        for profile in self.profiles:
            if profile.min != expected:
                raise ParameterError(f"the batch profile {profile} should begin at {expected}")
            expected = profile.max + 1
        if not self.profiles:
            raise ParameterError("an engine needs a batch profile")

    @property
    def max_batch(self) -> int:
        """The largest batch."""
        return self.profiles[-1].max

    @property
    def sizes(self) -> tuple[int, ...]:
        """The batch sizes that reach the runtime, ascending: powers of two, and the largest."""
        powers = [1 << i for i in range(self.max_batch.bit_length()) if 1 << i < self.max_batch]
        return (*powers, self.max_batch)

    def padded_size(self, count: int) -> int:
        """The batch size that `count` images are run at.

        Raises:
            ParameterError: none, or more than the engine was built for.
        """
        if not 1 <= count <= self.max_batch:
            raise ParameterError(
                f"a batch of {count} images, and the engine takes 1 to {self.max_batch}",
                remedy="Send smaller batches, or build the engine for larger ones",
            )
        return self.sizes[bisect_left(self.sizes, count)]

    def choose(self, count: int) -> int:
        """The index of the profile for a batch of `count` images, after padding."""
        size = self.padded_size(count)
        return next(i for i, profile in enumerate(self.profiles) if size <= profile.max)

    def pad(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(N, …) → (padded_size(N), …), filled with zeros; the same array when nothing is missing."""
        missing = self.padded_size(len(images)) - len(images)
        if missing == 0:
            return images
        return np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)])

    def __str__(self) -> str:
        return ",".join(str(profile) for profile in self.profiles)


def default_profiles(max_batch: int = 32) -> BatchProfiles:
    """One profile for a robot's single frame and one for everything larger.

    Raises:
        ParameterError: max_batch is below 1.
    """
    single = BatchProfile(1, 1, 1)
    if max_batch == 1:
        return BatchProfiles((single,))
    return BatchProfiles((single, BatchProfile(2, max(2, max_batch // 2), max_batch)))


@dataclass(frozen=True, slots=True)
class EngineKey:
    """All that a compiled engine depends on.

    Attributes:
        graph_sha256: of the ONNX file it was built from, in hex.
        tensorrt_version: such as `10.13.3`.
        architecture: of the GPU, such as `sm90`.
        precision: of the graph.
        profiles: batch sizes it was built for.
        built_by: `onnxruntime-1.31.1` or `tensorrt`: their files are not interchangeable.
    """

    graph_sha256: str
    tensorrt_version: str
    architecture: str
    precision: Precision
    profiles: BatchProfiles
    built_by: str

    def __post_init__(self) -> None:
        for part in (self.tensorrt_version, self.architecture, self.built_by):
            if not part or set(part) & set("/\\\0") or part.startswith("."):
                raise ParameterError(f"{part!r} cannot be part of an engine's folder name")

    @property
    def folder(self) -> Path:
        """Relative path of the engine's folder: one of the model, one of everything else in it."""
        profiles = str(self.profiles).replace(":", "-").replace(",", "_")
        name = f"{self.architecture}-trt{self.tensorrt_version}-{self.precision}-b{profiles}-{self.built_by}"
        return Path(self.graph_sha256) / name


def default_engine_cache() -> Path:
    """`SIGHTFIX_ENGINE_CACHE`, or `sightfix/engines` in the user's cache folder (XDG_CACHE_HOME, ~/.cache)."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "sightfix" / "engines"
