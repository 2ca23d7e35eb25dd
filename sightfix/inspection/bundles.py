"""Inspecting bundles: whether one is whole and does what it states, and how two of them differ."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from retrieval.artefact import verify_files
from retrieval.bundle import Bundle, BundleManifest, Precision, bundle_folder
from retrieval.describer import Describer
from retrieval.errors import BundleError, ParameterError, SightfixError
from retrieval.images import Preprocessing, read_image

_IMAGES: Final = 4
_UNIT: Final = 1e-3

# Of made-up images: a graph of lower precision stays far above it, that of another model far below.
_SAME_MODEL: Final = 0.9
_AT_ONCE: Final = 16


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Attributes:
        what: was checked, such as `model.onnx`.
        found: in words.
        error: what is wrong, if something is.
    """

    what: str
    found: str
    error: SightfixError | None = None


def check_bundle(folder: Path | None = None) -> Iterator[Check]:
    """Check a bundle's files against its manifest, and run every graph on made-up images.

    Args:
        folder: as users name it, see `bundle_folder`.

    Yields:
        what was checked, as soon as it was. Graphs are not run while a file is damaged.

    Raises:
        BundleError: there is no manifest that can be read.
    """
    folder = bundle_folder(folder)
    manifest = BundleManifest.read(folder, BundleError)
    yield Check("manifest", f"{manifest.name}, fingerprint {manifest.fingerprint[:12]}")
    whole = True
    for name, record in manifest.files.items():
        try:
            verify_files(folder, manifest.files, names=[name], error_type=BundleError)
        except BundleError as error:
            whole = False
            yield Check(name, "damaged", error)
        else:
            yield Check(name, f"{record.size} bytes, SHA-256 {record.sha256[:12]}")
    if whole:
        yield from _check_graphs(Bundle(folder, manifest))


def _check_graphs(bundle: Bundle) -> Iterator[Check]:
    images = made_up_images(bundle.preprocessing)
    fp32: NDArray[np.float32] | None = None
    for precision in sorted(bundle.manifest.graphs, key=lambda name: name != "fp32"):
        try:
            descriptors = _describe(bundle, precision, images)
            cosine = None if fp32 is None else float((descriptors * fp32).sum(axis=1).min())
            _check_cosine(bundle, precision, cosine)
        except SightfixError as error:
            yield Check(f"{precision} graph", "fails", error)
            continue
        if precision == "fp32":
            fp32 = descriptors
        compared = "" if cosine is None else f"; worst cosine to fp32 {cosine:.5f}"
        found = f"runs, {descriptors.shape[1]} numbers, finite, unit length on {len(images)} made-up images{compared}"
        yield Check(f"{precision} graph", found)


