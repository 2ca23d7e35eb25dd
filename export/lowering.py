"""An fp32 graph in a lower precision, with the report of how far it is from fp32."""

import numpy as np
import onnx
from numpy.typing import NDArray

from export.gate import judge_precision
from export.half import to_half
from export.int8 import OnProgress, quantise
from export.source import Describe, run_on_cpu
from retrieval.bundle import Precision
from retrieval.bundle_reports import PrecisionReport
from retrieval.errors import ParameterError

# Images described at once; a batch of some hundred would take gigabytes.
_AT_ONCE = 32


def lower_precision(
    graph: onnx.ModelProto, precision: Precision, photos: NDArray[np.uint8], on_progress: OnProgress | None = None
) -> tuple[onnx.ModelProto, PrecisionReport]:
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
    fp32 = _described(run_on_cpu(graph), photos)
    if precision == "fp16":
        lower = to_half(graph)
        return lower, judge_precision(precision, fp32, _described(run_on_cpu(lower), photos))
    if precision == "int8":
        found = quantise(graph, photos, on_progress=on_progress)
        report = judge_precision(
            precision,
            fp32,
            _described(run_on_cpu(found.model), photos),
            calibration_images=found.calibration_images,
            kept_in_fp32=found.skipped,
        )
        return found.model, report
    raise ParameterError(f"{precision} is no lower precision", remedy="Choose fp16 or int8")


def _described(describe: Describe, photos: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.concatenate([describe(photos[begin : begin + _AT_ONCE]) for begin in range(0, len(photos), _AT_ONCE)])
