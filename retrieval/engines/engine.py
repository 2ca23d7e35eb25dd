"""The engine: a graph made ready to run on one device by one runtime, and the contract that the graph must keep."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle import INPUT_NAME, OUTPUT_NAME, Bundle, Precision
from retrieval.engines.compiled import BatchProfiles, default_engine_cache, default_profiles
from retrieval.errors import BundleError
from retrieval.machine import available_cores

Provider = Literal["tensorrt", "cuda", "openvino", "cpu"]

# Name, type as numpy calls it, and shape without the batch.
TensorContract = tuple[str, str, list[int]]


@dataclass(frozen=True, slots=True)
class EngineDescription:
    """What really computes, for `/info`, metrics and logs.

    Attributes:
        provider: where it computes.
        precision: of the graph it runs.
        runtime: name and version, such as `ONNX Runtime 1.32.0`.
        device: for people, such as `CPU, 2 threads` or `NVIDIA H100 80GB HBM3`.
    """

    provider: Provider
    precision: Precision
    runtime: str
    device: str


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """What is to be run, whichever provider runs it.

    Attributes:
        bundle: whose graph.
        precision: of the graph.
        threads: of the CPU.
        profiles: the batch sizes of compiled engines.
        cache: where compiled engines are kept.
        gpu_mem_limit: of ONNX Runtime's memory arena on a GPU, bytes; None sets no limit.
        on_build: called, with a message for people, before a build of some minutes.
    """

    bundle: Bundle
    precision: Precision = "fp32"
    threads: int = field(default_factory=available_cores)
    profiles: BatchProfiles = field(default_factory=default_profiles)
    cache: Path = field(default_factory=default_engine_cache)
    gpu_mem_limit: int | None = None
    on_build: Callable[[str], None] = lambda _: None


class Engine(Protocol):
    """Runs a bundle's graph. One caller at a time."""

    @property
    def description(self) -> EngineDescription:
        """What computes."""
        ...

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run one batch, at most as large as the engine was made for.

        Args:
            images: (N, H, W, 3) uint8 RGB, C-contiguous, N ≥ 1.

        Returns:
            (N, D) float32, an array of its own: the next run does not change it.
        """
        ...

    def close(self) -> None:
        """Free memory and device; the engine cannot be used afterwards."""
        ...


def check_contract(bundle: Bundle, inputs: Sequence[TensorContract], outputs: Sequence[TensorContract]) -> None:
    """Check what a runtime says of a loaded graph against what the bundle's manifest says.

    Args:
        bundle: whose graph.
        inputs: name, type and shape without the batch of each input.
        outputs: the same of each output.

    Raises:
        BundleError: other inputs or outputs than the bundle's.
    """
    wanted_in = [(INPUT_NAME, "uint8", list(bundle.image_shape))]
    wanted_out = [(OUTPUT_NAME, "float32", [bundle.descriptor_dim])]
    if list(inputs) != wanted_in or list(outputs) != wanted_out:
        raise BundleError(
            f"the graph has input {list(inputs)} and output {list(outputs)}, which is not the bundle's contract",
            where=str(bundle.folder),
            remedy="Export the bundle again",
        )
