"""An fp32 graph in a lower precision, with the report of how far it is from fp32."""

import numpy as np
import onnx
from numpy.typing import NDArray

from retrieval.bundle import Precision
from retrieval.bundle_reports import PrecisionReport
from retrieval.errors import ParameterError


def lower_precision(
    graph: onnx.ModelProto, precision: Precision, photos: NDArray[np.uint8]
) -> tuple[onnx.ModelProto, PrecisionReport]:
    """Make a graph of lower precision; whether it is near enough is for the gate to say.

    Args:
        graph: fp32.
        precision: fp16 or int8.
        photos: (n, H, W, 3) uint8 to calibrate and to judge by.
    """
    raise ParameterError(precision)


MIN_PHOTOS = 64


def require_gate(precision: Precision, report: PrecisionReport, *, accept_loss: bool) -> PrecisionReport:
    raise NotImplementedError
