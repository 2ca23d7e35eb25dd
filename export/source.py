"""What is exported: an fp32 graph, and beside it the slow truth that it and all its descendants must agree with."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from retrieval.bundle import INPUT_NAME, OUTPUT_NAME, Provenance
from retrieval.engines.onnx_runtime import keep_int8_exact
from retrieval.images import Preprocessing
from retrieval.machine import available_cores

# (N, H, W, 3) uint8 RGB → (N, D) float32 unit rows.
Describe = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True)
class ExportSource:
    """A model on its way into a bundle.

    Attributes:
        name: for people; becomes the bundle's.
        graph: fp32, with the bundle's contract: ``images`` uint8 [N, H, W, 3] → ``descriptors`` float32 [N, D].
        preprocessing: from a photo to the graph's input.
        descriptor_dim: D.
        provenance: where the weights come from.
        licence: of the weights.
        truth: the same model computed another way: in PyTorch, or by the file it was imported from.
        truth_name: what computes it, for people, such as `PyTorch 2.13.0`.
    """

    name: str
    graph: onnx.ModelProto
    preprocessing: Preprocessing
    descriptor_dim: int
    provenance: Provenance
    licence: str
    truth: Describe
    truth_name: str


def run_on_cpu(model: onnx.ModelProto, threads: int | None = None) -> Describe:
    """Open a graph with the bundle's contract in ONNX Runtime on the CPU.

    Args:
        model: the graph.
        threads: of ONNX Runtime; every core by default.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or available_cores()
    options.log_severity_level = 3
    keep_int8_exact(options)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def describe(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        descriptors: NDArray[np.float32] = session.run([OUTPUT_NAME], {INPUT_NAME: images})[0]
        return descriptors

    return describe
