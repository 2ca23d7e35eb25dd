"""Adapt a bundle to the photos that are about to be indexed; what an index is adapted to already is kept."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index_builder.describing import DIGEST, ReusableDescriptors, file_state
from index_builder.update_observer import UpdateObserver
from retrieval.artefact import new_file
from retrieval.bundle import Bundle, Precision, open_bundle
from retrieval.bundle.vlad import LEAST_PHOTOS, AdaptationSettings, too_few_photos
from retrieval.describer import Descriptors
from retrieval.errors import ArtefactError, ImageError, ParameterError, counted
from retrieval.images import ImageLimits, RgbImage, decode_image, read_image_bytes
from retrieval.index.place_index import PlaceIndex
from retrieval.machine import read_ahead

# auto: adapt where the index is not adapted yet, else keep that; never: describe with the bundle as it is; again: anew.
AdaptMode = Literal["auto", "never", "again"]

# No fewer than `LEAST_PHOTOS`: the first batch tells whether there are enough.
_BATCH: Final = 16
_BUNDLE_NAME: Final = "bundle"
# In the work folder of an update; the sample is written last.
_PREFIX: Final = "adapted-"
_SAMPLE_NAME: Final = "sample.npz"
SAMPLES: Final = f"{_PREFIX}*/{_SAMPLE_NAME}"


@dataclass(frozen=True)
class AdaptedBundle:
    """An adapted bundle, and the descriptors of the photos that it was fitted to.

    Attributes:
        bundle: in the work folder of the update.
        name: of the adaptation, for the records of parts.
        digests: (n,) of the photos' contents, 32 bytes each.
        sample: (n, D) float32, unit rows.
    """

    bundle: Bundle
    name: str
    digests: NDArray[np.bytes_]
    sample: Descriptors

    def descriptors(self, rows: NDArray[np.int64]) -> Descriptors:
        """Those of some of the photos, (len(rows), D) float32."""
        return self.sample[rows]

    def reusable(self) -> ReusableDescriptors:
        """By content, for describing."""
        digests, first = np.unique(self.digests, return_index=True)
        return ReusableDescriptors(self.name, digests, first.astype(np.int64))


def bundle_and_whether_to_adapt(
    bundle: Bundle, before: PlaceIndex | None, mode: AdaptMode, dim: int | None
) -> tuple[Bundle, bool]:
    """The bundle to describe with, and whether it must be adapted first.

    Args:
        bundle: that the index would be made with.
        before: the version before; where it holds this bundle adapted, that one is kept.
        mode: see `AdaptMode`.
        dim: numbers that a descriptor shall have, where that was said.

    Raises:
        ParameterError: it must be adapted, and is not adaptable.
    """
    if mode == "never":
        return bundle, False
    if not bundle.is_adaptable:
        if mode == "again" or dim is not None:
            raise ParameterError(
                f"the bundle {bundle.name} cannot be adapted: its graph has no dense outputs",
                where=str(bundle.folder),
                remedy="Export it again from its checkpoint, or whiten it: sightfix export BUNDLE --whiten N",
            )
        return bundle, False
    if mode == "again":
        return bundle, True
    if bundle.manifest.adaptation is None:
        bundle = _held_adapted(bundle, before) or bundle
    keep = bundle.manifest.adaptation is not None and dim in (None, bundle.descriptor_dim)
    return bundle, not keep


def _held_adapted(bundle: Bundle, before: PlaceIndex | None) -> Bundle | None:
    """The bundle that a version holds, where it is this one, adapted."""
    try:
        held = before.held_bundle() if before is not None else None
    except ArtefactError:  # making the index anew is the remedy of that
        return None
    known = held.manifest.adaptation if held is not None else None
    return held if known is not None and known.base_fingerprint == bundle.fingerprint else None


def adapt_to_photos(
    bundle: Bundle,
    listing: pa.Table,
    folder: Path,
    fitted_on: str,
    observer: UpdateObserver,
    limits: ImageLimits,
    *,
    asked_for: bool = False,
    precision: Precision = "fp32",
    dim: int | None = None,
) -> AdaptedBundle | None:
    """Adapt a bundle to photos that are about to be indexed.

    What an earlier run left in the folder is used where it was made of the same.

    Args:
        bundle: an adaptable one.
        listing: rows of `REFERENCE_SCHEMA` with absolute paths.
        folder: the work folder of the update.
        fitted_on: the photos, for people.
        observer: called with the progress; may raise to stop.
        limits: of encoded photos.
        asked_for: whether too few photos are an error.
        precision: in which the photos shall be described.
        dim: numbers that a descriptor shall have; 512 if None.

    Returns:
        None where there are too few photos that can be read.

    Raises:
        ParameterError: too few photos where it was asked for, the precision is not fp32, or the layers give fewer
            numbers than wanted.
        BundleError: the graph does not run, or differs from what it should compute.
        StorageError, OSError: the disk refuses.
    """
    # They need onnx, which is not loaded where nothing is adapted.
    from retrieval.bundle.adaptation import fit_adaptation, photos_to_fit, write_adapted

    settings = AdaptationSettings() if dim is None else AdaptationSettings.of_dim(dim)
    rows = photos_to_fit(listing["lat"].to_numpy(), listing["lon"].to_numpy())
    paths = listing["path"].take(pa.array(rows)).to_pylist()
    place = folder / f"{_PREFIX}{_key(bundle, settings, limits, paths)}"
    found = _read(place)
    if found is not None:
        return found
    observer.adapting(0, len(paths))
    digests: list[bytes] = []
    done = 0

    def batches() -> Iterator[NDArray[np.uint8]]:
        read = (one for one in _read_photos(paths, bundle, limits) if one is not None)
        while batch := list(islice(read, _BATCH)):
            digests.extend(digest for digest, _ in batch)
            yield np.stack([image for _, image in batch])

    def progress(photos: int) -> None:
        nonlocal done
        done += photos
        observer.adapting(done, len(paths))
        observer.check_stopped()

    ahead = batches()
    beginning = list(islice(ahead, 1))
    readable = len(beginning[0]) if beginning else 0
    if readable < LEAST_PHOTOS:
        if asked_for:
            raise too_few_photos(readable)
        return None
    if precision != "fp32":
        raise ParameterError(
            f"a bundle is adapted in fp32, not in {precision}",
            remedy="Adapt it first (sightfix export BUNDLE --adapt PHOTOS --out ADAPTED, with that precision), "
            "or leave adapting out (--no-adapt)",
        )
    for other in folder.glob(f"{_PREFIX}*"):  # of other photos, or of these as they were
        shutil.rmtree(other, ignore_errors=True)
    fitted = fit_adaptation(bundle, chain(beginning, ahead), settings, progress)
    place.mkdir(parents=True, exist_ok=True)
    written = write_adapted(bundle, fitted.adaptation, place / _BUNDLE_NAME, fitted_on, replace_folder=True)
    adapted = AdaptedBundle(written, place.name, np.array(digests, DIGEST), fitted.descriptors)
    with new_file(place / _SAMPLE_NAME) as temporary, temporary.open("wb") as file:
        np.savez(file, digests=adapted.digests, sample=adapted.sample)
    return adapted


def without_adaptation(bundle: Bundle, shipped: Bundle) -> Bundle:
    """What an index is made with that shall not be adapted.

    Args:
        bundle: that it would be made with, adapted perhaps for the version before.
        shipped: with sightfix.

    Raises:
        ParameterError: the bundle is an adapted one, and what it was made from is not here.
    """
    adaptation = bundle.manifest.adaptation
    if adaptation is None:
        return bundle
    if adaptation.base_fingerprint != shipped.fingerprint:
        raise ParameterError(
            f"the index is adapted, from bundle {adaptation.base_name} ({adaptation.base_fingerprint[:12]})",
            remedy="Name the folder of that bundle (--bundle), to describe with it as it is",
        )
    return shipped


def adaptation_text(bundle: Bundle) -> str:
    """What a bundle was adapted to, in one line; empty where it was not."""
    adaptation = bundle.manifest.adaptation
    if adaptation is None:
        return ""
    centroids = sum(vocabulary.centroids for vocabulary in adaptation.vocabularies)
    return (
        f"adapted to {counted(adaptation.photos, 'photo')}: {counted(centroids, 'centroid')} in "
        f"{counted(len(adaptation.vocabularies), 'layer')}, {counted(bundle.descriptor_dim, 'number')} a descriptor"
    )


def _read_photos(paths: Sequence[str], bundle: Bundle, limits: ImageLimits) -> Iterator[tuple[bytes, RgbImage] | None]:
    """Each photo's digest and pixels; None where it cannot be read, which describing reports."""

    def read(path: str) -> tuple[bytes, RgbImage] | None:
        try:
            data = read_image_bytes(Path(path), limits)
            return hashlib.sha256(data).digest(), decode_image(data, bundle.preprocessing, limits, where=path)
        except ImageError:
            return None

    return read_ahead(read, paths, ahead=3 * _BATCH)


def _key(bundle: Bundle, settings: AdaptationSettings, limits: ImageLimits, paths: Sequence[str]) -> str:
    """What the result depends on, in 16 hexadecimal digits."""
    states = [file_state(path) for path in paths]
    text = json.dumps([bundle.fingerprint, asdict(settings), asdict(limits), list(paths), states])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(place: Path) -> AdaptedBundle | None:
    """What an earlier run left, where it is whole."""
    try:
        with np.load(place / _SAMPLE_NAME, allow_pickle=False) as stored:
            digests, sample = stored["digests"], stored["sample"]
        return AdaptedBundle(open_bundle(place / _BUNDLE_NAME), place.name, digests, sample)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, ArtefactError):
        return None
