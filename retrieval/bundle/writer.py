"""Write a bundle: graphs, manifest and model card, whole or not at all."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import onnx

from retrieval.artefact import MANIFEST_NAME, new_folder, record_files, write_flushed
from retrieval.bundle import (
    AdaptationReport,
    Bundle,
    BundleManifest,
    DenseOutput,
    ParityReport,
    Precision,
    PrecisionReport,
    Provenance,
    RecallChange,
    WhiteningReport,
    bundle_fingerprint,
    open_bundle,
)
from retrieval.errors import ParameterError, StorageError, counted
from retrieval.images import Preprocessing

GRAPH_NAMES: Final[dict[Precision, str]] = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
MODEL_CARD_NAME: Final = "MODEL_CARD.md"
_OBJECTIVES: Final = {None: "none: never trained for places", "simclr": "SimCLR", "mocov2": "MoCo v2", "byol": "BYOL"}


@dataclass(frozen=True)
class BundleContent:
    """Everything a bundle states, before it is written."""

    name: str
    graphs: dict[Precision, onnx.ModelProto]
    preprocessing: Preprocessing
    descriptor_dim: int
    provenance: Provenance
    parity: ParityReport
    licence: str
    weight_storage: Literal["fp32", "fp16"] = "fp32"
    dense_outputs: tuple[DenseOutput, ...] = ()
    adaptation: AdaptationReport | None = None
    whitening: WhiteningReport | None = None
    precisions: Mapping[Precision, PrecisionReport] = field(default_factory=dict)
    camera_model_input: Preprocessing | None = None


def write_bundle(folder: Path, content: BundleContent, *, replace: bool = False) -> Bundle:
    """Write a bundle, whole or not at all.

    Args:
        folder: where the bundle shall be.
        content: what it holds.
        replace: whether a bundle that is already there may be replaced.

    Raises:
        ParameterError: the folder exists, and either `replace` is not set or it is not a bundle's.
        StorageError: the disk refuses; nothing is left behind.
    """
    check_free(folder, replace=replace)
    with new_folder(folder) as temporary:
        _write_files(temporary, content)
    return open_bundle(folder)


def check_free(folder: Path, *, replace: bool) -> None:
    """Refuse a folder that a bundle cannot be written to, before any work is done for it.

    Raises:
        ParameterError: the folder exists, and either `replace` is not set or it is not a bundle's.
        StorageError: the nearest folder above it that exists cannot be written to.
    """
    if folder.exists() and not replace:
        raise ParameterError(
            "the folder exists already", where=str(folder), remedy="Choose another, or add --replace to replace it"
        )
    if folder.exists() and not (folder / MANIFEST_NAME).is_file():
        raise ParameterError(
            "the folder exists and is not a bundle", where=str(folder), remedy="Choose another, or remove it"
        )
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise StorageError(
            "a bundle cannot be written there", where=str(above), remedy="Choose a folder you may write to"
        )


def _write_files(temporary: Path, content: BundleContent) -> None:
    names = {precision: GRAPH_NAMES[precision] for precision in content.graphs}
    for precision, model in content.graphs.items():
        write_flushed(temporary / names[precision], model.SerializeToString(deterministic=True))
    write_flushed(temporary / MODEL_CARD_NAME, model_card(content).encode())
    files = record_files(temporary, [*names.values(), MODEL_CARD_NAME])
    fingerprint = bundle_fingerprint(files[names["fp32"]], content.preprocessing)
    BundleManifest.model_validate({**vars(content), "graphs": names, "files": files, "fingerprint": fingerprint}).write(
        temporary
    )


def model_card(content: BundleContent) -> str:
    """What a bundle states as Markdown (Mitchell et al., "Model Cards for Model Reporting", FAT* 2019)."""
    provenance, parity = content.provenance, content.parity
    rows = [
        ("backbone", f"`{provenance.backbone}`"),
        ("aggregation", f"{provenance.aggregation}, then L2 norm"),
        ("descriptor", f"{content.descriptor_dim} numbers, unit length"),
        ("objective", _OBJECTIVES.get(provenance.objective, provenance.objective or "")),
        ("weights", f"{provenance.weights} ({provenance.weights_licence})"),
        ("trained on", provenance.training_data),
        ("trained for places", "no" if provenance.objective is None else "yes"),
        ("input", _input(content.preprocessing, content.camera_model_input)),
        ("file", "weights stored as fp16, computed in fp32" if content.weight_storage == "fp16" else "fp32"),
        *_adaptable(content.dense_outputs),
        ("licence", content.licence),
        (f"worst cosine to {parity.reference}", f"{parity.min_cosine:.7f} on {counted(parity.images, 'image')}"),
    ]
    parts = [
        f"# {content.name}",
        "Turns a photo into a descriptor by which photos of the same place are found. Made with sightfix.",
        _table(("", ""), rows),
        *_recalls(provenance),
        *_adaptation(content.adaptation),
        *_whitening(content.whitening),
        *_precisions(content.precisions),
        "## Intended use\n\n" + _intended_use(provenance),
        "## Limits\n\n" + _limits(provenance),
        f"## Licence\n\n{content.licence}. The licence of the photos it was trained or fitted on may bind you too.",
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _input(preprocessing: Preprocessing, camera_model_input: Preprocessing | None) -> str:
    size = f"{preprocessing.height} × {preprocessing.width} RGB"
    rule = f"{preprocessing.fit}, {preprocessing.filter} antialiased"
    if camera_model_input is None:
        return f"{size}, {rule}"
    inner = f"{camera_model_input.height} × {camera_model_input.width}"
    return f"{size}: whole camera frames, which the graph resizes to {inner} ({rule})"


def _recalls(provenance: Provenance) -> list[str]:
    if not provenance.recalls:
        return []
    rows = [(what, f"{100 * recall:.1f} %") for what, recall in provenance.recalls.items()]
    return [
        "## Recall while it was trained\n\n" + _table(("validation", "recall"), rows),
        "Of the validation photos by which the checkpoint was chosen, and so optimistic.",
    ]


def _adaptable(dense_outputs: Sequence[DenseOutput]) -> list[tuple[str, str]]:
    layers = ", ".join(f"`{output.layer}`" for output in dense_outputs)
    return [("adapts to a place with", layers)] if dense_outputs else []


def _adaptation(adaptation: AdaptationReport | None) -> list[str]:
    if adaptation is None:
        return []
    rows = [
        (
            f"vocabulary of {vocabulary.layer}",
            f"{counted(vocabulary.centroids, 'centroid')} of {counted(vocabulary.fitted_on, 'local descriptor')}, "
            f"quantisation error {vocabulary.quantisation_error:.3f}",
        )
        for vocabulary in adaptation.vocabularies
    ]
    projection = adaptation.projection
    rows.append(("projection", f"from {projection.from_dim:,} to {projection.dim} numbers"))
    text = (
        f"## Adaptation\n\nFitted to {counted(adaptation.photos, 'photo')} of {adaptation.fitted_on}, from the bundle "
        f"{adaptation.base_name} ({adaptation.base_fingerprint[:12]}). It is meant for that place; elsewhere it is "
        "little better than what it was made from."
    )
    return [text, _table(("", ""), rows)]


def _whitening(whitening: WhiteningReport | None) -> list[str]:
    if whitening is None:
        return []
    text = (
        f"## Whitening\n\nFrom {whitening.from_dim} to {whitening.dim} numbers, with power {whitening.power:g} of the "
        f"singular values, fitted on {counted(whitening.photos, 'photo')} of {whitening.fitted_on}. "
        f"{100 * whitening.explained:.0f} % of their variance is kept. Elsewhere it may help less, or hurt."
    )
    return [text, *_recall_table(whitening.recall)]


def _precisions(reports: Mapping[Precision, PrecisionReport]) -> list[str]:
    if not reports:
        return []
    rows = [
        (
            precision,
            f"{report.min_cosine:.5f}",
            f"{report.mean_cosine:.5f}",
            str(report.images),
            "failed, loss accepted" if report.accepted_loss else "passed",
        )
        for precision, report in reports.items()
    ]
    head = ("precision", "worst cosine to fp32", "mean", "photos", "precision check")
    changes = [table for precision, report in reports.items() for table in _recall_table(report.recall, precision)]
    return ["## Precisions\n\n" + _table(head, rows), *changes]


def _recall_table(changes: tuple[RecallChange, ...], precision: str | None = None) -> list[str]:
    if not changes:
        return []
    rows = [
        (
            f"{change.evaluation_set}, {change.radius_m:g} m",
            str(change.queries),
            f"{100 * change.chance:.1f} %",
            f"{100 * change.before:.1f} %",
            f"{100 * change.after:.1f} %",
            f"{100 * change.change:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]",
        )
        for change in changes
    ]
    head = ("evaluation set", "queries", "chance", "before", f"{precision or 'after'}", "change, 95 % interval")
    return ["Recall@1:\n\n" + _table(head, rows)]


def _intended_use(provenance: Provenance) -> str:
    if provenance.objective is None:
        return (
            "To try sightfix, as a baseline, and where photos resemble each other in viewpoint and light. A model "
            "trained on places bridges seasons, night and changed viewpoints better."
        )
    return (
        "To find photos of the same place, in areas that look like those it was trained on. Measure it on photos of "
        "your own before you rely on it: `sightfix evaluate`."
    )


def _limits(provenance: Provenance) -> str:
    imagenet = (
        " The photos ImageNet was built from carry the biases of the web: places outside North America and Europe are "
        "rarer."
        if "imagenet" in f"{provenance.training_data} {provenance.weights}".lower()
        else ""
    )
    return (
        "It was not made for opposite viewpoints of one spot, for maps or drawings, nor to tell that a photo shows a "
        "place that is not in the index: scores are not probabilities. It must not be the only source of position "
        "where an error could harm somebody." + imagenet
    )
