"""A trained encoder as something to export: projection head, predictor and queue are no part of it."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from export.graph import DescriptionGraph, export_graph
from export.source import Describe, ExportSource
from training.checkpoint import ENCODER_NAME, load_encoder, open_checkpoint
from training.encoder import Encoder


def checkpoint_source(checkpoint: Path) -> ExportSource:
    """Trace a checkpoint's encoder.

    Args:
        checkpoint: folder of a checkpoint.

    Raises:
        CheckpointError, WeightsMismatchError: see `load_encoder`; loading is strict, no layer is left random.
        BundleError: the network cannot be traced (``not_exportable``).
    """
    opened = open_checkpoint(checkpoint)
    return encoder_source(load_encoder(checkpoint), opened.recipe.name, opened.manifest.files[ENCODER_NAME].sha256)


def encoder_source(encoder: Encoder, name: str, weights_sha256: str | None = None) -> ExportSource:
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
        "sightfix.encoder_sha256": weights_sha256 or "none",
    }
    height, width = encoder.preprocessing.height, encoder.preprocessing.width
    return ExportSource(
        name=name,
        graph=export_graph(graph, height, width, metadata),
        preprocessing=encoder.preprocessing,
        descriptor_dim=encoder.descriptor_dim,
        provenance=encoder.provenance,
        licence=encoder.provenance.weights_licence,
        truth=in_pytorch(graph),
        truth_name=f"PyTorch {torch.__version__.split('+')[0]}",
    )


def in_pytorch(graph: DescriptionGraph, at_once: int = 8) -> Describe:
    """Describe with PyTorch, in evaluation mode, a few images at a time.

    Args:
        graph: on the CPU.
        at_once: images.
    """

    def describe(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            parts = [
                graph(torch.from_numpy(images[begin : begin + at_once])).numpy()
                for begin in range(0, len(images), at_once)
            ]
        return np.concatenate(parts)

    return describe