def _describe(bundle: Bundle, precision: Precision, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    describer = Describer(bundle, provider="cpu", precision=precision)
    try:
        descriptors = describer.describe(images)
    finally:
        describer.close()
    lengths = np.linalg.norm(descriptors, axis=1)
    if np.abs(lengths - 1).max() > _UNIT:
        raise BundleError(
            f"descriptors have lengths from {lengths.min():.4g} to {lengths.max():.4g}, not 1",
            where=str(bundle.graph_path(precision)),
            remedy="Export the bundle again",
        )
    return descriptors


def _check_cosine(bundle: Bundle, precision: Precision, cosine: float | None) -> None:
    report = bundle.manifest.precisions.get(precision)
    if cosine is None or cosine >= _SAME_MODEL or (report is not None and report.accepted_loss):
        return
    raise BundleError(
        f"it describes otherwise than the fp32 graph: worst cosine {cosine:.4f} on made-up images",
        where=str(bundle.graph_path(precision)),
        remedy="Export the bundle again",
    )


def made_up_images(preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """(4, H, W, 3) uint8: soft patches of colour with grain over them, the same on every machine."""
    rng = np.random.default_rng(0)
    size = (preprocessing.width, preprocessing.height)
    images = []
    for patches in range(3, 3 + _IMAGES):
        coarse = rng.integers(0, 256, (patches, patches, 3), dtype=np.uint8)
        soft = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
        images.append((soft + rng.integers(-24, 25, soft.shape)).clip(0, 255).astype(np.uint8))
    return np.stack(images)


class FieldDifference(BaseModel):
    """A field of the manifest that differs.

    Attributes:
        field: its dotted name, such as `preprocessing.fit`; a file and its hash are one field.
        first, second: its values, None where it is not there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    field: str
    first: Any
    second: Any


class DescriptorAgreement(BaseModel):
    """How near two bundles' descriptors of the same photos are.

    Attributes:
        photos: how many.
        mean_cosine, worst_cosine: between both descriptors of a photo.
        worst_photo: the one of the worst cosine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    photos: int = Field(ge=1)
    mean_cosine: float
    worst_cosine: float
    worst_photo: str


class ComparedBundle(BaseModel):
    """Which bundle was compared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    folder: str
    fingerprint: str
    descriptor_dim: int


class BundleComparison(BaseModel):
    """What came of it.

    Attributes:
        first, second: the bundles.
        comparable: whether descriptors of one may be searched among those of the other: fingerprints are equal.
        differences: fields of the manifest that differ, in the manifest's order.
        agreement: of their fp32 graphs, where photos were given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: ComparedBundle
    second: ComparedBundle
    comparable: bool
    differences: tuple[FieldDifference, ...]
    agreement: DescriptorAgreement | None = None


def compare_bundles(first: Bundle, second: Bundle, agreement: DescriptorAgreement | None = None) -> BundleComparison:
    """Compare what two bundles state.

    Args:
        first, second: the bundles.
        agreement: see `measure_agreement`.
    """
    ours = dict(manifest_fields(first.manifest.model_dump(mode="json")))
    theirs = dict(manifest_fields(second.manifest.model_dump(mode="json")))
    return BundleComparison(
        first=_compared(first),
        second=_compared(second),
        comparable=first.fingerprint == second.fingerprint,
        differences=tuple(
            FieldDifference(field=field, first=ours.get(field), second=theirs.get(field))
            for field in dict.fromkeys([*ours, *theirs])
            if ours.get(field) != theirs.get(field)
        ),
        agreement=agreement,
    )


def _compared(bundle: Bundle) -> ComparedBundle:
    return ComparedBundle(
        name=bundle.name,
        folder=str(bundle.folder),
        fingerprint=bundle.fingerprint,
        descriptor_dim=bundle.descriptor_dim,
    )


def manifest_fields(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted fields of a manifest that have a value; a file's record is one field.

    Args:
        content: of the manifest, or of a table in it, as JSON has it.
        prefix: of the names.
    """
    for name, value in content.items():
        if isinstance(value, Mapping) and set(value) != {"sha256", "size"}:
            yield from manifest_fields(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value


def measure_agreement(
    first: Bundle,
    second: Bundle,
    photos: Sequence[Path],
    on_progress: Callable[[int], None] = lambda _: None,
) -> DescriptorAgreement:
    """Describe photos with the fp32 graphs of two bundles, on the CPU; each decodes them its own way.

    Args:
        first, second: of the same D.
        photos: at least one.
        on_progress: called with the number of photos done since the last call.

    Raises:
        ParameterError: no photos, or descriptors of different lengths.
        ImageError: a photo cannot be read; it is named.
    """
    if first.descriptor_dim != second.descriptor_dim:
        raise ParameterError(
            f"descriptors have {first.descriptor_dim} and {second.descriptor_dim} numbers: there is no cosine between",
            remedy="Compare bundles of the same descriptor length, or compare their recall: sightfix evaluate",
        )
    if not photos:
        raise ParameterError("there are no photos to compare descriptors on", remedy="Give at least one")
    describers = [Describer(bundle, provider="cpu") for bundle in (first, second)]
    cosines: list[NDArray[np.float32]] = []
    for begin in range(0, len(photos), _AT_ONCE):
        some = photos[begin : begin + _AT_ONCE]
        ours, theirs = (
            describer.describe([read_image(photo, describer.bundle.preprocessing) for photo in some])
            for describer in describers
        )
        cosines.append((ours * theirs).sum(axis=1))
        on_progress(len(some))
    for describer in describers:
        describer.close()
    all_cosines = np.concatenate(cosines)
    worst = int(all_cosines.argmin())
    return DescriptorAgreement(
        photos=len(photos),
        mean_cosine=float(all_cosines.mean()),
        worst_cosine=float(all_cosines[worst]),
        worst_photo=str(photos[worst]),
    )
