"""The ONNX graph of a descriptor net: uint8 photos in, unit descriptors out, normalisation inside."""

import logging
import warnings
from collections.abc import Mapping
from typing import Final

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from retrieval.bundle import INPUT_NAME, OUTPUT_NAME
from retrieval.errors import BundleError

OPSET: Final = 20

# Tensors below this size (biases, scales) stay in fp32: they weigh nothing and matter more.
_SMALLEST_HALVED: Final = 1024


class DescriptionGraph(nn.Module):
    """A descriptor net behind its input contract.

    Args:
        net: (N, 3, H, W) normalised float → (N, D) unit rows.
        mean, std: per channel or scalar, in units of 8-bit RGB: the net sees (x - mean) / std.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: float | tuple[float, ...], std: float | tuple[float, ...]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 RGB → (N, D) float32 unit rows."""
        # Cast first: TensorRT lets nothing else read a uint8 input.
        normalised = (images.float().permute(0, 3, 1, 2) - self.mean) / self.std
        descriptors: Tensor = self.net(normalised)
        return descriptors


def export_graph(graph: DescriptionGraph, height: int, width: int, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """Export to ONNX with a dynamic batch and a fixed image size, checked by `onnx.checker`.

    Args:
        graph: in evaluation mode.
        height, width: of the input, pixels.
        metadata: key-value pairs to store in the file.

    Returns:
        the model: input ``images`` uint8 [N, H, W, 3], output ``descriptors`` float32 [N, D].

    Raises:
        BundleError: the network cannot be traced, for one because its shapes depend on values (``not_exportable``).
    """
    model = _traced(graph.eval(), torch.zeros((2, height, width, 3), dtype=torch.uint8))
    # Exporters note the source lines of every node: machine paths, which have no place in a file we give away.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer]:
        del value.metadata_props[:]
    cast_input_first(model)
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    length = model.graph.output[0].type.tensor_type.shape.dim
    if len(length) != 2 or length[1].dim_value < 1:
        raise _not_exportable("its descriptor has no fixed length")
    return model


def _traced(graph: nn.Module, example: Tensor) -> onnx.ModelProto:
    """Trace and simplify; constants are folded and what nothing uses is removed by the exporter's own optimiser."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes={"images": {0: torch.export.Dim("N", min=1)}},
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # torch raises dozens of types here; only their texts tell them apart
        raise _not_exportable(_last_cause(error)) from error
    assert program is not None, "torch.onnx.export(dynamo=True) returns a program"
    model: onnx.ModelProto = program.model_proto
    return model


def _last_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _not_exportable(reason: str) -> BundleError:
    return BundleError(
        f"the network cannot become an ONNX graph: {reason.rstrip('.')}",
        remedy="Every shape in it must follow from the size of the input, none from the values of the pixels",
        code="not_exportable",
    )


def cast_input_first(model: onnx.ModelProto) -> None:
    """Let only a Cast read the uint8 input, as TensorRT demands: other nodes that want its shape read the cast one.

    Works in place; a graph in which something else must read the input is left as it is.
    """
    (images,) = model.graph.input
    cast = next((node for node in model.graph.node if node.op_type == "Cast" and node.input[0] == images.name), None)
    if cast is None:
        return
    for node in model.graph.node:
        if node.op_type == "Shape":
            node.input[:] = [cast.output[0] if name == images.name else name for name in node.input]
    others = [node for node in model.graph.node if node is not cast]
    first = [onnx.NodeProto.FromString(node.SerializeToString()) for node in (cast, *others)]
    del model.graph.node[:]
    model.graph.node.extend(first)


def store_weights_as_fp16(model: onnx.ModelProto) -> None:
    """Store large fp32 weights as fp16, each followed by a Cast: half the file, still computed in fp32.

    Runtimes fold the casts when they load the graph, so speed does not change. Works in place.
    """
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or int(np.prod(tensor.dims)) < _SMALLEST_HALVED:
            continue
        name = tensor.name
        halved = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{name}.fp16")
        tensor.CopyFrom(halved)
        casts.append(helper.make_node("Cast", [halved.name], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes])
    onnx.checker.check_model(model, full_check=True)
