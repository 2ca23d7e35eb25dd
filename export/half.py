"""The fp16 graph: weights and activations in half precision, norms, pooling and normalisation in fp32."""

import logging
from collections.abc import Mapping
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from export.graph_structure import SHAPE_ONLY, constants, consumers, head, producers, tail, tidied
from retrieval.errors import BundleError

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


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
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
    # It tells each value it clips; those that matter are kept in fp32.
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
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
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
    del model.graph.node[:]
    model.graph.node.extend(node for node in nodes if not node.name.endswith(_TO_HALF) or node.output[0] in read)


def _is_cast_to_fp32(node: onnx.NodeProto) -> bool:
    return node.op_type == "Cast" and any(
        attribute.name == "to" and attribute.i == TensorProto.FLOAT for attribute in node.attribute
    )
