"""Free a batch size that an exporter has fixed: as far as that can be told from the graph.

Exported with an example of one image, many graphs state that number where they mean any: in the target of a Reshape,
and in constants (a class token, say) that are joined to the tokens of every image. Both are rewritten, as if images
came first in every reshaped array. Whether they do is for the caller to find out by running the graph.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, shape_inference


def free_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """A copy that takes any number of images, if Reshape and Concat are all that fixes it.

    Args:
        model: one input and one output.
        batch: the number of images it was exported with.
    """
    freed = onnx.ModelProto()
    freed.CopyFrom(model)
    graph = freed.graph
    targets, ranks = _constants(graph), _ranks(model)
    of_images = {value.name for value in graph.input}
    nodes: list[onnx.NodeProto] = []
    for place, node in enumerate(graph.node):
        own = onnx.NodeProto.FromString(node.SerializeToString())
        shows_images = of_images.intersection(node.input)
        if shows_images and node.op_type == "Reshape":
            _free_reshape(graph, own, targets.get(node.input[1]), batch, place)
        elif shows_images and node.op_type == "Concat":
            nodes += _repeat_constants(graph, own, of_images, ranks, place)
        # What a Shape returns speaks of an array's sides, not of the images in it.
        if shows_images and node.op_type != "Shape":
            of_images.update(node.output)
        nodes.append(own)
    del graph.node[:]
    graph.node.extend(nodes)
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    return freed


def _constants(graph: onnx.GraphProto) -> dict[str, NDArray[Any]]:
    """Values of all whole numbers among initializers and Constant nodes."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            tensors[node.output[0]] = value
    whole = onnx.TensorProto.INT64
    return {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items() if tensor.data_type == whole}


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    """The number of sides of every value that onnx can tell it of."""
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


def _repeat_constants(
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
