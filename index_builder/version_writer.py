"""The files of a version: vectors and rows along the spatial curve, measured before they get a name."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index_builder.calibrating import calibrate
from index_builder.calibration_queries import OutsidePhotos
from index_builder.index_design import Choice, IndexDesign, build_candidates, choose_parameters, sample_of
from index_builder.local_features import FeaturesPlan, write_local_features
from index_builder.quality import hold_out_twice, tune
from index_builder.update_plan import bounds_of, spatial_order
from retrieval.artefact import record_files
from retrieval.bundle import Bundle
from retrieval.describer import Descriptors
from retrieval.errors import PlaceIndexError
from retrieval.index.manifest import (
    BundleIdentity,
    DescribingRecord,
    PlaceIndexManifest,
    RecallReport,
    Source,
    WhiteningRecord,
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
from retrieval.index.reference_table import write_reference_table
from retrieval.index.searchable import SearchablePlaceIndex
from retrieval.index.vectors.candidates import CandidateParameters, StoredVectors
from retrieval.index.vectors.exact import ExactVectors
from retrieval.index.whitening import Whitening, fit_whitening, score_spread, write_whitening

WriteStep = Literal["vectors written", "references written", "manifest written"]

_COPY_ROWS: Final = 4096
_CANARIES: Final = 64
_SAMPLE_ROWS: Final = 50_000
_STRETCH_ROWS: Final = 2_000


@dataclass(frozen=True)
class VersionContent:
    """What a version will hold.

    Attributes:
        name, version: of the index, and of the version.
        bundle: that described the references.
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
        choices: what ``auto`` tried, empty where it had nothing to choose.
    """

    manifest: PlaceIndexManifest
    choices: list[Choice]


def write_version(
    folder: Path, content: VersionContent, design: IndexDesign, reached: Callable[[WriteStep], None] = lambda _: None
) -> WrittenVersion:
    """Write all files of a version, the manifest last.

    Rows that are kept of a base stay as they are stored, bit by bit: its storage, its whitening and its type of index
    hold, whatever the design says.

    Args:
        folder: of the draft.
        content: what to write.
        design: what index.
        reached: told of each step.

    Raises:
        ParameterError: a design that so many references do not allow.
        PlaceIndexError: no parameters of the wanted type reach the wanted recall (``gate_failed``).
        OSError: the disk refuses.
    """
    order = spatial_order(content.table)
    whitening = _whitening(content, design)
    rows = _Rows(content, order, whitening)
    exact = _write_exact(folder, rows, content.base, design)
    candidates, recall, choices = _write_candidates(folder, exact, content.base, design)
    if whitening is not None:
        write_whitening(whitening, folder / WHITENING_NAME)
    reached("vectors written")
    write_reference_table(content.table, order, folder / REFERENCES_NAME)
    reached("references written")
    features = None
    if content.local_features is not None:
        rows_in_order = content.table.take(pa.array(order))
        root = Path(content.source.root)
        features = write_local_features(folder / LOCAL_FEATURES_NAME, rows_in_order, root, content.local_features)
    if content.calibration_photos is not None:
        content.calibration_photos.write(folder / CALIBRATION_PHOTOS_NAME)
    manifest = PlaceIndexManifest(
        name=content.name,
        version=content.version,
        bundle=BundleIdentity(name=content.bundle.name, fingerprint=content.bundle.fingerprint),
        descriptor_dim=exact.dim,
        index_type=candidates.type if candidates else "exact",
        storage=exact.storage,
        candidates=candidates,
        recall=recall,
        whitening=_whitening_record(content, whitening),
        describing=content.describing,
        local_features=features,
        calibration_photos=0 if content.calibration_photos is None else content.calibration_photos.count,
        count=len(order),
        bounds=bounds_of(content.table),
        source=content.source,
        files={},
    )
    manifest = manifest.model_copy(update={"files": record_files(folder, file_names(manifest))})
    manifest.write(folder)
    # They are in the memory once more as soon as the version is opened.
    del exact
    index = PlaceIndex.open(folder)
    check_answers(index)
    if design.calibrate and (calibration := calibrate(index, content.calibration_photos)) is not None:
        manifest = manifest.model_copy(update={"calibration": calibration})
        manifest.write(folder)
    reached("manifest written")
    return WrittenVersion(manifest, choices)


def check_answers(index: SearchablePlaceIndex) -> None:
    """Ask an index for some of its own references: each must score 1 with itself.

    Raises:
        PlaceIndexError: it does not find them (``canary_failed``).
    """
    some = np.unique(np.linspace(0, index.count - 1, _CANARIES).astype(np.int64))
    descriptors = index.descriptors(some)
    found = index.search_whitened(descriptors, 1)
    own_scores = (descriptors * descriptors).sum(axis=1)
    missed = int((found.scores[:, 0] < own_scores - 1e-3).sum())
    # An approximate search may miss one; by how many, the recall says.
    allowed = 0 if index.searches_exactly else len(some) // 10
    if missed > allowed or not np.all(np.abs(own_scores - 1.0) < 1e-2):
        raise PlaceIndexError(
            "the written index does not find its own references; nothing was published",
            where=index.where,
            remedy="Check the disk and the memory of this machine, then build again",
            code="canary_failed",
        )


class _Rows:
    """The stored descriptors in the order of the rows."""

    def __init__(self, content: VersionContent, order: NDArray[np.int64], whitening: Whitening | None) -> None:
        self._content = content
        self._order = order
        self._whitening = whitening

    def __len__(self) -> int:
        return len(self._order)

    def take(self, places: NDArray[np.int64]) -> Descriptors:
        """(n,) places in the order → (n, d) float32."""
        rows, content = self._order[places], self._content
        old = rows < len(content.kept)
        new = content.described(rows[~old] - len(content.kept))
        if self._whitening is not None:
            new = self._whitening.apply(new)
        if content.base is None or not old.any():
            return new
        out = np.empty((len(rows), new.shape[1]), np.float32)
        out[old] = content.base.descriptors(content.kept[rows[old]])
        out[~old] = new
        return out

    def pieces(self) -> Iterator[Descriptors]:
        """All of them, some at a time."""
        for start in range(0, len(self), _COPY_ROWS):
            yield self.take(np.arange(start, min(start + _COPY_ROWS, len(self))))


def _whitening(content: VersionContent, design: IndexDesign) -> Whitening | None:
    if content.base is not None:
        return content.base.whitening
    if not design.whiten:
        return None
    return fit_whitening(content.described(sample_of(content.table.num_rows, _SAMPLE_ROWS)), design.whiten)


def _whitening_record(content: VersionContent, whitening: Whitening | None) -> WhiteningRecord | None:
    if whitening is None:
        return None
    if content.base is not None:
        return content.base.manifest.whitening
    raw = content.described(sample_of(content.table.num_rows, _STRETCH_ROWS))
    return WhiteningRecord(
        from_dim=len(whitening.mean),
        power=whitening.power,
        explained=whitening.explained,
        fitted_on=min(content.table.num_rows, _SAMPLE_ROWS),
        score_stretch=score_spread(whitening.apply(raw)) / score_spread(raw),
    )


def _write_exact(folder: Path, rows: _Rows, base: PlaceIndex | None, design: IndexDesign) -> ExactVectors:
    if base is not None:
        vectors = base.vectors.exact.empty_alike()
    else:
        sample = rows.take(sample_of(len(rows), _SAMPLE_ROWS if design.storage == "int8" else 1))
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
