"""The engine: a graph made ready to run on one device by one runtime."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle import Precision

Provider = Literal["tensorrt", "cuda", "openvino", "cpu"]


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
