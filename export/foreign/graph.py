"""Rewrite a foreign graph: one output, other operators, any batch size, and the bundle's contract around it."""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, inliner, numpy_helper, shape_inference, version_converter

from export.foreign.settings import ForeignSettings
from retrieval.bundle import INPUT_NAME, OUTPUT_NAME
from retrieval.bundle.onnx_graph import replace_nodes

# Of all graphs that sightfix exports itself.
TARGET_OPSET: Final = 20

# Below it, operators that we add had other signatures.
MIN_OPSET: Final = 11
_EPSILON: Final = 1e-12
# Of the names of a foreign graph inside ours.
PREFIX: Final = "model/"


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
    replace_nodes(copy, reversed(kept))
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


def free_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """A copy that takes any number of images, if Reshape and Concat are all that fixes it.

    Exported with an example of one image, many graphs state that number where they mean any: in the target of a
    Reshape, and in constants (a class token, say) that are joined to the tokens of every image. Both are rewritten, as
    if images came first in every reshaped array; the caller must run the graph to see whether they do.

    Args:
        model: one input and one output.
        batch: the number of images it was exported with.
    """
    freed = onnx.ModelProto()
    freed.CopyFrom(model)
    graph = freed.graph
    targets, ranks = _whole_numbers(graph), _ranks(model)
    of_images = {value.name for value in graph.input}
    nodes: list[onnx.NodeProto] = []
    for place, node in enumerate(graph.node):
        own = onnx.NodeProto.FromString(node.SerializeToString())
        shows_images = of_images.intersection(node.input)
        if shows_images and node.op_type == "Reshape":
            _free_reshape(graph, own, targets.get(node.input[1]), batch, place)
        elif shows_images and node.op_type == "Concat":
            nodes += _repeat_whole_numbers(graph, own, of_images, ranks, place)
        # What a Shape returns are an array's sides, not images.
        if shows_images and node.op_type != "Shape":
            of_images.update(node.output)
        nodes.append(own)
    replace_nodes(freed, nodes)
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    return freed


def _whole_numbers(graph: onnx.GraphProto) -> dict[str, NDArray[Any]]:
    """Values of all whole numbers among initializers and Constant nodes."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            tensors[node.output[0]] = value
    whole = onnx.TensorProto.INT64
    return {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items() if tensor.data_type == whole}


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    """The number of sides of every value of which onnx can infer it."""
    inferred = shape_inference.infer_shapes(model, data_prop=True).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in values}
    return ranks | {tensor.name: len(tensor.dims) for tensor in inferred.initializer}


def _free_reshape(
    graph: onnx.GraphProto, node: onnx.NodeProto, target: NDArray[Any] | None, batch: int, place: int
) -> None:
    """Let the first side of a Reshape's target follow from the number of images."""
    if target is None or target.ndim != 1 or len(target) == 0 or target[0] <= 0:
        return
    if (target > 0).all():
        first = -1  # whatever number of images, times heads or windows, is left
    elif target[0] == batch and 0 not in target:
        first = 0  # the input's first side, for another side is what is left
        del node.attribute[:]  # `allowzero` would make that an empty side
    else:
        return
    name = f"import.target.{place}"
    graph.initializer.append(numpy_helper.from_array(np.array([first, *target[1:]], np.int64), name))
    node.input[1] = name


def _repeat_whole_numbers(
    graph: onnx.GraphProto, node: onnx.NodeProto, of_images: set[str], ranks: dict[str, int], place: int
) -> list[onnx.NodeProto]:
    """Repeat what is the same for all images for each of them, where a Concat joins it to theirs.

    Returns:
        the nodes that do so; the Concat's inputs are changed in place.
    """
    axis = next(attribute.i for attribute in node.attribute if attribute.name == "axis")
    beside = next(name for name in node.input if name in of_images)
    rank = max((ranks.get(name, 0) for name in node.input), default=0)
    alone = [name for name in node.input if name not in of_images]
    if axis in (0, -rank) or rank < 2 or not alone:
        return []
    rows, zero, ones = f"import.rows.{place}", f"import.zero.{place}", f"import.ones.{place}"
    graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), zero))
    graph.initializer.append(numpy_helper.from_array(np.ones(rank - 1, np.int64), ones))
    added = [
        helper.make_node("Shape", [beside], [f"{rows}.sides"]),
        helper.make_node("Gather", [f"{rows}.sides", zero], [f"{rows}.first"], axis=0),
        helper.make_node("Concat", [f"{rows}.first", ones], [rows], axis=0),
    ]
    for number, name in enumerate(alone):
        repeated = f"import.repeated.{place}.{number}"
        added.append(helper.make_node("Expand", [name, rows], [repeated]))
        node.input[:] = [repeated if given == name else given for given in node.input]
    return added


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
    wrapped = compose.add_prefix(model, PREFIX, rename_functions=False)
    graph = wrapped.graph
    (theirs,), (result,) = graph.input, graph.output
    before, constants = _before(graph, theirs, settings)
    after, more = _after(result, settings, opset_of(model))
    for place, node in enumerate((*before, *after)):
        node.name = f"import/{place}_{node.op_type}"
    replace_nodes(wrapped, [*before, *graph.node, *after])
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
