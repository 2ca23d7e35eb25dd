"""The place index: the published, immutable, versioned directory of descriptors and reference rows."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.artefact import verify_files
from retrieval.describer import Descriptors
from retrieval.errors import IndexNotFoundError, PlaceIndexError
from retrieval.geo import Float64Array, GeoPrior
from retrieval.index_folder import CURRENT_NAME, VERSIONS_NAME, current_version
from retrieval.place_index_manifest import PlaceIndexManifest
from retrieval.reference_table import ReferenceTable
from retrieval.references.reference import Reference
from retrieval.reranking.features_file import StoredFeatures
from retrieval.search_result import SearchResult
from retrieval.searchable_index import SearchablePlaceIndex
from retrieval.spatial_blocks import SpatialBlocks
from retrieval.vectors.candidates import Candidates
from retrieval.vectors.exact import ExactVectors
from retrieval.vectors.stored import StoredVectors
from retrieval.whitening import Whitening, read_whitening

VECTORS_NAME: Final = "vectors.faiss"
CANDIDATES_NAME: Final = "candidates.faiss"
WHITENING_NAME: Final = "whitening.npz"
REFERENCES_NAME: Final = "references.parquet"
LOCAL_FEATURES_NAME: Final = "local_features.arrow"
CALIBRATION_PHOTOS_NAME: Final = "calibration_photos.parquet"


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
    def open(cls, folder: Path, *, memory_map: bool = False) -> Self:
        """Open a published index.

        Args:
            folder: of an index (its current version is opened) or of one version.
            memory_map: leave the vectors on the disk, to be paged in as they are searched. Then files are checked by
                their sizes only; else every file is compared with its hash in the manifest.

        Raises:
            IndexNotFoundError: nothing is published there, or CURRENT names a missing version.
            PlaceIndexError: another format version, a missing or damaged file, parts that do not fit together.
        """
        if not ((folder / CURRENT_NAME).exists() or (folder / VERSIONS_NAME).is_dir() or not folder.is_dir()):
            return cls._open_version(folder, memory_map)
        while True:
            version = current_version(folder)
            try:
                return cls._open_version(folder / VERSIONS_NAME / version, memory_map)
            except PlaceIndexError:
                # Another version became current since, and this one was pruned while it was being read.
                if current_version(folder) == version:
                    raise

    @classmethod
    def _open_version(cls, folder: Path, memory_map: bool) -> Self:
        manifest = PlaceIndexManifest.read(folder, PlaceIndexError)
        for name in file_names(manifest):
            if name not in manifest.files:
                raise PlaceIndexError(f"the manifest names no {name}", where=str(folder), remedy="Build it again")
        verify_files(folder, manifest.files, error_type=PlaceIndexError, sizes_only=memory_map)
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
    def local_features(self) -> StoredFeatures | None:
        """As `SearchablePlaceIndex.local_features`, left on the disk."""
        return self._local_features

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

    def rows_at(self, positions: Sequence[tuple[float, float]]) -> NDArray[np.int64]:
        """As `SearchablePlaceIndex.rows_at`, in one pass over two columns."""
        lat, lon = zip(*positions, strict=True) if positions else ((), ())
        return np.flatnonzero(np.isin(self.lat, lat) & np.isin(self.lon, lon))


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
