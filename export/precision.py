"""Lower precisions: a graph in fp16 or int8, and the check on real photos that it describes as the fp32 graph does."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from export.int8 import MIN_COSINE_INT8, quantise
from retrieval.bundle import Precision, PrecisionReport, RecallChange
from retrieval.bundle.exportable import cosines, describe_in_batches, run_on_cpu
from retrieval.bundle.onnx_graph import SHAPE_ONLY, constants, consumers, head, producers, replace_nodes, tail, tidied
from retrieval.errors import BundleError, ParameterError, counted

MIN_PHOTOS: Final = 64

# Cosine to the fp32 descriptor of the worst photo.
MIN_COSINE_TO_FP32: Final[dict[Precision, float]] = {"fp16": 0.9999, "int8": MIN_COSINE_INT8}

# Share of the solvable queries, on any evaluation set.
MAX_RECALL_LOSS: Final = 0.01

# fp16 rounds at 0.0005; what an L2 norm in fp32 has made is nearer to 1 than this.
_LENGTH_TOLERANCE: Final = 1e-3

# Images described at once; a batch of some hundred would take gigabytes.
_BATCH: Final = 32

# Powers and sums of squares pass 65504, the largest half, long before their roots do; an infinite variance then makes
# a norm return zeros, without a NaN to notice it by.
_POWERS: Final = frozenset(
    {
        "Pow", "Sqrt", "Exp", "Log", "Reciprocal",
        "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd",
    }
)  # fmt: skip
_NORMS: Final = frozenset(
    {
        "BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization",
        "LpNormalization", "MeanVarianceNormalization", "RMSNormalization", "SimplifiedLayerNormalization",
    }
)  # fmt: skip
_MEANS: Final = frozenset({"ReduceMean", "ReduceSum"})
# What the converter calls the casts it puts behind nodes in fp32.
_TO_HALF: Final = "_cast_to_fp16_node"
_LARGEST_HALF: Final = float(np.finfo(np.float16).max)
_SMALLEST_HALF: Final = float(np.finfo(np.float16).smallest_normal)


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


def lower_precision(graph: onnx.ModelProto, precision: Precision, photos: NDArray[np.uint8]) -> LoweredGraph:
    """Make a graph of lower precision and measure how far it is from fp32; `check_precision` decides on it.

    Args:
        graph: fp32.
        precision: fp16 or int8.
        photos: (n, H, W, 3) uint8 to find quantisation ranges on and to judge by, n ≥ 64.

    Raises:
        BundleError: the graph cannot be converted, or gives vectors that are no descriptors.
        ParameterError: another precision, or too few photos.
    """
    range_photos = 0
    kept_in_fp32: tuple[str, ...] = ()
    if precision == "fp16":
        lower = to_fp16(graph)
    elif precision == "int8":
        quantised = quantise(graph, photos)
        lower, range_photos, kept_in_fp32 = quantised.model, quantised.range_photos, quantised.kept_in_fp32
    else:
        raise ParameterError(f"{precision} is no lower precision", remedy="Choose fp16 or int8")
    fp32, described = (describe_in_batches(run_on_cpu(one), photos, _BATCH) for one in (graph, lower))
    report = measure_precision(precision, fp32, described, range_photos=range_photos, kept_in_fp32=kept_in_fp32)
    return LoweredGraph(lower, report, int(cosines(fp32, described).argmin()))


def require_photos(count: int, precision: Precision) -> None:
    """Refuse to judge by a handful of photos, before any work is done.

    Args:
        count: photos given.
        precision: to be judged.

    Raises:
        ParameterError: fewer than `MIN_PHOTOS` (``too_few_photos``).
    """
    if count < MIN_PHOTOS:
        raise ParameterError(
            f"{counted(count, 'photo')} cannot prove an {precision} graph, {MIN_PHOTOS} are needed",
            remedy=f"Give {MIN_PHOTOS - count} more photos of the place, such as some of those you will index",
            code="too_few_photos",
        )


def measure_precision(
    precision: Precision,
    fp32: NDArray[np.float32],
    lower: NDArray[np.float32],
    *,
    range_photos: int = 0,
    kept_in_fp32: Sequence[str] = (),
) -> PrecisionReport:
    """Measure how far a graph of lower precision is from fp32.

    Args:
        precision: of the graph.
        fp32, lower: (N, D) float32 descriptors of the same photos, N ≥ `MIN_PHOTOS`.
        range_photos: how many photos its quantisation ranges come from.
        kept_in_fp32: names of layers that were left in fp32.

    Raises:
        ParameterError: too few photos (``too_few_photos``).
        BundleError: a descriptor is not finite or not of unit length (``descriptor_not_finite``): no loss to accept,
            but a graph that does not describe.
    """
    require_photos(len(fp32), precision)
    lengths = np.linalg.norm(lower.astype(np.float64), axis=1)
    # Not `>`: a NaN must not pass.
    broken = np.flatnonzero(~(np.abs(lengths - 1.0) <= _LENGTH_TOLERANCE))
    if len(broken):
        more = f", and {counted(len(broken) - 1, 'other')} like it" if len(broken) > 1 else ""
        raise BundleError(
            f"the {precision} graph describes photo {broken[0] + 1} of {len(fp32)} by a vector of length "
            f"{lengths[broken[0]]:.3g}, which must be 1{more}",
            remedy=f"Leave {precision} out: the network's values do not fit into it",
            code="descriptor_not_finite",
        )
    measured = cosines(fp32, lower)
    return PrecisionReport(
        images=len(measured),
        min_cosine=float(measured.min()),
        mean_cosine=float(measured.mean()),
        threshold=MIN_COSINE_TO_FP32[precision],
        calibration_images=range_photos,
        kept_in_fp32=tuple(kept_in_fp32),
    )


def check_precision(
    precision: Precision, report: PrecisionReport, *, accept_loss: bool = False, worst_photo: str | None = None
) -> PrecisionReport:
    """Accept a graph of lower precision, or refuse it.

    Args:
        precision: of the graph.
        report: how far it is from fp32; recall counts where it was measured.
        accept_loss: accept it in any case; the report says so.
        worst_photo: the photo with the lowest cosine, for people.

    Returns:
        the report; ``accepted_loss`` is set where it is accepted in spite of its loss.

    Raises:
        BundleError: it is too far from fp32, and the loss is not accepted (``precision_gate_failed``).
    """
    losses = [_describe_loss(change) for change in report.recall if not change.change >= -MAX_RECALL_LOSS]
    near = report.min_cosine >= report.threshold
    if (near and not losses) or accept_loss:
        return report.model_copy(update={"accepted_loss": not near or bool(losses)})
    if not near:
        worst = f" ({worst_photo})" if worst_photo else ""
        losses.insert(
            0,
            f"the worst of {counted(report.images, 'photo')}{worst} has cosine {report.min_cosine:.5f} to fp32, "
            f"wanted {report.threshold}",
        )
    others = (
        f"Give more than {2 * report.calibration_images} photos, choose fp16"
        if precision == "int8"
        else "Leave fp16 out"
    )
    raise BundleError(
        f"the {precision} graph is too far from fp32: {'; '.join(losses)}",
        remedy=f"Nothing was written. {others}, or take the loss knowingly with --accept-loss",
        code="precision_gate_failed",
    )


def _describe_loss(change: RecallChange) -> str:
    return (
        f"recall@1 on {change.evaluation_set} falls from {100 * change.before:.1f} to {100 * change.after:.1f} %, "
        f"by at most {100 * MAX_RECALL_LOSS:g} points wanted"
    )


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make an fp16 graph of an fp32 one.

    Weighted layers and what lies between them compute in fp16. In fp32 stay: the normalisation of the image; everything
    from the pooling to the descriptor; norms, powers, and means of powers; and nodes with a constant that fp16 cannot
    hold. The input stays uint8, the output float32.

    Args:
        model: fp32, with the bundle's contract.

    Returns:
        a new graph, checked; metadata is kept.

    Raises:
        BundleError: the graph cannot be converted (``precision_not_possible``).
    """
    tidy = tidied(model)
    kept = nodes_kept_in_fp32(tidy)
    # It warns of each value it clips; those that matter are kept in fp32.
    logging.getLogger("onnxruntime.transformers.float16").setLevel(logging.WARNING)
    try:
        converted = convert_float_to_float16(
            tidy, keep_io_types=True, disable_shape_infer=True, op_block_list=[], node_block_list=sorted(kept)
        )
        _remove_round_trips(converted)
        # Types of tensors that no longer exist, or shapes from before: the checker infers them anew.
        del converted.graph.value_info[:]
        OnnxModel.graph_topological_sort(converted.graph)
        onnx.checker.check_model(converted, full_check=True)
    except Exception as error:  # the library and the checker raise all sorts
        lines = str(error).strip().splitlines()
        raise BundleError(
            f"the graph cannot be converted to fp16 ({lines[0] if lines else type(error).__name__})",
            remedy="Leave fp16 out, or export with another operator set",
            code="precision_not_possible",
        ) from error
    return converted


