"""A foreign graph behind the bundle's contract: uint8 photos in, unit descriptors out."""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, inliner, numpy_helper, version_converter

from export.foreign_settings import ForeignSettings
from retrieval.bundle import INPUT_NAME, OUTPUT_NAME

# Of all graphs that sightfix exports itself.
TARGET_OPSET: Final = 20
# Below it, operators that we add had other signatures.
MIN_OPSET: Final = 11

_EPSILON: Final = 1e-12
_PREFIX: Final = "model/"


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operators."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def only_output(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """A copy with one output and nothing that only others need; local functions are inlined.

    What exporters note beside the graph, such as source lines with paths of their machine, is left out.
    """
    copy = inliner.inline_local_functions(model) if model.functions else onnx.ModelProto()
    if not model.functions:
        copy.CopyFrom(model)
    graph = copy.graph
    needed, kept = {name}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(_reads(node))
            kept.append(node)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(kept)]
    del graph.node[:]
    graph.node.extend(nodes)
    initial = {tensor.name for tensor in graph.initializer}
    _keep(graph.initializer, (tensor for tensor in graph.initializer if tensor.name in needed))
    _keep(graph.input, (value for value in graph.input if value.name not in initial))
    _keep(graph.output, (value for value in graph.output if value.name == name))
    for field in (graph.value_info, copy.metadata_props, graph.metadata_props):
        del field[:]
    copy.doc_string = graph.doc_string = ""
    for noted in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        noted.doc_string = ""
        del noted.metadata_props[:]
    return copy


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """What a node and the graphs inside it read."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _reads(inner)
            yield from (value.name for value in graph.output)


def _keep(field: Any, kept: Iterable[Any]) -> None:
    chosen = list(kept)
    del field[:]
    field.extend(chosen)


def convert_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same in the operators of `TARGET_OPSET`.

    Raises:
        Exception: onnx's converter does not manage; it raises several types.
    """
    converted: onnx.ModelProto = version_converter.convert_version(model, TARGET_OPSET)
    del converted.graph.value_info[:]
    return converted


def has_halves(graph: onnx.GraphProto) -> bool:
    """Whether anything in a graph is fp16."""
    tensors = [*graph.initializer, *(a.t for node in graph.node for a in node.attribute)]
    values = [value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)]
    return TensorProto.FLOAT16 in [*values, *(tensor.data_type for tensor in tensors)]


def widen(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that computes in fp32 with the values of fp16 weights: every later step expects an fp32 graph."""
    widened = onnx.ModelProto()
    widened.CopyFrom(model)
    _widen(widened.graph)
    return widened


def _widen(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _widen_tensor(attribute.t)
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                _widen(inner)


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT16:
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def with_contract(model: onnx.ModelProto, settings: ForeignSettings, descriptor_dim: int) -> onnx.ModelProto:
    """Put casts, channel order, normalisation and layout before a graph, and an L2 norm behind it.

    Args:
        model: one input and one output; any batch at once.
        settings: what the graph wants.
        descriptor_dim: D.

    Returns:
        the model: input ``images`` uint8 [N, H, W, 3], output ``descriptors`` float32 [N, D].

    Raises:
        Exception: onnx finds that the graph contradicts itself; its checker raises several types.
    """
    # Prefixed: its own names may be ours.
    wrapped = compose.add_prefix(model, _PREFIX, rename_functions=False)
    graph = wrapped.graph
    (theirs,), (result,) = graph.input, graph.output
    before, constants = _before(graph, theirs, settings)
    after, more = _after(result, settings, opset_of(model))
    for place, node in enumerate((*before, *after)):
        node.name = f"import/{place}_{node.op_type}"
    nodes = [*before, *graph.node, *after]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(values), name) for name, values in {**constants, **more}.items()
    )
    size = settings.input
    images = helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, ["N", size.height, size.width, 3])
    descriptors = helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, ["N", descriptor_dim])
    theirs.CopyFrom(images)
    result.CopyFrom(descriptors)
    onnx.checker.check_model(wrapped, full_check=True)
    return wrapped


def _before(
    graph: onnx.GraphProto, theirs: onnx.ValueInfoProto, settings: ForeignSettings
) -> tuple[list[onnx.NodeProto], dict[str, object]]:
    """From `images` to what the graph wants. The input is cast first: TensorRT lets nothing else read a uint8 one."""
    wants, constants = settings.input, dict[str, object]()
    steps: list[tuple[str, list[str], dict[str, object]]] = [("Cast", [], {"to": TensorProto.FLOAT})]
    if wants.channels == "bgr":
        constants["import.bgr"] = np.array([2, 1, 0], np.int64)
        steps.append(("Gather", ["import.bgr"], {"axis": 3}))
    if wants.scale is not None and wants.mean is not None and wants.std is not None:
        # (x / scale - mean) / std, with one operation less.
        constants["import.mean"] = (np.array(wants.mean) * wants.scale).astype(np.float32)
        constants["import.std"] = (np.array(wants.std) * wants.scale).astype(np.float32)
        steps += [("Sub", ["import.mean"], {}), ("Div", ["import.std"], {})]
    if wants.layout == "nchw":
        steps.append(("Transpose", [], {"perm": [0, 3, 1, 2]}))
    element = theirs.type.tensor_type.elem_type
    readers = [node.op_type for node in graph.node if theirs.name in node.input]
    # A net that takes uint8 and casts it itself can cast whole numbers in fp32 as well.
    if element != TensorProto.FLOAT and not (element == TensorProto.UINT8 and set(readers) == {"Cast"}):
        steps.append(("Cast", [], {"to": element}))
    names = [INPUT_NAME, *(f"import.before.{place}" for place in range(len(steps) - 1)), theirs.name]
    nodes = [
        helper.make_node(kind, [names[place], *inputs], [names[place + 1]], **attributes)
        for place, (kind, inputs, attributes) in enumerate(steps)
    ]
    return nodes, constants


def _after(
    result: onnx.ValueInfoProto, settings: ForeignSettings, opset: int
) -> tuple[list[onnx.NodeProto], dict[str, object]]:
    """From what the graph returns, which may have sides of length 1 after the vector, to `descriptors`."""
    flat = "import.vector" if settings.output.normalise else OUTPUT_NAME
    nodes = [
        helper.make_node("Cast", [result.name], ["import.floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["import.floats"], [flat], axis=1),
    ]
    if not settings.output.normalise:
        return nodes, {}
    constants: dict[str, object] = {"import.epsilon": np.float32(_EPSILON)}
    if opset < 18:
        length = helper.make_node("ReduceL2", [flat], ["import.length"], axes=[1], keepdims=1)
    else:
        constants["import.axis"] = np.array([1], np.int64)
        length = helper.make_node("ReduceL2", [flat, "import.axis"], ["import.length"], keepdims=1)
    nodes += [
        length,
        helper.make_node("Max", ["import.length", "import.epsilon"], ["import.divisor"]),
        helper.make_node("Div", [flat, "import.divisor"], [OUTPUT_NAME]),
    ]
    return nodes, constants
