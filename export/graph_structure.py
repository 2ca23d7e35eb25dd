"""What a graph is made of: weights, the head that normalises the image, the tail that makes one vector of it."""

from collections.abc import Iterable
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from retrieval.bundle import INPUT_NAME, OUTPUT_NAME

# Operators that spend the time. Attention's products have no constant weight, and are heavy all the same.
WEIGHTED: Final = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})

# They tell the size of a tensor, not what is in it.
SHAPE_ONLY: Final = frozenset({"Shape", "Size"})


def tidied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with inferred shapes, in which every node has a name of its own and constants are initializers.

    The libraries that lower precision know nodes by name and weights as initializers; graphs of other makers may have
    neither.

    Args:
        model: any graph.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = []
    taken: set[str] = set()
    for number, node in enumerate(copy.graph.node):
        value = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            initializer = copy.graph.initializer.add()
            initializer.CopyFrom(value)
            initializer.name = node.output[0]
            continue
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{number}_{node.output[0]}"
        taken.add(node.name)
        nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    inferred = onnx.shape_inference.infer_shapes(copy)
    initializers = {tensor.name for tensor in inferred.graph.initializer}
    # Some exporters declare the types of initializers besides: libraries then take them for activations.
    activations = [value for value in inferred.graph.value_info if value.name not in initializers]
    declared = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in activations]
    del inferred.graph.value_info[:]
    inferred.graph.value_info.extend(declared)
    return inferred


def constants(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    """The fp32 initializers of a graph by name."""
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    }


def consumers(nodes: Iterable[onnx.NodeProto]) -> dict[str, list[onnx.NodeProto]]:
    """The nodes that read each tensor."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in dict.fromkeys(node.input):
            readers.setdefault(name, []).append(node)
    return readers


def producers(nodes: Iterable[onnx.NodeProto]) -> dict[str, onnx.NodeProto]:
    """The node that makes each tensor."""
    return {name: node for node in nodes for name in node.output}


def head(model: onnx.ModelProto) -> set[str]:
    """Nodes between the image and the first weights: resizing and normalisation.

    Args:
        model: from `tidied`.

    Returns:
        names of nodes.
    """
    initializers = {tensor.name for tensor in model.graph.initializer}
    reached = {INPUT_NAME}
    nodes = set()
    for node in model.graph.node:
        read = {name for name in node.input if name and name not in initializers}
        if node.op_type in WEIGHTED | SHAPE_ONLY or not read or not read <= reached:
            continue
        nodes.add(node.name)
        reached.update(node.output)
    return nodes


def tail(model: onnx.ModelProto) -> set[str]:
    """Nodes that only the descriptor depends on, from the last layer that still sees places of the image.

    Pooling (GeM), a projection of the pooled vector, whitening, the L2 norm. They cost next to nothing, and every error
    in them reaches the descriptor undamped.

    Args:
        model: from `tidied`.

    Returns:
        names of nodes.
    """
    shapes = {value.name: value.type.tensor_type.shape.dim for value in model.graph.value_info}
    readers = consumers(model.graph.node)
    batch = next(
        image.type.tensor_type.shape.dim[0].dim_param for image in model.graph.input if image.name == INPUT_NAME
    )

    def is_one_vector(name: str) -> bool:
        dims = shapes.get(name, ())
        return name == OUTPUT_NAME or (len(dims) == 2 and bool(batch) and dims[0].dim_param == batch)

    nodes: set[str] = set()
    for node in reversed(model.graph.node):
        if node.op_type in WEIGHTED and not is_one_vector(node.output[0]):
            continue
        after = [reader.name for name in node.output for reader in readers.get(name, [])]
        if all(name in nodes for name in after) and (after or OUTPUT_NAME in node.output):
            nodes.add(node.name)
    return nodes