def nodes_kept_in_fp32(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes that compute in fp32.

    Args:
        model: from `tidied`.
    """
    values = constants(model)
    always = _POWERS | _NORMS | set(DEFAULT_OP_BLOCK_LIST)
    kept = head(model) | tail(model)
    kept |= {node.name for node in model.graph.node if node.op_type in always or _reads_unfit(node, values)}
    made_by, readers = producers(model.graph.node), consumers(model.graph.node)
    for node in model.graph.node:
        before = {made_by[name].name for name in node.input if name in made_by}
        after = {reader.name for name in node.output for reader in readers.get(name, [])}
        # A mean of powers belongs to a norm or a pooling; one between layers (squeeze and excite) does not.
        # A softmax of masked scores must see the mask before fp16 turns it infinite.
        # A shape is the same in either precision, and a cast to ask for it is a waste.
        if (node.op_type in _MEANS and kept & (before | after)) or (
            node.op_type in SHAPE_ONLY | {"Softmax"} and kept & before
        ):
            kept.add(node.name)
    return kept


def _reads_unfit(node: onnx.NodeProto, values: Mapping[str, NDArray[np.float32]]) -> bool:
    """Whether fp16 cannot hold a constant of a node: too large, or a lone number too small, such as an epsilon."""
    read = [values[name] for name in node.input if name in values]
    finite = [np.abs(array[np.isfinite(array)]) for array in read]
    too_large = any(array.max(initial=0.0) > _LARGEST_HALF for array in finite)
    return too_large or any(array.size == 1 and 0.0 < array.item() < _SMALLEST_HALF for array in finite)


def _remove_round_trips(model: onnx.ModelProto) -> None:
    """Let neighbours in fp32 pass fp32 on: the converter puts a cast to fp16 and back between any two nodes.

    Works in place.
    """
    nodes = list(model.graph.node)
    halved = {node.output[0]: node.input[0] for node in nodes if node.name.endswith(_TO_HALF)}
    back = {
        node.output[0]: halved[node.input[0]] for node in nodes if _is_cast_to_fp32(node) and node.input[0] in halved
    }
    outputs = {output.name for output in model.graph.output}
    # An output keeps its name, so what made it takes that name.
    final = {source: name for name, source in back.items() if name in outputs}
    nodes = [node for node in nodes if node.output[0] not in back]
    for node in nodes:
        through = [back.get(name, name) for name in node.input]
        node.input[:] = [final.get(name, name) for name in through]
        node.output[:] = [final.get(name, name) for name in node.output]
    read = {name for node in nodes for name in node.input} | outputs
    replace_nodes(model, (node for node in nodes if not node.name.endswith(_TO_HALF) or node.output[0] in read))


def _is_cast_to_fp32(node: onnx.NodeProto) -> bool:
    return node.op_type == "Cast" and any(
        attribute.name == "to" and attribute.i == TensorProto.FLOAT for attribute in node.attribute
    )
