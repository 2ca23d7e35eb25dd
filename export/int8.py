"""The int8 graph: static QDQ, weights per channel, quantisation ranges from photos; the worst layers stay in fp32."""

import logging
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import (
    CalibrationDataReader,
    CalibrationMethod,
    TensorData,
    TensorsData,
    create_calibrator,
)
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from retrieval.bundle import INPUT_NAME
from retrieval.bundle.exportable import cosines, describe_in_batches, open_on_cpu, run_on_cpu
from retrieval.bundle.onnx_graph import WEIGHTED, constants, consumers, head, producers, tail, tidied
from retrieval.errors import BundleError, ParameterError

# Cosine to the fp32 descriptor of the worst photo; see `export.precision`.
MIN_COSINE_INT8: Final = 0.99

# Half the loss that the precision check allows: the check, and the user, see more photos than the search does.
_TARGET: Final = 1.0 - (1.0 - MIN_COSINE_INT8) / 2

# What is done to the outputs of convolutions before the next one: runtimes do it in int8 where all around it is int8.
_BETWEEN: Final = frozenset({"Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "MaxPool", "Relu"})

# A layer that goes straight into these makes the patches of a transformer: a hundredth of its work, and all that it
# will ever see. Quantised, it cost OpenVINO 2026.4 a cosine of 0.98, though ONNX Runtime 1.32 had 0.999.
_REARRANGING: Final = frozenset({"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})

# The largest integer of a symmetric int8 weight.
_LARGEST: Final = 127

# The operator set from which ReduceMean takes its axes as an input.
_AXES_ARE_INPUTS: Final = 18

# The loss of each layer is measured on the photos that suffered most: they separate the layers best, and more would
# only take longer.
_PHOTOS_FOR_LOSS: Final = 8

# How many of the worst layers are left out, one trial after another.
_TRIALS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_BATCH: Final = 8


@dataclass(frozen=True)
class QuantisedGraph:
    """An int8 graph and how it was found.

    Attributes:
        model: QDQ, with the bundle's contract.
        kept_in_fp32: names of the layers that stay in fp32 because quantising them hurts most; pooling and all that
            follows it always stay and are not listed.
        worst_cosine: to fp32, over the photos that gave no ranges.
        range_photos: how many photos the quantisation ranges come from.
    """

    model: onnx.ModelProto
    kept_in_fp32: tuple[str, ...]
    worst_cosine: float
    range_photos: int


@dataclass(frozen=True)
class ActivationStatistics:
    """What int8 must know of a network's activations, measured over photos.

    Attributes:
        ranges: of each tensor, as ONNX Runtime's quantiser takes them: mean over photos of the smallest and of the
            largest value.
        bias_shifts: by node with a weight and a bias, what is to be added to its bias, (output channels,) float32.
    """

    ranges: TensorsData
    bias_shifts: dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Trial:
    """A graph in which some layers are quantised.

    Attributes:
        model: the graph.
        kept_in_fp32: names of the layers that are not, in the order of the graph.
        cosines: (n,) to the fp32 descriptors; -1 where a descriptor is not finite.
    """

    model: onnx.ModelProto
    kept_in_fp32: tuple[str, ...]
    cosines: NDArray[np.float64]

    @property
    def worst_cosine(self) -> float:
        """Of the photo that is described worst."""
        return float(self.cosines.min())


def quantise(
    model: onnx.ModelProto,
    photos: NDArray[np.uint8],
    *,
    target: float = _TARGET,
    symmetric: bool = False,
) -> QuantisedGraph:
    """Quantise a graph's convolutions and constant matrix products to int8.

    Every second photo gives quantisation ranges, the others judge. If some of those are described too badly, the loss
    that each layer alone causes is measured once, and the worst layers are left in fp32, as few as suffice. Pooling,
    norms, attention and everything after the last layer that sees places of the image stay in fp32.

    Args:
        model: fp32, with the bundle's contract.
        photos: (n, H, W, 3) uint8, n ≥ 2, of the place.
        target: worst cosine to fp32 at which the search ends.
        symmetric: zero points of 0, as TensorRT demands; less precise, and slower on CPUs.

    Returns:
        the graph with the fewest layers left out that reaches the target, or else the best one found;
        `export.precision` decides on it.

    Raises:
        ParameterError: fewer than two photos.
        BundleError: nothing in the graph can be quantised, or the library refuses it (``precision_not_possible``).
    """
    if len(photos) < 2:
        raise ParameterError(
            "int8 needs photos for its quantisation ranges and others to judge by", code="too_few_photos"
        )
    tidy = tidied(model)
    layers = quantisable_layers(tidy)
    if not layers:
        raise _not_possible("it has no convolution and no product with constant weights before its pooling")
    for_ranges, judging = photos[::2], photos[1::2]
    between = nodes_between(tidy, layers)
    try:
        statistics = measure_activations(tidy, for_ranges, sorted(WEIGHTED | _BETWEEN))
        found = fewest_in_fp32(
            lambda names: quantised_graph(tidy, statistics, names, between, symmetric=symmetric),
            layers,
            judging,
            describe_in_batches(run_on_cpu(model), judging, _BATCH),
            target,
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this
        lines = str(error).strip().splitlines()
        raise _not_possible(lines[0] if lines else type(error).__name__) from error
    result = onnx.ModelProto()
    result.CopyFrom(found.model)
    helper.set_model_props(result, {entry.key: entry.value for entry in model.metadata_props})
    result.producer_name, result.producer_version = model.producer_name, model.producer_version
    onnx.checker.check_model(result, full_check=True)
    return QuantisedGraph(result, found.kept_in_fp32, found.worst_cosine, len(for_ranges))


def quantisable_layers(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the layers with constant weights that lie before the pooling, in order.

    Args:
        model: from `tidied`.
    """
    values, after, readers = constants(model), tail(model), consumers(model.graph.node)

    def is_patch_embedding(node: onnx.NodeProto) -> bool:
        after_it = {reader.op_type for reader in readers.get(node.output[0], [])}
        return node.op_type == "Conv" and bool(after_it) and after_it <= _REARRANGING

    return tuple(
        node.name
        for node in model.graph.node
        if node.op_type in WEIGHTED
        and node.input[1] in values
        and node.name not in after
        and not is_patch_embedding(node)
    )


def nodes_between(model: onnx.ModelProto, layers: Collection[str]) -> set[str]:
    """Names of the nodes whose every input comes out of quantised convolutions, directly or through such nodes.

    Args:
        model: from `tidied`.
        layers: names of the layers that could be quantised.
    """
    known = set(constants(model)) | {tensor.name for tensor in model.graph.initializer}
    outside = head(model) | tail(model)
    reached: set[str] = set()
    nodes = set()
    for node in model.graph.node:
        read = {name for name in node.input if name and name not in known}
        if node.name in layers and node.op_type in {"Conv", "ConvTranspose"}:
            reached.update(node.output)
        elif node.op_type in _BETWEEN and node.name not in outside and read and read <= reached:
            nodes.add(node.name)
            reached.update(node.output)
    return nodes


def quantised_graph(
    model: onnx.ModelProto,
    statistics: ActivationStatistics,
    layers: Iterable[str],
    between: Collection[str],
    *,
    symmetric: bool,
) -> onnx.ModelProto:
    """The graph with some layers, and what lies between them, in int8.

    Args:
        model: fp32, from `tidied`.
        statistics: of this model.
        layers: names of the layers to quantise.
        between: names of other nodes to quantise.
        symmetric: zero points of 0.
    """
    chosen = set(layers)
    shifted = _with_shifted_biases(
        model, {name: statistics.bias_shifts[name] for name in chosen & statistics.bias_shifts.keys()}
    )
    entry = shifted.metadata_props.add()  # the quantiser then infers no shapes again
    entry.key, entry.value = "onnx.infer", "onnxruntime.quant"
    quantiser = QDQQuantizer(
        shifted,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if symmetric else QuantType.QUInt8,
        tensors_range=statistics.ranges,
        nodes_to_quantize=sorted(chosen | set(between)),
        nodes_to_exclude=[],
        op_types_to_quantize=sorted(WEIGHTED | _BETWEEN),
        extra_options={
            "ActivationSymmetric": symmetric,
            # A matrix product is followed by a bias, a norm or a softmax, which runtimes compute in fp32.
            "OpTypesToExcludeOutputQuantization": ["MatMul"],
            "QuantizeBias": not symmetric,
        },
    )
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # it warns of each bias by the root logger
    try:
        quantiser.quantize_model()
    finally:
        logging.getLogger().setLevel(level)
    quantised: onnx.ModelProto = quantiser.model.model
    _keep_weights_in_fp32(quantised)
    ordered = ONNXModel(quantised)
    ordered.topological_sort()
    return ordered.model


def _with_shifted_biases(model: onnx.ModelProto, shifts: dict[str, NDArray[np.float32]]) -> onnx.ModelProto:
    """A copy in which layers have biases of their own, shifted, made where there is none."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    values = constants(copy)
    for node in copy.graph.node:
        if node.name not in shifts:
            continue
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        if bias is not None and bias not in values:
            continue
        before = np.float32(0) if bias is None else values[bias]
        name = f"{node.name}.shifted_bias"
        copy.graph.initializer.append(numpy_helper.from_array(np.asarray(before + shifts[node.name], np.float32), name))
        node.input[:] = [node.input[0], node.input[1], name]
    return copy


def _keep_weights_in_fp32(model: onnx.ModelProto) -> None:
    """Hide from ONNX Runtime that a layer in fp32 stands between quantised ones. Works in place.

    Its optimiser (WeightBiasQuantization, since 1.21) quantises such a layer's weights itself, one scale for all
    channels: left out alone, the first depthwise layer of the default bundle then did more harm (cosine 0.89) than
    quantised with the others (0.99). It looks for a DequantizeLinear right before the layer; a Clip that clips nothing
    is enough in between.
    """
    made_by = producers(model.graph.node)
    values = constants(model)
    for node in model.graph.node:
        before = made_by.get(node.input[0]) if node.op_type in {"Conv", "ConvTranspose", "Gemm"} else None
        if before is None or before.op_type != "DequantizeLinear" or node.input[1] not in values:
            continue
        name = f"{node.name}.fp32_input"
        lowest = numpy_helper.from_array(np.asarray(np.finfo(np.float32).min, np.float32), f"{name}.lowest")
        model.graph.initializer.append(lowest)
        model.graph.node.append(helper.make_node("Clip", [node.input[0], lowest.name], [name], name=name))
        node.input[0] = name


def measure_activations(
    model: onnx.ModelProto, photos: NDArray[np.uint8], operators: Sequence[str]
) -> ActivationStatistics:
    """Measure a graph's activations.

    A range is the mean over photos of each photo's extremes, which one odd photo cannot stretch. Bias shifts undo what
    rounding the weights does to the mean of each channel: -(rounded weights - weights) · mean input, as in Nagel et
    al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, equation 12, with
    measured means. With the default bundle that takes two thirds of int8's error away.

    Args:
        model: fp32, from `tidied`.
        photos: (n, H, W, 3) uint8.
        operators: types of the operators whose inputs and outputs are measured.
    """
    return ActivationStatistics(_ranges(model, photos, operators), _bias_shifts(model, photos))


class _OnePhotoAtATime(CalibrationDataReader):  # type: ignore[misc]
    """Feeds ONNX Runtime's calibrator."""

    def __init__(self, photos: NDArray[np.uint8]) -> None:
        self._photos: Iterator[NDArray[np.uint8]] = iter(photos)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next photo, or None."""
        photo = next(self._photos, None)
        return None if photo is None else {INPUT_NAME: photo[None]}


def _ranges(model: onnx.ModelProto, photos: NDArray[np.uint8], operators: Sequence[str]) -> TensorsData:
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
        calibrator.collect_data(_OnePhotoAtATime(photos))
        ranges = calibrator.compute_data()
    for name, data in ranges.items():
        low, high = (np.float32(np.asarray(value).min()) for value in data.range_value)
        ranges[name] = TensorData(lowest=low, highest=high)
    return ranges


def _bias_shifts(model: onnx.ModelProto, photos: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    values = constants(model)
    ranks = {"Conv": 4, "Gemm": 2}
    nodes = [
        node
        for node in model.graph.node
        if node.input[1:] and node.input[1] in values and ranks.get(node.op_type) == values[node.input[1]].ndim
    ]
    means = _channel_means(model, nodes, photos)
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
    """The bias that makes up for the mean error of a layer's rounded weights.

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
    session = open_on_cpu(measured.SerializeToString())
    outputs = [f"mean of {name}" for name in names]
    total = {name: np.zeros((), np.float64) for name in names}
    for photo in photos:
        for name, mean in zip(names, session.run(outputs, {INPUT_NAME: photo[None]}), strict=True):
            total[name] = total[name] + mean
    return {name: np.asarray(mean / len(photos), np.float32) for name, mean in total.items()}


def fewest_in_fp32(
    build: Callable[[Collection[str]], onnx.ModelProto],
    layers: Sequence[str],
    photos: NDArray[np.uint8],
    fp32: NDArray[np.float32],
    target: float,
) -> Trial:
    """Leave as few layers in fp32 as it takes to describe every photo well enough.

    All layers are quantised first. Then each is quantised alone, and the layers are left out in the order of the loss
    they cause, 1, 2, 3, 4, 6, 8, 12… of them, at most half of all: beyond that the graph is no faster than fp32.

    Args:
        build: makes a graph in which just these layers are quantised.
        layers: names of all that could be quantised.
        photos: (n, H, W, 3) uint8 to judge by.
        fp32: (n, D) float32, their descriptors in fp32.
        target: worst cosine at which the search ends.

    Returns:
        the first that reaches the target, or the one with the best worst cosine.
    """

    def measure(quantised: Collection[str], rows: NDArray[np.int64] | slice = slice(None)) -> Trial:
        model = build(quantised)
        described = describe_in_batches(run_on_cpu(model), photos[rows], _BATCH)
        found = np.nan_to_num(cosines(fp32[rows], described), nan=-1.0)
        return Trial(model, tuple(name for name in layers if name not in quantised), found)

    best = measure(layers)
    if best.worst_cosine >= target:
        return best
    hardest = np.argsort(best.cosines)[:_PHOTOS_FOR_LOSS]
    alone = {name: float(measure([name], hardest).cosines.mean()) for name in layers}
    ranked = sorted(layers, key=lambda name: alone[name])
    for count in _TRIALS:
        if 2 * count > len(ranked):
            break
        found = measure([name for name in layers if name not in ranked[:count]])
        if found.worst_cosine >= target:
            return found
        best = max(best, found, key=lambda one: one.worst_cosine)
    return best


def _not_possible(reason: str) -> BundleError:
    return BundleError(
        f"the graph cannot be quantised to int8: {reason.rstrip('.')}",
        remedy="Leave int8 out, or choose fp16",
        code="precision_not_possible",
    )
