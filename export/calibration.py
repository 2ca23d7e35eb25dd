"""What int8 must know of a network's activations: their ranges and means over calibration photos, measured once."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.calibrate import (
    CalibrationDataReader,
    CalibrationMethod,
    TensorData,
    TensorsData,
    create_calibrator,
)

from export.graph_structure import constants
from retrieval.bundle import INPUT_NAME
from retrieval.machine import available_cores

# The largest integer of a symmetric int8 weight.
_LARGEST: Final = 127

# The operator set from which ReduceMean takes its axes as an input.
_AXES_ARE_INPUTS: Final = 18


@dataclass(frozen=True)
class Calibration:
    """What was measured over the calibration photos.

    Attributes:
        ranges: of each tensor, as ONNX Runtime's quantiser takes them: mean over photos of the smallest and of the
            largest value.
        bias_shifts: by node with a weight and a bias, what is to be added to its bias, (output channels,) float32.
        photos: how many were measured.
    """

    ranges: TensorsData
    bias_shifts: dict[str, NDArray[np.float32]]
    photos: int


def calibrate(
    model: onnx.ModelProto,
    photos: NDArray[np.uint8],
    operators: Sequence[str],
    on_photo: Callable[[int], None],
) -> Calibration:
    """Measure a graph's activations.

    A range is the mean over photos of each photo's extremes, which one odd photo cannot stretch. Bias shifts undo what
    rounding the weights does to the mean of each channel: -(rounded weights - weights) · mean input, as in Nagel et
    al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, equation 12, with
    measured means. With the default bundle that takes two thirds of int8's error away.

    Args:
        model: fp32, from `tidied`.
        photos: (n, H, W, 3) uint8.
        operators: types of the operators whose inputs and outputs are measured.
        on_photo: is told how many photos are done, from 0 to 2 n.
    """
    return Calibration(
        ranges=_ranges(model, photos, operators, on_photo),
        bias_shifts=_bias_shifts(model, photos, lambda done: on_photo(len(photos) + done)),
        photos=len(photos),
    )


class _OnePhotoAtATime(CalibrationDataReader):  # type: ignore[misc]
    """Feeds ONNX Runtime's calibrator."""

    def __init__(self, photos: NDArray[np.uint8], on_photo: Callable[[int], None]) -> None:
        self._photos: Iterator[tuple[int, NDArray[np.uint8]]] = enumerate(photos)
        self._on_photo = on_photo

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next photo, or None."""
        number, photo = next(self._photos, (0, None))
        if photo is None:
            return None
        self._on_photo(number + 1)
        return {INPUT_NAME: photo[None]}


def _ranges(
    model: onnx.ModelProto, photos: NDArray[np.uint8], operators: Sequence[str], on_photo: Callable[[int], None]
) -> TensorsData:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        calibrator = create_calibrator(
            path,
            list(operators),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=CalibrationMethod.MinMax,
            # "Moving average" of one collection is the plain mean over its photos.
            extra_options={"moving_average": True, "averaging_constant": 1.0},
        )
        calibrator.collect_data(_OnePhotoAtATime(photos, on_photo))
        ranges = calibrator.compute_data()
    for name, data in ranges.items():
        low, high = (np.float32(np.asarray(value).min()) for value in data.range_value)
        ranges[name] = TensorData(lowest=low, highest=high)
    return ranges


def _bias_shifts(
    model: onnx.ModelProto, photos: NDArray[np.uint8], on_photo: Callable[[int], None]
) -> dict[str, NDArray[np.float32]]:
    values = constants(model)
    ranks = {"Conv": 4, "Gemm": 2}
    nodes = [
        node
        for node in model.graph.node
        if node.input[1:] and node.input[1] in values and ranks.get(node.op_type) == values[node.input[1]].ndim
    ]
    means = _channel_means(model, nodes, photos, on_photo)
    shifts = {}
    for node in nodes:
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
            continue
        weight = values[node.input[1]]
        if node.op_type == "Gemm" and not attributes.get("transB", 0):
            weight = weight.T
        shifts[node.name] = bias_shift(weight, means[node.input[0]], attributes.get("group", 1))
    return shifts


def bias_shift(weight: NDArray[np.float32], means: NDArray[np.float32], groups: int) -> NDArray[np.float32]:
    """What takes the mean error of a layer's rounded weights back.

    Args:
        weight: (O, I / groups, …) float32.
        means: (I,) float32, of the layer's input channels.
        groups: of the convolution.

    Returns:
        (O,) float32, to be added to the bias.
    """
    by_channel = weight.reshape(len(weight), -1)
    scale = np.abs(by_channel).max(axis=1, keepdims=True) / _LARGEST
    scale[scale == 0] = 1.0
    error = np.round(by_channel / scale) * scale - by_channel
    per_input = error.reshape(*weight.shape[:2], -1).sum(axis=2)
    group = np.arange(len(weight)) * groups // len(weight)
    seen = means.reshape(groups, -1)[group]
    return np.asarray(-(per_input * seen).sum(axis=1), np.float32)


def _channel_means(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    photos: NDArray[np.uint8],
    on_photo: Callable[[int], None],
) -> dict[str, NDArray[np.float32]]:
    """The mean of each channel of the nodes' inputs, over photos and places, (I,) float32 by tensor."""
    measured = onnx.ModelProto()
    measured.CopyFrom(model)
    names = list(dict.fromkeys(node.input[0] for node in nodes))
    spatial = {node.input[0] for node in nodes if node.op_type == "Conv"}
    opset = next(entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"})
    for number, name in enumerate(names):
        axes = [0, 2, 3] if name in spatial else [0]
        inputs, attributes = [name], {}
        if opset >= _AXES_ARE_INPUTS:
            inputs.append(f"axes {number}")
            measured.graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), f"axes {number}"))
        else:
            attributes["axes"] = axes
        measured.graph.node.append(
            helper.make_node("ReduceMean", inputs, [f"mean of {name}"], keepdims=0, **attributes)
        )
        measured.graph.output.append(helper.make_tensor_value_info(f"mean of {name}", TensorProto.FLOAT, [None]))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(measured.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs = [f"mean of {name}" for name in names]
    total = {name: np.zeros((), np.float64) for name in names}
    for number, photo in enumerate(photos):
        for name, mean in zip(names, session.run(outputs, {INPUT_NAME: photo[None]}), strict=True):
            total[name] = total[name] + mean
        on_photo(number + 1)
    return {name: np.asarray(mean / len(photos), np.float32) for name, mean in total.items()}
