"""Whitening as one linear layer and an L2 norm at the end of a graph."""

from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.source import ExportSource
from retrieval.bundle import OUTPUT_NAME
from retrieval.index.whitening import Whitening

_RAW = "descriptors.before_whitening"


def whiten(source: ExportSource, whitening: Whitening) -> ExportSource:
    """The same model with whitened descriptors; its truth is whitened in numpy.

    Args:
        source: its descriptors have the length that `whitening` was fitted on.
        whitening: the layer.
    """
    truth = source.truth

    def whitened_truth(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return whitening.apply(truth(images))

    return replace(
        source,
        graph=with_whitening(source.graph, whitening),
        descriptor_dim=whitening.projection.shape[1],
        truth=whitened_truth,
        truth_name=f"{source.truth_name}, whitened in numpy",
    )


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
