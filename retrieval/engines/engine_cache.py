"""Where compiled engines are kept, so that a second start builds nothing and no engine is ever used for another model.

An engine is right for one graph, one TensorRT, one GPU architecture, one precision and one set of batch profiles. All
of them are in the name of its folder, so whatever changes, another folder is used. Old ones are left to the operator:
two servers of different versions may share a cache.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from retrieval.bundle import Precision
from retrieval.engines.batch_profiles import BatchProfiles
from retrieval.errors import ParameterError

CACHE_VARIABLE: Final = "SIGHTFIX_ENGINE_CACHE"


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
