"""Is a bundle whole, and does it do what it states? Every file, every graph, and a few descriptors."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retrieval.artefact import verify_files
from retrieval.bundle import Bundle, BundleManifest, Precision, default_bundle_folder
from retrieval.describer import Describer
from retrieval.errors import BundleError, SightfixError
from retrieval.images import Preprocessing

_IMAGES: Final = 4
_UNIT: Final = 1e-3
# Of made-up images: a graph of lower precision stays far above it, that of another model far below.
_SAME_MODEL: Final = 0.9


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


def check_bundle(folder: Path | None = None, *, threads: int | None = None) -> Iterator[Check]:
    """Check a bundle's files against its manifest, and run every graph on made-up images.

    Args:
        folder: of the bundle; None is the one shipped with sightfix.
        threads: of the CPU.

    Yields:
        what was checked, as soon as it was. Graphs are not run while a file is damaged.

    Raises:
        BundleError: there is no manifest that can be read.
    """
    folder = folder or default_bundle_folder()
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
        yield from _check_graphs(Bundle(folder, manifest), threads)


def _check_graphs(bundle: Bundle, threads: int | None) -> Iterator[Check]:
    images = made_up_images(bundle.preprocessing)
    fp32: NDArray[np.float32] | None = None
    for precision in sorted(bundle.manifest.graphs, key=lambda name: name != "fp32"):
        try:
            descriptors = _describe(bundle, precision, images, threads)
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


def _describe(
    bundle: Bundle, precision: Precision, images: NDArray[np.uint8], threads: int | None
) -> NDArray[np.float32]:
    describer = Describer(bundle, provider="cpu", precision=precision, threads=threads)
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
