"""From a model to a bundle: whitening, precisions, camera; each step is checked, then all is written or nothing."""

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from export.camera import take_camera_frames, with_resize
from export.photos import describe_photos, evenly, read_photos, recall_changes
from export.precision import MIN_PHOTOS, check_precision, lower_precision, require_photos
from retrieval.artefact import FileRecord
from retrieval.bundle import Bundle, Precision, PrecisionReport, RecallChange, WhiteningReport, bundle_fingerprint
from retrieval.bundle.adaptation import (
    IN_NUMPY,
    fit_adaptation,
    in_numpy,
    photos_to_fit,
    write_adapted,
)
from retrieval.bundle.exportable import (
    MIN_COSINE,
    MIN_COSINE_OF_ROUNDED_WEIGHTS,
    Describe,
    ExportableModel,
    bundle_model,
    compare_with_original,
    labelled,
    run_on_cpu,
)
from retrieval.bundle.onnx_graph import digest_of, restore_fp32_weights, store_weights_as_fp16, with_whitening
from retrieval.bundle.vlad import LEAST_PHOTOS, too_few_photos
from retrieval.bundle.whitening import HALF_WHITENING, fit_whitening
from retrieval.bundle.writer import BundleContent, check_free, write_bundle
from retrieval.evaluation.eval_set import EvalSet
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
        power: of the singular values; see `retrieval.bundle.whitening`.
    """

    dim: int
    photos: Sequence[Reference]
    fitted_on: str
    power: float = HALF_WHITENING


@dataclass(frozen=True)
class ExportSettings:
    """What to make of a model.

    Attributes:
        name: of the bundle; None takes the model's, with what is done to it.
        camera: (height, width) of whole frames that the graph resizes itself, pixels.
        whitening: whether and how to whiten.
        precisions: besides fp32.
        photos: to find int8's ranges on and to judge lower precisions by; at least 64.
        eval_sets: to measure what whitening and precisions do to recall.
        accept_loss: write precisions that fail their check; the manifest says so.
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


def _no_progress(what: str, photos: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda _: None)


def write_export(
    model: ExportableModel,
    folder: Path,
    settings: ExportSettings | None = None,
    *,
    replace_folder: bool = False,
    on_step: OnStep = _no_progress,
) -> Bundle:
    """Make a bundle of a model.

    Args:
        model: graph and original.
        folder: where the bundle shall be.
        settings: what to make of it; as it is, in fp32, by default.
        replace_folder: whether a bundle that is already there may be replaced.
        on_step: opens a progress bar for a step that reads or describes photos.

    Raises:
        ParameterError: the folder is taken, or too few photos to fit or to judge by.
        BundleError: the graph differs from the original (``parity_failed``), or a precision fails its check
            (``precision_gate_failed``); nothing is written.
        ImageError: a photo cannot be read.
    """
    settings = settings or ExportSettings()
    check_free(folder, replace=replace_folder)
    for precision in settings.precisions:
        require_photos(len(settings.photos), precision)
    whitening, min_cosine = None, MIN_COSINE
    if settings.whitening is not None:
        model, whitening = _whiten(model, settings.whitening, settings, on_step)
    graphs, reports = _lower_precisions(model, settings, on_step)
    final = model if settings.camera is None else take_camera_frames(model, *settings.camera)
    final = replace(final, name=settings.name or final.name)
    final = replace(final, graph=labelled(final.graph, final, {}))
    if settings.weight_storage == "fp16":
        store_weights_as_fp16(final.graph)
        min_cosine = MIN_COSINE_OF_ROUNDED_WEIGHTS
    content = BundleContent(
        name=final.name,
        graphs={"fp32": final.graph, **_finished(graphs, model, final)},
        preprocessing=final.preprocessing,
        descriptor_dim=final.descriptor_dim,
        provenance=final.provenance,
        parity=compare_with_original(final, min_cosine),
        licence=final.licence,
        weight_storage=settings.weight_storage,
        dense_outputs=final.dense_outputs,
        adaptation=final.adaptation,
        whitening=whitening,
        precisions=reports,
        camera_model_input=None if settings.camera is None else model.preprocessing,
    )
    return write_bundle(folder, content, replace=replace_folder)


def adapted_model(
    model: ExportableModel, photos: Sequence[Reference], fitted_on: str, on_step: OnStep = _no_progress
) -> ExportableModel:
    """A model fitted to the photos of a place; see `retrieval.bundle.adaptation`.

    Args:
        model: an adaptable one.
        photos: of the place, ten or more; of many some are taken, see `photos_to_fit`.
        fitted_on: what these photos are, for people.
        on_step: opens a progress bar.

    Raises:
        ParameterError: the model is not adaptable, or there are fewer than ten photos.
        BundleError: the graph fails to run, or differs from what it should compute (``parity_failed``).
        ImageError: a photo cannot be read.
    """
    if len(photos) < LEAST_PHOTOS:
        raise too_few_photos(len(photos))
    lat, lon = (np.array([getattr(photo.position, name) for photo in photos]) for name in ("lat", "lon"))
    chosen = [photos[row] for row in photos_to_fit(lat, lon)]
    with tempfile.TemporaryDirectory() as folder, on_step("Fitting to the place", len(chosen)) as advance:
        plain = write_export(model, Path(folder) / "plain", ExportSettings(weight_storage="fp16"))
        adaptation = fit_adaptation(plain, read_photos(chosen, plain.preprocessing), on_progress=advance).adaptation
        adapted = write_adapted(plain, adaptation, Path(folder) / "adapted", fitted_on)
        graph = restore_fp32_weights(onnx.load(plain.graph_path("fp32")))
        return replace(bundle_model(adapted.folder), original=in_numpy(graph, adaptation), original_name=IN_NUMPY)


