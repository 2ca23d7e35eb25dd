"""ONNX graphs: what one is made of, how its weights are stored, and whitening as its last layer."""

import hashlib
from collections.abc import Iterable
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from retrieval.bundle import INPUT_NAME, OUTPUT_NAME
from retrieval.bundle.whitening import Whitening

# Operators that spend the time. Attention's products have no constant weight, and are heavy all the same.
WEIGHTED: Final = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})

# They give the size of a tensor, not what is in it.
SHAPE_ONLY: Final = frozenset({"Shape", "Size"})

# Tensors below this size (biases, scales) stay in fp32: they weigh nothing and matter more.
_SMALLEST_HALVED: Final = 1024
# Names of the nodes and weights that adapt a bundle to a place begin so.
ADAPTATION_PREFIX: Final = "adaptation/"
# And so the nodes of a net that aggregates local descriptors itself.
AGGREGATION_PREFIX: Final = "aggregation/"
# And so after that where they belong to a vocabulary: a small one, stored in fp32, for rounding would move local
# descriptors to other centroids.
VOCABULARY_PREFIX: Final = "vocabulary."
_RAW: Final = "descriptors.before_whitening"


def digest_of(model: onnx.ModelProto) -> str:
    """Eight hexadecimal digits of a graph, for names: bundles that differ have names that differ."""
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()[:8]


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
        nodes.append(node)
    replace_nodes(copy, nodes)
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


def inputs_of(node: onnx.NodeProto) -> set[str]:
    """The tensors that a node reads, those that the bodies of its If, Loop or Scan may read included."""
    inside = (inner for attribute in node.attribute for inner in attribute.g.node)
    return {*node.input}.union(*(inputs_of(inner) for inner in inside))


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

    Pooling (GeM, VLAD), a projection of the pooled vector, whitening, an adaptation, the L2 norm. They cost next to
    nothing, and every error in them reaches the descriptor undamped.

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
        aggregating = node.name.startswith((ADAPTATION_PREFIX, AGGREGATION_PREFIX))
        if node.op_type in WEIGHTED and not aggregating and not is_one_vector(node.output[0]):
            continue
        after = [reader.name for name in node.output for reader in readers.get(name, [])]
        if all(name in nodes for name in after) and (after or OUTPUT_NAME in node.output):
            nodes.add(node.name)
    return nodes


def store_weights_as_fp16(model: onnx.ModelProto, prefix: str = "") -> None:
    """Store large fp32 weights as fp16, each followed by a Cast: half the file, still computed in fp32.

    Runtimes fold the casts when they load the graph, so speed does not change. Works in place.

    Args:
        model: any graph.
        prefix: only weights whose names begin so.
    """
    in_vocabulary = f"{ADAPTATION_PREFIX}{VOCABULARY_PREFIX}"
    casts = []
    for tensor in model.graph.initializer:
        small = int(np.prod(tensor.dims)) < _SMALLEST_HALVED or tensor.name.startswith(in_vocabulary)
        if tensor.data_type != TensorProto.FLOAT or small or not tensor.name.startswith(prefix):
            continue
        name = tensor.name
        halved = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{name}.fp16")
        tensor.CopyFrom(halved)
        casts.append(helper.make_node("Cast", [halved.name], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
    replace_nodes(model, [*casts, *model.graph.node])
    onnx.checker.check_model(model, full_check=True)


def restore_fp32_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with fp32 weights where `store_weights_as_fp16` had stored fp16 ones and casts."""
    restored = onnx.ModelProto()
    restored.CopyFrom(model)
    stored = {tensor.name: tensor for tensor in restored.graph.initializer}
    nodes = []
    for node in restored.graph.node:
        tensor = stored.get(node.input[0]) if node.op_type == "Cast" else None
        if tensor is None or tensor.data_type != TensorProto.FLOAT16:
            nodes.append(node)
            continue
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), node.output[0]))
    replace_nodes(restored, nodes)
    onnx.checker.check_model(restored, full_check=True)
    return restored


def replace_nodes(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Put other nodes, which may be some of its own, in the place of a graph's. Works in place."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def with_whitening(model: onnx.ModelProto, whitening: Whitening) -> onnx.ModelProto:
    """A copy of a graph whose output [N, D] is projected to [N, d] and made unit again.

    Args:
        model: with the bundle's contract.
        whitening: fitted on this graph's descriptors.
    """
    whitened = onnx.ModelProto()
    whitened.CopyFrom(model)
    graph = whitened.graph
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [_RAW if name == OUTPUT_NAME else name for name in names]
    for name, values in (
        ("whitening.projection", whitening.projection),
        ("whitening.bias", whitening.bias),
        ("whitening.epsilon", np.float32(1e-12)),
        ("whitening.axis", np.array([1], np.int64)),
    ):
        graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    graph.node.extend(
        [
            helper.make_node("Gemm", [_RAW, "whitening.projection", "whitening.bias"], ["whitening.linear"]),
            helper.make_node("ReduceL2", ["whitening.linear", "whitening.axis"], ["whitening.length"], keepdims=1),
            helper.make_node("Max", ["whitening.length", "whitening.epsilon"], ["whitening.divisor"]),
            helper.make_node("Div", ["whitening.linear", "whitening.divisor"], [OUTPUT_NAME]),
        ]
    )
    for node in list(graph.node)[-4:]:
        node.name = f"whitening/{node.op_type}"
    batch = graph.output[0].type.tensor_type.shape.dim[0].dim_param or "N"
    output = helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, [batch, whitening.projection.shape[1]])
    graph.output[0].CopyFrom(output)
    onnx.checker.check_model(whitened, full_check=True)
    return whitened
