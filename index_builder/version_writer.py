"""The files of a version: vectors, rows along the spatial curve, local features, recall and calibration."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index_builder.calibration.calibrating import calibrate
from index_builder.calibration.queries import OutsidePhotos
from index_builder.index_design import Choice, IndexDesign, build_candidates, choose_parameters
from index_builder.publish import hold_bundle
from index_builder.quality import check_stored, hold_out_twice, tune
from retrieval.artefact import record_files
from retrieval.bundle import Bundle
from retrieval.describer import Descriptors
from retrieval.errors import ImageError, PlaceIndexError
from retrieval.geo import hilbert_key, longitude_bounds
from retrieval.images import DEFAULT_LIMITS, ImageLimits, LeftOut, read_image_bytes
from retrieval.index.manifest import (
    Bounds,
    BundleIdentity,
    DescribingRecord,
    LocalFeaturesRecord,
    PlaceIndexManifest,
    RecallReport,
    Source,
)
from retrieval.index.place_index import (
    CALIBRATION_PHOTOS_NAME,
    CANDIDATES_NAME,
    LOCAL_FEATURES_NAME,
    REFERENCES_NAME,
    VECTORS_NAME,
    WHITENING_NAME,
    PlaceIndex,
    file_names,
)
from retrieval.index.reference_table import read_references, write_reference_table
from retrieval.index.sampling import drawn
from retrieval.index.vectors.candidates import CandidateParameters, StoredVectors
from retrieval.index.vectors.exact import ExactVectors
from retrieval.index.whitening import write_whitening
from retrieval.localize.evidence import score_spread
from retrieval.machine import read_ahead
from retrieval.verification.local_features import (
    NO_FEATURES,
    FeatureSettings,
    LocalFeatures,
    decode_features,
    write_features,
)

WriteStep = Literal["vectors written", "references written", "bundle written", "manifest written"]
_COPY_ROWS: Final = 4096
_SAMPLE_ROWS: Final = 50_000


@dataclass(frozen=True)
class FeaturesPlan:
    """How the local features of a version are made.

    Attributes:
        settings: of the features.
        before: a version of the index; of photos whose content it knows its features are taken over.
        limits: of encoded photos.
        on_progress: called with how many rows are done, and which photos since then have no features; may raise.
    """

    settings: FeatureSettings
    before: PlaceIndex | None = None
    limits: ImageLimits = DEFAULT_LIMITS
    on_progress: Callable[[int, Sequence[LeftOut]], None] = lambda done, without: None


@dataclass(frozen=True)
class VersionContent:
    """What a version will hold.

    Attributes:
        name, version: of the index, and of the version.
        bundle: that described the references; the version will hold it.
        source: where they come from.
        table: (N rows) of `REFERENCE_SCHEMA`: the rows kept of the base, then the rows that were described.
        described: gives descriptors of the latter, counted from 0: (n,) int64 → (n, D) float32, in the bundle's D.
        base: the version that rows are kept of, or None for an index made anew.
        kept: (K,) int64, which rows of the base.
        describing: how all of them were described, or None where not all were described alike.
        local_features: how local features are made, or None for an index without.
        calibration_photos: what to calibrate on, described by the bundle; None: the references.
    """

    name: str
    version: str
    bundle: Bundle
    source: Source
    table: pa.Table
    described: Callable[[NDArray[np.int64]], Descriptors]
    base: PlaceIndex | None = None
    kept: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    describing: DescribingRecord | None = None
    local_features: FeaturesPlan | None = None
    calibration_photos: OutsidePhotos | None = None


@dataclass(frozen=True)
class WrittenVersion:
    """What was written.

    Attributes:
        manifest: of the version.
        index: opened from the files, with the manifest as it was before calibrating.
        choices: what ``auto`` tried, empty where it had nothing to choose.
    """

    manifest: PlaceIndexManifest
    index: PlaceIndex
    choices: list[Choice]


def write_version(
    folder: Path, content: VersionContent, design: IndexDesign, reached: Callable[[WriteStep], None] = lambda _: None
) -> WrittenVersion:
    """Write all files of a version, the manifest last.

    Rows that are kept of a base stay as they are stored, bit by bit: its storage, its whitening and its type of index
    hold, whatever the design says.

    Args:
        folder: to write in.
        content: what to write.
        design: what index.
        reached: called after each step.

    Raises:
        ParameterError: a design that so many references do not allow.
        BundleError: a file of the bundle has changed since it was opened.
        PlaceIndexError: no parameters of the wanted type reach the wanted recall (``gate_failed``).
        OSError: the disk refuses.
    """
    order = _spatial_order(content.table)
    rows = _Rows(content, order)
    exact = _write_exact(folder, rows, content.base, design)
    candidates, recall, choices = _write_candidates(folder, exact, content.base, design)
    base = content.base
    if base is not None and base.whitening is not None:
        write_whitening(base.whitening, folder / WHITENING_NAME)
    reached("vectors written")
    write_reference_table(content.table, order, folder / REFERENCES_NAME)
    reached("references written")
    hold_bundle(folder, content.bundle)
    reached("bundle written")
    features = None
    if content.local_features is not None:
        rows_in_order = content.table.take(pa.array(order))
        root = Path(content.source.root)
        features = _write_local_features(folder / LOCAL_FEATURES_NAME, rows_in_order, root, content.local_features)
    if content.calibration_photos is not None:
        content.calibration_photos.write(folder / CALIBRATION_PHOTOS_NAME)
    manifest = PlaceIndexManifest(
        name=content.name,
        version=content.version,
        bundle=BundleIdentity(name=content.bundle.name, fingerprint=content.bundle.fingerprint, held=True),
        descriptor_dim=exact.dim,
        index_type=candidates.type if candidates else "exact",
        storage=exact.storage,
        candidates=candidates,
        recall=recall,
        score_spread=score_spread(exact),
        whitening=None if base is None else base.manifest.whitening,
        describing=content.describing,
        local_features=features,
        calibration_photos=0 if content.calibration_photos is None else content.calibration_photos.count,
        count=len(order),
        bounds=_bounds_of(content.table),
        source=content.source,
        files={},
    )
    manifest = manifest.model_copy(update={"files": record_files(folder, file_names(manifest))})
    manifest.write(folder)
    # They are in the memory once more as soon as the version is opened.
    del exact
    index = PlaceIndex.open(folder, verify=False)  # hashed a moment ago
    check_stored(index)
    if design.calibrate and (calibration := calibrate(index, content.calibration_photos)) is not None:
        manifest = manifest.model_copy(update={"calibration": calibration})
        manifest.write(folder)
    reached("manifest written")
    return WrittenVersion(manifest, index, choices)


class _Rows:
    """The stored descriptors in the order of the rows."""

    def __init__(self, content: VersionContent, order: NDArray[np.int64]) -> None:
        self._content = content
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    def take(self, places: NDArray[np.int64]) -> Descriptors:
        """(n,) places in the order → (n, d) float32."""
        rows, content = self._order[places], self._content
        old = rows < len(content.kept)
        new = content.described(rows[~old] - len(content.kept))
        if content.base is None:
            return new
        new = content.base.whitened(new)
        if not old.any():
            return new
        out = np.empty((len(rows), new.shape[1]), np.float32)
        out[old] = content.base.descriptors(content.kept[rows[old]])
        out[~old] = new
        return out

    def pieces(self) -> Iterator[Descriptors]:
        """All of them, some at a time."""
        for start in range(0, len(self), _COPY_ROWS):
            yield self.take(np.arange(start, min(start + _COPY_ROWS, len(self))))


@dataclass(frozen=True, slots=True)
class _Photo:
    """A row: the path of its photo as the table has it, its content, and where its features are stored already."""

    path: str
    sha256: str | None
    row_before: int | None


class _FeatureMaker:
    """Makes the features of rows; called by several threads."""

    def __init__(self, plan: FeaturesPlan, root: Path) -> None:
        self._plan = plan
        self._root = root
        self._stored = plan.before.local_features if plan.before is not None else None

    def features(self, photo: _Photo) -> LocalFeatures | LeftOut:
        if photo.row_before is not None and self._stored is not None:
            stored = self._stored.features(photo.row_before)
            if len(stored):
                return stored
        limits = self._plan.limits
        path = self._root / photo.path
        try:
            data = read_image_bytes(path, limits)
            if photo.sha256 is not None and hashlib.sha256(data).hexdigest() != photo.sha256:
                return LeftOut(photo.path, "photo_changed", "the photo has changed since it was described")
            return decode_features(data, self._plan.settings, limits, where=str(path))
        except ImageError as error:
            return LeftOut(photo.path, error.code, error.what, error.remedy)


def _write_exact(folder: Path, rows: _Rows, base: PlaceIndex | None, design: IndexDesign) -> ExactVectors:
    if base is not None:
        vectors = base.vectors.exact.empty_alike()
    else:
        sample = rows.take(drawn(len(rows), _SAMPLE_ROWS if design.storage == "int8" else 1))
        vectors = ExactVectors.empty(sample.shape[1], design.storage, sample)
    for piece in rows.pieces():
        vectors.add(piece)
    with (folder / VECTORS_NAME).open("wb") as file:
        vectors.write(file.write)
    return vectors


def _write_candidates(
    folder: Path, exact: ExactVectors, base: PlaceIndex | None, design: IndexDesign
) -> tuple[CandidateParameters | None, RecallReport | None, list[Choice]]:
    """Choose, train, fill and tune what finds candidates; nothing for exact search."""
    wanted, recall_wanted = design.type, design.recall
    if base is not None:
        wanted = base.manifest.index_type
        recall_wanted = base.manifest.recall.wanted if base.manifest.recall else recall_wanted
    parameters, choices = choose_parameters(exact, wanted, design)
    if parameters is None:
        return None, None, choices
    candidates = build_candidates(exact, parameters)
    held_out, others = hold_out_twice(exact)
    tuned, recall = tune(StoredVectors(exact, candidates), held_out, recall_wanted, others)
    if recall.at_10 < recall_wanted:
        raise PlaceIndexError(
            f"an index of type {tuned.type} returns {recall.at_10:.1%} of what exact search finds, "
            f"{recall_wanted:.1%} are wanted; nothing was published",
            where=str(folder),
            remedy="Choose another type (--type ivf or exact), or ask for less recall",
            code="gate_failed",
        )
    with (folder / CANDIDATES_NAME).open("wb") as file:
        candidates.write(file.write)
    return tuned, recall, choices


def _spatial_order(table: pa.Table) -> NDArray[np.int64]:
    """Row numbers of a reference table along the spatial curve, (N,) int64; rows of one place keep their order."""
    return np.argsort(hilbert_key(table["lat"].to_numpy(), table["lon"].to_numpy()), kind="stable")


def _bounds_of(table: pa.Table) -> Bounds:
    """The narrowest box around the rows of a reference table."""
    lat = table["lat"].to_numpy()
    west, east = longitude_bounds(table["lon"].to_numpy())
    return Bounds(lat_min=float(lat.min()), lat_max=float(lat.max()), lon_min=west, lon_max=east)


def _write_local_features(path: Path, table: pa.Table, root: Path, plan: FeaturesPlan) -> LocalFeaturesRecord:
    """Write the local features of all rows, a few photos at a time.

    A photo that cannot be read, or that changed since it was described, has none: its match keeps its place.

    Args:
        path: of the file to write.
        table: (N rows) of `REFERENCE_SCHEMA`, in the order of the index.
        root: that relative paths start from.
        plan: how.

    Raises:
        MissingExtraError: OpenCV is not installed.
        PlaceIndexError: what is taken over is damaged.
        OSError: the disk refuses.
    """
    without = 0

    def rows() -> Iterator[LocalFeatures]:
        nonlocal without
        maker = _FeatureMaker(plan, root)
        for done, found in enumerate(read_ahead(maker.features, _photos(table, plan)), start=1):
            failed = [found] if isinstance(found, LeftOut) else []
            without += len(failed)
            plan.on_progress(done, failed)
            yield NO_FEATURES if isinstance(found, LeftOut) else found

    write_features(path, rows())
    return LocalFeaturesRecord(settings=plan.settings, without=without)


def _photos(table: pa.Table, plan: FeaturesPlan) -> Iterator[_Photo]:
    before = _rows_before(table, plan)
    for batch in table.select(["path", "content_sha256"]).to_batches():
        for path, sha256 in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            row = int(next(before))
            yield _Photo(path, sha256, row if row >= 0 else None)


def _rows_before(table: pa.Table, plan: FeaturesPlan) -> Iterator[np.int64]:
    """For each row, where the version before holds the features of the same content, or -1."""
    rows: NDArray[np.int64] = np.full(table.num_rows, -1, np.int64)
    before = plan.before
    if before is not None and before.local_features is not None and before.local_features.settings == plan.settings:
        known = read_references(before.folder / REFERENCES_NAME)["content_sha256"]
        found = pc.index_in(table["content_sha256"], value_set=known.combine_chunks(), skip_nulls=True)
        rows = pc.fill_null(found, -1).to_numpy().astype(np.int64)
    return iter(rows)
