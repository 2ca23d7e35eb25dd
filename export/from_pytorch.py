"""A network in PyTorch becomes an ONNX graph: uint8 photos in, unit descriptors out, normalisation inside.

The projection head, predictor and queue of training are no part of it.
"""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor, nn

from retrieval.bundle import INPUT_NAME, OUTPUT_NAME
from retrieval.bundle.exportable import Describe, ExportableModel, describe_in_batches
from retrieval.bundle.onnx_graph import replace_nodes
from retrieval.errors import BundleError
from training.checkpoint import ENCODER_NAME, load_encoder, open_checkpoint
from training.encoder import Encoder

OPSET: Final = 20

# What computes the original, for people.
PYTORCH: Final = f"PyTorch {torch.__version__.split('+')[0]}"

# Images that PyTorch describes at once.
_BATCH: Final = 8


def checkpoint_model(checkpoint: Path) -> ExportableModel:
    """Trace a checkpoint's encoder.

    Args:
        checkpoint: folder of a checkpoint.

    Raises:
        CheckpointError, WeightsMismatchError: see `load_encoder`; loading is strict, no layer is left random.
        BundleError: the network cannot be traced (``not_exportable``).
    """
    opened = open_checkpoint(checkpoint)
    return encoder_model(load_encoder(checkpoint), opened.recipe.name, opened.manifest.files[ENCODER_NAME].sha256)


def encoder_model(encoder: Encoder, name: str, weights_sha256: str | None = None) -> ExportableModel:
    """Trace an encoder.

    Args:
        encoder: on the CPU.
        name: of the bundle.
        weights_sha256: of the file the weights come from, for the graph's metadata.
    """
    graph = DescriptionGraph(encoder.net, encoder.normalisation.mean, encoder.normalisation.std).eval()
    metadata = {
        "sightfix.name": name,
        "sightfix.objective": encoder.provenance.objective or "none",
        "sightfix.descriptor_dim": str(encoder.descriptor_dim),
    }
    if weights_sha256 is not None:
        metadata["sightfix.encoder_sha256"] = weights_sha256
    height, width = encoder.preprocessing.height, encoder.preprocessing.width
    return ExportableModel(
        name=name,
        graph=export_graph(graph, height, width, metadata),
        preprocessing=encoder.preprocessing,
        descriptor_dim=encoder.descriptor_dim,
        provenance=encoder.provenance,
        licence=encoder.provenance.weights_licence,
        original=in_pytorch(graph),
        original_name=PYTORCH,
    )


def in_pytorch(graph: "DescriptionGraph") -> Describe:
    """Describe with PyTorch, in evaluation mode, a few images at a time.

    Args:
        graph: on the CPU.
    """

    def describe(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return describe_in_batches(lambda batch: graph(torch.from_numpy(batch)).numpy(), images, _BATCH)

    return describe


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
    # Exporters note the source lines of every node: machine paths, which do not belong in a published file.
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
    replace_nodes(model, [cast, *(node for node in model.graph.node if node is not cast)])
