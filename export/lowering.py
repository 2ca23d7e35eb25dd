"""An fp32 graph in a lower precision, with the report of how far it is from fp32."""

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from export.gate import cosines, judge_precision
from export.half import to_half
from export.int8 import OnProgress, quantise
from export.source import Describe, run_on_cpu
from retrieval.bundle import Precision, PrecisionReport
from retrieval.errors import ParameterError

# Images described at once; a batch of some hundred would take gigabytes.
_AT_ONCE = 32


@dataclass(frozen=True)
class LoweredGraph:
    """A graph in a lower precision.

    Attributes:
        graph: with the contract of the fp32 one.
        report: how far it is from that.
        worst: which of the photos it describes worst.
    """

    graph: onnx.ModelProto
    report: PrecisionReport
    worst: int


def lower_precision(
    graph: onnx.ModelProto, precision: Precision, photos: NDArray[np.uint8], on_progress: OnProgress | None = None
) -> LoweredGraph:
    """Make a graph of lower precision; whether it is near enough is for `export.gate.require_gate` to say.

    Args:
        graph: fp32.
        precision: fp16 or int8.
        photos: (n, H, W, 3) uint8 to calibrate and to judge by, n ≥ 64.
        on_progress: is told what is done, how many of it, of how many.

    Raises:
        BundleError: the graph cannot be converted, or gives vectors that are no descriptors.
        ParameterError: another precision, or too few photos.
    """
    calibration_images = 0
    kept_in_fp32: tuple[str, ...] = ()
    if precision == "fp16":
        lower = to_half(graph)
    elif precision == "int8":
        found = quantise(graph, photos, on_progress=on_progress)
        lower, calibration_images, kept_in_fp32 = found.model, found.calibration_images, found.skipped
    else:
        raise ParameterError(f"{precision} is no lower precision", remedy="Choose fp16 or int8")
    fp32, described = _described(run_on_cpu(graph), photos), _described(run_on_cpu(lower), photos)
    report = judge_precision(
        precision, fp32, described, calibration_images=calibration_images, kept_in_fp32=kept_in_fp32
    )
    return LoweredGraph(lower, report, int(cosines(fp32, described).argmin()))


def _described(describe: Describe, photos: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.concatenate([describe(photos[begin : begin + _AT_ONCE]) for begin in range(0, len(photos), _AT_ONCE)])
