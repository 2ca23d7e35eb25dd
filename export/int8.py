"""The int8 graph: static QDQ, weights per channel, calibrated on photos; the layers that suffer most stay in fp32."""

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from export.calibration import Calibration, calibrate
from export.gate import MIN_COSINE
from export.graph_structure import WEIGHTED, constants, consumers, head, producers, tail, tidied
from export.sensitivity import Search, search_skip_list
from export.source import run_on_cpu
from retrieval.errors import BundleError, ParameterError

# What is done to the outputs of convolutions before the next one: runtimes do it in int8 where all around it is int8.
_BETWEEN: Final = frozenset({"Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "MaxPool", "Relu"})

# A layer that goes straight into these makes the patches of a transformer: a hundredth of its work, and all that it
# will ever see. Quantised, it cost OpenVINO 2026.4 a cosine of 0.98, though ONNX Runtime 1.32 had 0.999.
_REARRANGING: Final = frozenset({"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})

# Half the loss that the gate allows: the gate, and the user, see more photos than the search does.
_TARGET: Final = 1.0 - (1.0 - MIN_COSINE["int8"]) / 2

# What is done, how many of it, of how many.
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class QuantisedGraph:
    """An int8 graph and how it was found.

    Attributes:
        model: QDQ, with the bundle's contract.
        skipped: names of the layers that stay in fp32 because quantising them hurts most; pooling and all that follows
            it always stay and are not listed.
        worst_cosine, mean_cosine: to fp32, over the photos that it was not calibrated on.
        calibration_images: photos it was calibrated on.
    """

    model: onnx.ModelProto
    skipped: tuple[str, ...]
    worst_cosine: float
    mean_cosine: float
    calibration_images: int


def quantise(
    model: onnx.ModelProto,
    photos: NDArray[np.uint8],
    *,
    target: float = _TARGET,
    symmetric: bool = False,
    on_progress: OnProgress | None = None,
) -> QuantisedGraph:
    """Quantise a graph's convolutions and constant matrix products to int8.

    Every second photo calibrates, the others judge. If some of those are described too badly, the damage that each
    layer does alone is measured once, and the worst layers are left in fp32, as few as suffice. Pooling, norms,
    attention and everything after the last layer that sees places of the image stay in fp32.

    Args:
        model: fp32, with the bundle's contract.
        photos: (n, H, W, 3) uint8, n ≥ 2, of the place.
        target: worst cosine to fp32 at which the search ends.
        symmetric: zero points of 0, as TensorRT demands; less precise, and slower on CPUs.
        on_progress: is told what is done, how many of it, of how many.

    Returns:
        the graph with the fewest layers left out that reaches the target, or else the best one found: whether that is
        good enough is for `export.gate` to say.

    Raises:
        ParameterError: fewer than two photos.
        BundleError: nothing in the graph can be quantised, or the library refuses it (``precision_not_possible``).
    """
    if len(photos) < 2:
        raise ParameterError("int8 needs photos to calibrate on and others to judge by", code="too_few_photos")
    tell = on_progress or (lambda what, done, total: None)
    tidy = tidied(model)
    layers = quantisable_layers(tidy)
    if not layers:
        raise _not_possible("it has no convolution and no product with constant weights before its pooling")
    calibrating, judging = photos[::2], photos[1::2]
    between = nodes_between(tidy, layers)
    try:
        calibration = calibrate(
            tidy,
            calibrating,
            sorted(WEIGHTED | _BETWEEN),
            lambda done: tell("Calibrating", done, 2 * len(calibrating)),
        )
        search = Search(
            build=lambda names: quantised_graph(tidy, calibration, names, between, symmetric=symmetric),
            fp32=run_on_cpu(model),
            layers=layers,
            photos=judging,
            on_progress=tell,
        )
        found = search_skip_list(search, target)
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this
        lines = str(error).strip().splitlines()
        raise _not_possible(lines[0] if lines else type(error).__name__) from error
    result = onnx.ModelProto()
    result.CopyFrom(found.model)
    helper.set_model_props(result, {entry.key: entry.value for entry in model.metadata_props})
    result.producer_name, result.producer_version = model.producer_name, model.producer_version
    onnx.checker.check_model(result, full_check=True)
    return QuantisedGraph(result, found.skipped, found.worst_cosine, found.mean_cosine, len(calibrating))


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
    calibration: Calibration,
    layers: Iterable[str],
    between: Collection[str],
    *,
    symmetric: bool,
) -> onnx.ModelProto:
    """The graph with some layers, and what lies between them, in int8.

    Args:
        model: fp32, from `tidied`.
        calibration: of this model.
        layers: names of the layers to quantise.
        between: names of other nodes to quantise.
        symmetric: zero points of 0.
    """
    chosen = set(layers)
    shifted = _with_shifted_biases(
        model, {name: calibration.bias_shifts[name] for name in chosen & calibration.bias_shifts.keys()}
    )
    entry = shifted.metadata_props.add()  # tells the quantiser that shapes are inferred already
    entry.key, entry.value = "onnx.infer", "onnxruntime.quant"
    quantiser = QDQQuantizer(
        shifted,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if symmetric else QuantType.QUInt8,
        tensors_range=calibration.ranges,
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


def _not_possible(reason: str) -> BundleError:
    return BundleError(
        f"the graph cannot be quantised to int8: {reason.rstrip('.')}",
        remedy="Leave int8 out, or choose fp16",
        code="precision_not_possible",
    )