def _whiten(
    model: ExportableModel, wanted: WhiteningSettings, settings: ExportSettings, on_step: OnStep
) -> tuple[ExportableModel, WhiteningReport]:
    """Fit a whitening, append it to the graph (the original is whitened in numpy), and measure recall."""
    photos = evenly(wanted.photos, _MOST_TO_FIT)
    if len(photos) <= wanted.dim:  # before minutes of describing
        fit_whitening(np.zeros((len(photos), model.descriptor_dim), np.float32), wanted.dim, wanted.power)
    with on_step("Describing photos to whiten by", len(photos)) as advance:
        raw = describe_photos(photos, model.preprocessing, {"raw": run_on_cpu(model.graph)}, advance)["raw"]
    whitening = fit_whitening(raw, wanted.dim, wanted.power)
    original = model.original

    def whitened_original(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return whitening.apply(original(images))

    graph = with_whitening(model.graph, whitening)
    whitened = replace(
        model,
        name=f"{model.name}-whitened-{digest_of(graph)}",
        graph=graph,
        descriptor_dim=wanted.dim,
        original=whitened_original,
        original_name=f"{model.original_name}, whitened in numpy",
        # Adapting it (anew) would throw the whitening away.
        dense_outputs=(),
        adaptation=None,
    )
    changes = _recall(model, {"whitened": run_on_cpu(whitened.graph)}, settings, on_step)
    report = WhiteningReport(
        from_dim=model.descriptor_dim,
        dim=wanted.dim,
        power=wanted.power,
        fitted_on=wanted.fitted_on,
        photos=len(photos),
        explained=whitening.explained,
        recall=changes["whitened"],
    )
    return whitened, report


def _lower_precisions(
    model: ExportableModel, settings: ExportSettings, on_step: OnStep
) -> tuple[dict[Precision, onnx.ModelProto], dict[Precision, PrecisionReport]]:
    """Make and check a graph of each precision, on as many photos as memory allows."""
    if not settings.precisions:
        return {}, {}
    image_bytes = model.preprocessing.height * model.preprocessing.width * 3
    chosen = evenly(settings.photos, max(MIN_PHOTOS, min(_MOST_TO_JUDGE, _MOST_BYTES_TO_JUDGE // image_bytes)))
    parts = []
    with on_step("Reading photos to judge by", len(chosen)) as advance:
        for images in read_photos(chosen, model.preprocessing):
            parts.append(images)
            advance(len(images))
    photos = np.concatenate(parts)
    lowered = {precision: lower_precision(model.graph, precision, photos) for precision in settings.precisions}
    after: dict[str, Describe] = {precision: run_on_cpu(one.graph) for precision, one in lowered.items()}
    changes = _recall(model, after, settings, on_step)
    reports = {
        precision: check_precision(
            precision,
            one.report.model_copy(update={"recall": changes[precision]}),
            accept_loss=settings.accept_loss,
            worst_photo=chosen[one.worst].id,
        )
        for precision, one in lowered.items()
    }
    return {precision: one.graph for precision, one in lowered.items()}, reports


def _recall(
    before: ExportableModel, after: Mapping[str, Describe], settings: ExportSettings, on_step: OnStep
) -> dict[str, tuple[RecallChange, ...]]:
    count = sum(len(photos.database) + len(photos.queries) for photos in settings.eval_sets)
    with on_step("Measuring recall", count) as advance:
        return recall_changes(settings.eval_sets, before.preprocessing, run_on_cpu(before.graph), after, advance)


def _finished(
    graphs: Mapping[Precision, onnx.ModelProto], model: ExportableModel, final: ExportableModel
) -> dict[Precision, onnx.ModelProto]:
    """Graphs of lower precision, for the camera too, and saying which bundle they belong to."""
    data = final.graph.SerializeToString(deterministic=True)
    record = FileRecord(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    label = {"sightfix.fingerprint": bundle_fingerprint(record, final.preprocessing)}
    if final.preprocessing != model.preprocessing:
        height, width = final.preprocessing.height, final.preprocessing.width
        graphs = {name: with_resize(graph, height, width, model.preprocessing) for name, graph in graphs.items()}
    return {precision: labelled(graph, final, label) for precision, graph in graphs.items()}
