"""A graph small enough to be worked out on paper."""

import onnx
from onnx import TensorProto, helper


def mean_colour_graph(height: int, width: int, *, offset: float = 0.0) -> onnx.ModelProto:
    """A bundle's graph of three numbers: the mean colour, unit length. Without an offset black is 0 / 0."""
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["mean"], keepdims=0),
        helper.make_node("ReduceL2", ["mean", "last"], ["length"], keepdims=1),
        helper.make_node("Div", ["mean", "length"], ["descriptors"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", height, width, 3])
    descriptors = helper.make_tensor_value_info("descriptors", TensorProto.FLOAT, ["N", 3])
    axes = [
        helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
        helper.make_tensor("last", TensorProto.INT64, [1], [1]),
    ]
    if offset:
        nodes[1].output[0] = "colour"
        nodes.insert(2, helper.make_node("Add", ["colour", "offset"], ["mean"]))
        axes.append(helper.make_tensor("offset", TensorProto.FLOAT, [1], [offset]))
    graph = helper.make_graph(nodes, "mean colour", [images], [descriptors], axes)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
