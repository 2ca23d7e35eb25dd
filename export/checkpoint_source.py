"""From a checkpoint to a bundle: the encoder as an ONNX graph that describes as PyTorch does."""

from pathlib import Path
from typing import Final

from export.bundle_writer import BundleContent, write_bundle
from export.graph import DescriptionGraph, export_graph
from export.parity import compare_with_pytorch
from retrieval.bundle import Bundle, ParityReport
from retrieval.errors import BundleError
from training.checkpoint import load_encoder, open_checkpoint
from training.encoder import Encoder

MIN_COSINE: Final = 0.99999


def export_checkpoint(checkpoint: Path, folder: Path, *, name: str | None = None, replace: bool = False) -> Bundle:
    """Export a checkpoint's encoder in fp32; projection head, predictor and queue are no part of it.

    Args:
        checkpoint: folder of a checkpoint.
        folder: where the bundle shall be.
        name: of the bundle; the recipe's if left out.
        replace: whether a bundle that is already there may be replaced.

    Raises:
        CheckpointError, WeightsMismatchError: see `load_encoder`.
        BundleError: the graph describes images otherwise than PyTorch does (nothing is written).
        ParameterError: the folder exists, and either `replace` is not set or it is not a bundle's.
    """
    recipe = open_checkpoint(checkpoint).recipe
    encoder = load_encoder(checkpoint)
    name = name or recipe.name
    height, width = encoder.preprocessing.height, encoder.preprocessing.width
    graph = DescriptionGraph(encoder.net, encoder.normalisation.mean, encoder.normalisation.std).eval()
    metadata = {
        "sightfix.name": name,
        "sightfix.objective": encoder.provenance.objective or "none",
        "sightfix.descriptor_dim": str(encoder.descriptor_dim),
    }
    model = export_graph(graph, height, width, metadata)
    parity = compare_with_pytorch(graph, model.SerializeToString(), height, width)
    # Not `<`: a NaN must not pass.
    if not parity.min_cosine >= MIN_COSINE:
        raise BundleError(f"the graph differs from PyTorch: worst cosine {parity.min_cosine:.6f}", code="parity_failed")
    content = BundleContent(
        name=name,
        graphs={"fp32": model},
        preprocessing=encoder.preprocessing,
        descriptor_dim=encoder.descriptor_dim,
        provenance=encoder.provenance,
        parity=parity,
        licence=encoder.provenance.weights_licence,
        model_card=_model_card(name, encoder, parity),
    )
    return write_bundle(folder, content, replace=replace)


def _model_card(name: str, encoder: Encoder, parity: ParityReport) -> str:
    provenance, image = encoder.provenance, encoder.preprocessing
    recalls = "".join(f"| {what} | {100 * recall:.1f} % |\n" for what, recall in provenance.recalls.items())
    return f"""# {name}

| | |
|---|---|
| backbone | `{provenance.backbone}`, {provenance.aggregation} |
| descriptor | {encoder.descriptor_dim} numbers, unit length |
| objective | {provenance.objective or "none"} |
| began from | {provenance.weights}, {provenance.weights_licence} |
| trained on | {provenance.training_data} |
| input | {image.height} × {image.width} RGB, {image.fit}, {image.filter} antialiased |
| worst cosine to {parity.reference} | {parity.min_cosine:.7f} on {parity.images} images |
{recalls}
Recalls are of the validation photos during training, by which the checkpoint was chosen: optimistic. Measure on photos
of your own with `sightfix evaluate`. The licence of the photos it was trained on may bind you too.
"""
