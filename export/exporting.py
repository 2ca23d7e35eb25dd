"""From a source to a bundle: camera, whitening, precisions; every step proven, then written whole or not at all."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from export.bundle_writer import BundleContent, check_free, write_bundle
from export.camera import take_camera_frames, with_resize
from export.gate import MIN_PHOTOS, require_gate, require_photos
from export.graph import store_weights_as_fp16
from export.lowering import lower_precision
from export.parity import MIN_COSINE, MIN_COSINE_OF_ROUNDED_WEIGHTS, check_parity
from export.photos import describe_photos, evenly, read_photos
from export.recall_change import recall_changes
from export.source import Describe, ExportSource, run_on_cpu
from export.whitening_layer import whiten
from retrieval.artefact import FileRecord
from retrieval.bundle import Bundle, Precision, PrecisionReport, RecallChange, WhiteningReport, bundle_fingerprint
from retrieval.evaluation.eval_set import EvalSet
from retrieval.images import Preprocessing
from retrieval.index.whitening import HALF_WHITENING, fit_whitening
from retrieval.references.reference import Reference

# More photos than this do not change the directions, and take memory and minutes.
_MOST_TO_FIT: Final = 20_000
_MOST_TO_JUDGE: Final = 256
_MOST_BYTES_TO_JUDGE: Final = 400_000_000

# What a step is called, and how many photos it will describe.
OnStep = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class WhiteningSettings:
    """How to whiten.

    Attributes:
        dim: numbers a descriptor shall have.
        photos: the reference database to fit on.
        fitted_on: what these photos are, for people.
        power: of the singular values; see `retrieval.index.whitening`.
    """

    dim: int
    photos: Sequence[Reference]
    fitted_on: str
    power: float = HALF_WHITENING


@dataclass(frozen=True)
class ExportSettings:
    """What to make of a source.

    Attributes:
        name: of the bundle; the source's if None.
        camera: (height, width) of whole frames that the graph resizes itself, pixels.
        whitening: whether and how to whiten.
        precisions: besides fp32.
        photos: to calibrate and judge lower precisions by; at least 64.
        eval_sets: to measure what whitening and precisions do to recall.
        accept_loss: write precisions that fail the gate; the manifest says so.
        weight_storage: how the fp32 graph's file stores weights.
    """

    name: str | None = None
    camera: tuple[int, int] | None = None
    whitening: WhiteningSettings | None = None
    precisions: Sequence[Precision] = ()
    photos: Sequence[Reference] = ()
    eval_sets: Sequence[EvalSet] = ()
    accept_loss: bool = False
    weight_storage: Literal["fp32", "fp16"] = "fp32"


@dataclass
class _Steps:
    """Reports progress, if anybody listens."""

    on_step: OnStep | None

    def begin(self, what: str, photos: int) -> AbstractContextManager[Callable[[int], None]]:
        return nullcontext(lambda _: None) if self.on_step is None else self.on_step(what, photos)


def write_export(
    source: ExportSource,
    folder: Path,
    settings: ExportSettings | None = None,
    *,
    replace_folder: bool = False,
    on_step: OnStep | None = None,
) -> Bundle:
    """Make a bundle of a source.

    Args:
        source: graph and truth.
        folder: where the bundle shall be.
        settings: what to make of it; as it is, in fp32, by default.
        replace_folder: whether a bundle that is already there may be replaced.
        on_step: opens a progress bar for a step that describes photos.

    Raises:
        ParameterError: the folder is taken, or too few photos to fit, to calibrate or to judge by.
        BundleError: the graph differs from the truth (``parity_failed``), or a precision fails its gate
            (``precision_gate_failed``); nothing is written.
        ImageError: a photo cannot be read.
    """
    settings = settings or ExportSettings()
    check_free(folder, replace=replace_folder)
    _check_photos(settings)
    steps = _Steps(on_step)
    source, whitening = _whitened(replace(source, name=settings.name or source.name), settings, steps)
    graphs, reports = _lower_precisions(source, settings, steps)
    final = source if settings.camera is None else take_camera_frames(source, *settings.camera)
    final = replace(final, graph=_stored(final, settings.weight_storage))
    threshold = MIN_COSINE if settings.weight_storage == "fp32" else MIN_COSINE_OF_ROUNDED_WEIGHTS
    content = BundleContent(
        name=final.name,
        graphs={"fp32": final.graph, **_finished(graphs, source, final)},
        preprocessing=final.preprocessing,
        descriptor_dim=final.descriptor_dim,
        provenance=final.provenance,
        parity=check_parity(final, min_cosine=threshold),
        licence=final.licence,
        weight_storage=settings.weight_storage,
        whitening=whitening,
        precisions=reports,
        camera_model_input=None if settings.camera is None else source.preprocessing,
    )
    return write_bundle(folder, content, replace=replace_folder)


def _check_photos(settings: ExportSettings) -> None:
    for precision in settings.precisions:
        require_photos(len(settings.photos), precision)


def _whitened(
    source: ExportSource, settings: ExportSettings, steps: _Steps
) -> tuple[ExportSource, WhiteningReport | None]:
    """Fit and append the whitening, and measure what it does to recall."""
    if settings.whitening is None:
        return source, None
    wanted = settings.whitening
    describe = run_on_cpu(source.graph)
    photos = evenly(wanted.photos, _MOST_TO_FIT)
    if len(photos) <= wanted.dim:  # before minutes of describing
        fit_whitening(np.zeros((len(photos), source.descriptor_dim), np.float32), wanted.dim, wanted.power)
    with steps.begin("Describing photos to whiten by", len(photos)) as advance:
        descriptors = describe_photos(photos, source.preprocessing, {"raw": describe}, advance)["raw"]
    whitening = fit_whitening(descriptors, wanted.dim, wanted.power)
    whitened = whiten(source, whitening)
    changes = _recall(source, {"whitened": run_on_cpu(whitened.graph)}, settings, steps)
    report = WhiteningReport(
        from_dim=source.descriptor_dim,
        dim=wanted.dim,
        power=wanted.power,
        fitted_on=wanted.fitted_on,
        photos=len(photos),
        explained=whitening.explained,
        recall=changes["whitened"],
    )
    return whitened, report


def _lower_precisions(
    source: ExportSource, settings: ExportSettings, steps: _Steps
) -> tuple[dict[Precision, onnx.ModelProto], dict[Precision, PrecisionReport]]:
    """Make each precision and put it through its gate."""
    graphs: dict[Precision, onnx.ModelProto] = {}
    reports: dict[Precision, PrecisionReport] = {}
    if not settings.precisions:
        return graphs, reports
    chosen = _chosen_to_judge(settings, source.preprocessing)
    photos = _read_all(chosen, source.preprocessing, steps)
    worst: dict[Precision, str] = {}
    for precision in dict.fromkeys(settings.precisions):
        lowered = lower_precision(source.graph, precision, photos)
        graphs[precision], reports[precision] = lowered.graph, lowered.report
        worst[precision] = chosen[lowered.worst].id
    changes = _recall(source, {name: run_on_cpu(graph) for name, graph in graphs.items()}, settings, steps)
    for precision, report in reports.items():
        reports[precision] = require_gate(
            precision,
            report.model_copy(update={"recall": changes[precision]}),
            accept_loss=settings.accept_loss,
            worst_photo=worst[precision],
        )
    return graphs, reports


def _chosen_to_judge(settings: ExportSettings, preprocessing: Preprocessing) -> list[Reference]:
    """As many photos as memory allows, at least what the gate wants."""
    size = preprocessing.height * preprocessing.width * 3
    return evenly(settings.photos, max(MIN_PHOTOS, min(_MOST_TO_JUDGE, _MOST_BYTES_TO_JUDGE // size)))


def _read_all(photos: Sequence[Reference], preprocessing: Preprocessing, steps: _Steps) -> NDArray[np.uint8]:
    """(n, H, W, 3) uint8."""
    parts = []
    with steps.begin("Reading photos to judge by", len(photos)) as advance:
        for images in read_photos(photos, preprocessing):
            parts.append(images)
            advance(len(images))
    return np.concatenate(parts)


def _recall(
    before: ExportSource, after: Mapping[str, Describe], settings: ExportSettings, steps: _Steps
) -> dict[str, tuple[RecallChange, ...]]:
    count = sum(len(photos.database) + len(photos.queries) for photos in settings.eval_sets)
    with steps.begin("Measuring recall", count) as advance:
        return recall_changes(
            settings.eval_sets, before.preprocessing, run_on_cpu(before.graph), after, on_progress=advance
        )


def _stored(source: ExportSource, weight_storage: Literal["fp32", "fp16"]) -> onnx.ModelProto:
    """The fp32 graph as it shall be written."""
    graph = _labelled(source.graph, source, {})
    if weight_storage == "fp16":
        store_weights_as_fp16(graph)
    return graph


def _finished(
    graphs: Mapping[Precision, onnx.ModelProto], source: ExportSource, final: ExportSource
) -> dict[Precision, onnx.ModelProto]:
    """Graphs of lower precision, for the camera too, and saying which bundle they belong to."""
    data = final.graph.SerializeToString(deterministic=True)
    record = FileRecord(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    label = {"sightfix.fingerprint": bundle_fingerprint(record, final.preprocessing)}
    if final.preprocessing != source.preprocessing:
        height, width = final.preprocessing.height, final.preprocessing.width
        graphs = {name: with_resize(graph, height, width, source.preprocessing) for name, graph in graphs.items()}
    return {precision: _labelled(graph, final, label) for precision, graph in graphs.items()}


def _labelled(graph: onnx.ModelProto, source: ExportSource, more: Mapping[str, str]) -> onnx.ModelProto:
    """A copy whose metadata says what it is."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    known = {entry.key: entry.value for entry in graph.metadata_props}
    helper.set_model_props(
        copy,
        {
            **known,
            "sightfix.name": source.name,
            "sightfix.objective": source.provenance.objective or "none",
            "sightfix.descriptor_dim": str(source.descriptor_dim),
            **more,
        },
    )
    return copy
