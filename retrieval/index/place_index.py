"""The place index: the published, immutable, versioned directory of descriptors and reference rows.

Rows are ordered along a spatial curve. `SpatialBlocks` wraps every run of 256 rows in a cap of the sphere (centre and
angle). A geo prior is compared with the caps only, in three dimensions, so the antimeridian and the poles are nothing
special. Rows of the remaining blocks are then compared one by one, so the answer is exact.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.artefact import verify_files
from retrieval.bundle import HELD_NAME, Bundle, open_bundle
from retrieval.bundle.whitening import Whitening
from retrieval.describer import Descriptors
from retrieval.errors import BundleError, IndexNotFoundError, PlaceIndexError
from retrieval.geo import EARTH_RADIUS_M, Float64Array, GeoPrior, unit_vectors
from retrieval.index.folder import CURRENT_NAME, VERSIONS_NAME, current_version, current_version_or_none
from retrieval.index.manifest import BundleIdentity, PlaceIndexManifest
from retrieval.index.reference_table import ReferenceTable
from retrieval.index.searchable import SearchablePlaceIndex, SearchResult
from retrieval.index.vectors.candidates import Candidates, StoredVectors
from retrieval.index.vectors.exact import ExactVectors
from retrieval.index.whitening import read_whitening
from retrieval.references.reference import Reference
from retrieval.verification.local_features import StoredFeatures

BLOCK_ROWS: Final = 256

# Angles below this are rounding (0.6 m on the ground; near the antipode the arcsine loses half of its digits): caps are
# widened by it, never a row's own test.
_SLACK_RAD: Final = 1e-7
VECTORS_NAME: Final = "vectors.faiss"
CANDIDATES_NAME: Final = "candidates.faiss"
WHITENING_NAME: Final = "whitening.npz"
REFERENCES_NAME: Final = "references.parquet"
LOCAL_FEATURES_NAME: Final = "local_features.arrow"
CALIBRATION_PHOTOS_NAME: Final = "calibration_photos.parquet"


class SpatialBlocks:
    """Caps around the blocks of a row order. Holds 24 bytes a row.

    Args:
        lat, lon: (N,) float64 degrees, in row order. Any order gives right answers; a spatial one gives few slices.
    """

    def __init__(self, lat: Float64Array, lon: Float64Array) -> None:
        self._points = points = unit_vectors(lat, lon)
        starts = np.arange(0, len(points), BLOCK_ROWS)
        sums = np.add.reduceat(points, starts, axis=0) if len(starts) else np.empty((0, 3))
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        # Points spread evenly over the globe have no mean direction; any centre with a wide enough cap will do.
        self._centres = np.where(norms > 1e-12, sums / np.maximum(norms, 1e-12), np.array([1.0, 0.0, 0.0]))
        chords = np.linalg.norm(points - np.repeat(self._centres, BLOCK_ROWS, axis=0)[: len(points)], axis=1)
        self._angles = _chord_angle(np.maximum.reduceat(chords, starts) if len(starts) else np.empty(0))

    def rows_within(self, prior: GeoPrior) -> NDArray[np.int64]:
        """The rows inside the prior, border included, ascending: (R,) int64."""
        centre = unit_vectors(prior.lat, prior.lon)
        reach = min(prior.radius_m / EARTH_RADIUS_M, math.pi)
        distance = _chord_angle(np.linalg.norm(self._centres - centre, axis=1))
        near = np.flatnonzero(distance <= self._angles + reach + _SLACK_RAD)
        whole = distance[near] + self._angles[near] < reach - _SLACK_RAD
        rows = np.arange(BLOCK_ROWS) + near[:, None] * BLOCK_ROWS
        inside = np.ones(rows.shape, bool)
        # The chord grows with the angle, so comparing squared chords needs no trigonometry per row.
        chords = self._points[rows[~whole].clip(max=len(self._points) - 1)] - centre
        inside[~whole] = np.einsum("brc,brc->br", chords, chords) <= (2.0 * math.sin(reach / 2.0)) ** 2
        found: NDArray[np.int64] = rows[inside]
        return found[found < len(self._points)]


class PlaceIndex(SearchablePlaceIndex):
    """A place index opened from its folder. Safe to search from several threads; immutable.

    Make one with `PlaceIndex.open`.
    """

    def __init__(
        self,
        folder: Path,
        manifest: PlaceIndexManifest,
        vectors: StoredVectors,
        table: ReferenceTable,
        whitening: Whitening | None = None,
        local_features: StoredFeatures | None = None,
    ) -> None:
        super().__init__(manifest, whitening, str(folder))
        self.folder = folder
        self.vectors = vectors
        self._table = table
        self._local_features = local_features
        self.lat: NDArray[np.float64] = table.lat
        self.lon: NDArray[np.float64] = table.lon

    @classmethod
    def open(cls, folder: Path, *, memory_map: bool = False, verify: bool = True) -> Self:
        """Open a published index.

        Args:
            folder: of an index (its current version is opened) or of one version.
            memory_map: leave the vectors on the disk, to be paged in as they are searched. Then files are checked by
                their sizes only; else every file is compared with its hash in the manifest.
            verify: False leaves the hashes out, for files that were hashed just now.

        Raises:
            IndexNotFoundError: nothing is published there, or CURRENT names a missing version.
            PlaceIndexError: another format version, a missing or damaged file, parts that do not fit together.
        """
        if not ((folder / CURRENT_NAME).exists() or (folder / VERSIONS_NAME).is_dir() or not folder.is_dir()):
            return cls._open_version(folder, memory_map, verify)
        while True:
            version = current_version(folder)
            try:
                return cls._open_version(folder / VERSIONS_NAME / version, memory_map, verify)
            except PlaceIndexError:
                # Another version became current since, and this one was pruned while it was being read.
                if current_version(folder) == version:
                    raise

    @classmethod
    def _open_version(cls, folder: Path, memory_map: bool, verify: bool) -> Self:
        manifest = PlaceIndexManifest.read(folder, PlaceIndexError)
        for name in file_names(manifest):
            if name not in manifest.files:
                raise PlaceIndexError(f"the manifest names no {name}", where=str(folder), remedy="Build it again")
        verify_files(folder, manifest.files, error_type=PlaceIndexError, sizes_only=memory_map or not verify)
        # Beside candidates the exact vectors are touched here and there only.
        map_exact = memory_map or manifest.candidates is not None
        exact = ExactVectors.read(folder / VECTORS_NAME, manifest.storage, memory_map=map_exact)
        candidates = None
        if manifest.candidates is not None:
            candidates = Candidates.read(folder / CANDIDATES_NAME, manifest.candidates, memory_map=memory_map)
        whitening = read_whitening(folder / WHITENING_NAME) if manifest.whitening else None
        table = ReferenceTable(folder / REFERENCES_NAME)
        record = manifest.local_features
        features = StoredFeatures(folder / LOCAL_FEATURES_NAME, record.settings, manifest.count) if record else None
        found = [(exact.count, exact.dim), (table.count, manifest.descriptor_dim)]
        found += [(candidates.count, candidates.dim)] if candidates else []
        found += [(table.count, whitening.projection.shape[1])] if whitening else []
        if set(found) != {(manifest.count, manifest.descriptor_dim)} or (
            whitening and len(whitening.mean) != manifest.query_dim
        ):
            raise PlaceIndexError(
                f"{exact.count} vectors of {exact.dim} numbers, {table.count} references and a manifest of "
                f"{manifest.count} × {manifest.descriptor_dim} do not belong together",
                where=str(folder),
                remedy="Build the index again",
            )
        return cls(folder, manifest, StoredVectors(exact, candidates), table, whitening, features)

    @property
    def index_folder(self) -> Path:
        """Of the index that this is a version of."""
        return self.folder.parent.parent

    def held_bundle(self) -> Bundle | None:
        """As `SearchablePlaceIndex.held_bundle`."""
        return _open_held(self.folder, self.manifest.bundle)

    @property
    def bundle_holder(self) -> Path | None:
        """What users name the bundle by that the version holds, see `bundle_folder`; None where it holds none.

        The index while the version is current, for it outlives its versions; else the folder in the version.
        """
        if not self.manifest.bundle.held:
            return None
        is_current = current_version_or_none(self.index_folder) == self.version
        return self.index_folder if is_current else self.folder / HELD_NAME

    @property
    def local_features(self) -> StoredFeatures | None:
        """As `SearchablePlaceIndex.local_features`, left on the disk."""
        return self._local_features

    def with_vectors(self, vectors: StoredVectors) -> "PlaceIndex":
        """The same version, searched through other vectors, such as those of a GPU."""
        return PlaceIndex(self.folder, self.manifest, vectors, self._table, self.whitening, self._local_features)

    @property
    def searches_exactly(self) -> bool:
        """As `SearchablePlaceIndex.searches_exactly`."""
        return self.vectors.candidates is None

    def search_whitened(
        self,
        descriptors: Descriptors,
        k: int,
        geo_priors: Sequence[GeoPrior | None] | None = None,
        *,
        effort: int | None = None,
    ) -> SearchResult:
        """As `search`, of (Q, d) descriptors as the index stores them: its own, from `descriptors`, for example."""
        k_found = min(k, self.count)
        priors = [None] * len(descriptors) if geo_priors is None else geo_priors
        free = np.array([prior is None for prior in priors], bool)
        rows = np.full((len(descriptors), k), -1, np.int64)
        scores = np.full((len(descriptors), k), -np.inf, np.float32)
        if free.any():
            rows[free, :k_found], scores[free, :k_found] = self.vectors.search(
                descriptors[free], k_found, effort=effort
            )
        for query, prior in enumerate(priors):
            if prior is not None:
                inside = self.blocks.rows_within(prior)
                rows[query, :k_found], scores[query, :k_found] = self.vectors.search_rows(
                    descriptors[query], k_found, inside, effort=effort
                )
        return SearchResult(rows, scores)

    @cached_property
    def blocks(self) -> SpatialBlocks:
        """What geo priors are compared with; worked out when the first one comes."""
        return SpatialBlocks(self.lat, self.lon)

    def references(self, rows: Sequence[int] | NDArray[np.int64]) -> list[Reference]:
        """As `SearchablePlaceIndex.references`."""
        wanted = np.asarray(rows, np.int64)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < self.count):
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} of {self.count}")
        return self._table.references(wanted, Path(self.manifest.source.root))

    def row_of(self, reference_id: str) -> int:
        """As `SearchablePlaceIndex.row_of`."""
        row = self._table.find(reference_id)
        if row is None:
            raise IndexNotFoundError(
                f"the index {self.name} has no reference {reference_id!r}",
                remedy="Take a reference_id from an answer",
                code="reference_not_found",
            )
        return row

    def descriptors(self, rows: NDArray[np.int64]) -> Descriptors:
        """The stored descriptors of some rows: (len(rows), d) float32, whitened where the index whitens."""
        return self.vectors.exact.descriptors(rows)

    def positions(self, rows: NDArray[np.int64]) -> tuple[Float64Array, Float64Array]:
        """Latitudes and longitudes of some rows: (len(rows),) degrees each."""
        return self.lat[rows], self.lon[rows]

    def all_positions(self) -> tuple[Float64Array, Float64Array]:
        """Latitudes and longitudes of all rows: (N,) degrees each."""
        return self.lat, self.lon


def held_bundle(version_folder: Path) -> Bundle | None:
    """The bundle that a version holds, whatever its other files are like.

    Args:
        version_folder: of the version.

    Returns:
        None where it was written before versions held their bundle.

    Raises:
        BundleError: it is damaged, or another than the one that described the references; or there is none, and the
            manifest of the version cannot be read, so that nothing says which it was.
    """
    try:
        manifest = PlaceIndexManifest.read(version_folder, PlaceIndexError)
    except PlaceIndexError as damage:
        if (version_folder / HELD_NAME).is_dir():
            return open_bundle(version_folder / HELD_NAME)
        raise BundleError(
            f"nothing says which bundle described the references: {damage.what}",
            where=damage.where,
            remedy="Copy the version again from where it was made",
        ) from damage
    return _open_held(version_folder, manifest.bundle)


def _open_held(version_folder: Path, described_with: BundleIdentity) -> Bundle | None:
    if not described_with.held:
        return None
    folder = version_folder / HELD_NAME
    bundle = open_bundle(folder)
    if bundle.fingerprint != described_with.fingerprint:
        raise BundleError(
            f"this is another bundle ({bundle.fingerprint[:12]}) than the one that described the references "
            f"({described_with.fingerprint[:12]})",
            where=str(folder),
            remedy="Copy the version again from where it was made, or build it again",
        )
    return bundle


def file_names(manifest: PlaceIndexManifest) -> list[str]:
    """The files that an index of this manifest has beside it."""
    return [
        VECTORS_NAME,
        REFERENCES_NAME,
        *([CANDIDATES_NAME] if manifest.candidates else []),
        *([WHITENING_NAME] if manifest.whitening else []),
        *([LOCAL_FEATURES_NAME] if manifest.local_features else []),
        *([CALIBRATION_PHOTOS_NAME] if manifest.calibration_photos else []),
    ]


def _chord_angle(chord: Float64Array) -> Float64Array:
    return np.asarray(2.0 * np.arcsin(np.clip(chord / 2.0, 0.0, 1.0)))
