"""The place index: the published, immutable, versioned directory of descriptors and reference rows."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from retrieval.artefact import Manifest, verify_files
from retrieval.bundle import Bundle
from retrieval.describer import Descriptors
from retrieval.errors import IndexNotFoundError, ModelIndexMismatchError, ParameterError, PlaceIndexError
from retrieval.exact_vectors import ExactVectors, Storage
from retrieval.geo import GeoPrior, Position
from retrieval.index_folder import CURRENT_NAME, VERSIONS_NAME, current_version
from retrieval.references.reference import Reference
from retrieval.spatial_blocks import SpatialBlocks

VECTORS_NAME: Final = "vectors.faiss"
REFERENCES_NAME: Final = "references.parquet"

REFERENCE_SCHEMA: Final = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("lat", pa.float64(), nullable=False),
        pa.field("lon", pa.float64(), nullable=False),
        pa.field("altitude_m", pa.float64()),
        pa.field("heading_deg", pa.float64()),
        pa.field("captured_at", pa.string()),
        pa.field("session", pa.string()),
        pa.field("metadata", pa.string()),
    ]
)


class BundleIdentity(BaseModel):
    """Which bundle described the references."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    fingerprint: str


class Bounds(BaseModel):
    """The smallest latitudes and longitudes that hold all references, degrees.

    `lon_min` is the western and `lon_max` the eastern edge: it is smaller where the box crosses the antimeridian.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lat_min: float
    lat_max: float
    lon_min: float
    lon_max: float


class Source(BaseModel):
    """Where the references came from. `root` is the folder that relative paths in the table start from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: str
    root: str
    skipped: int = 0


class PlaceIndexManifest(Manifest):
    """The manifest of a place index."""

    kind: Literal["place-index"] = "place-index"
    format_version: Literal[1] = 1
    name: str
    version: str
    bundle: BundleIdentity
    descriptor_dim: int = Field(ge=1)
    metric: Literal["cosine"] = "cosine"
    index_type: Literal["exact"] = "exact"
    storage: Storage
    count: int = Field(ge=1)
    bounds: Bounds
    source: Source


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The matches of Q queries.

    Attributes:
        rows: (Q, k) int64, best first, -1 where there are fewer than k.
        scores: (Q, k) float32, cosine, -inf where there are fewer than k.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


class PlaceIndex:
    """An opened place index. Safe to search from several threads; immutable.

    Make one with `PlaceIndex.open`.
    """

    def __init__(self, folder: Path, manifest: PlaceIndexManifest, vectors: ExactVectors, table: pa.Table) -> None:
        self.folder = folder
        self.manifest = manifest
        self._vectors = vectors
        self._table = table
        self.lat: NDArray[np.float64] = table["lat"].to_numpy()
        self.lon: NDArray[np.float64] = table["lon"].to_numpy()
        self._blocks = SpatialBlocks(self.lat, self.lon)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a published index and check every file against its manifest.

        Args:
            folder: of an index (its current version is opened) or of one version.

        Raises:
            IndexNotFoundError: nothing is published there, or CURRENT names a missing version.
            PlaceIndexError: another format version, a missing or damaged file, parts that do not fit together.
        """
        if (folder / CURRENT_NAME).exists() or (folder / VERSIONS_NAME).is_dir() or not folder.is_dir():
            folder = folder / VERSIONS_NAME / current_version(folder)
        manifest = PlaceIndexManifest.read(folder, PlaceIndexError)
        for name in (VECTORS_NAME, REFERENCES_NAME):
            if name not in manifest.files:
                raise PlaceIndexError(f"the manifest names no {name}", where=str(folder), remedy="Build it again")
        verify_files(folder, manifest.files, error_type=PlaceIndexError)
        vectors = ExactVectors.read(folder / VECTORS_NAME, manifest.storage)
        table = _read_table(folder / REFERENCES_NAME)
        if not (vectors.count == table.num_rows == manifest.count and vectors.dim == manifest.descriptor_dim):
            raise PlaceIndexError(
                f"{vectors.count} vectors of {vectors.dim} numbers, {table.num_rows} references and a manifest of "
                f"{manifest.count} × {manifest.descriptor_dim} do not belong together",
                where=str(folder),
                remedy="Build the index again",
            )
        return cls(folder, manifest, vectors, table)

    @property
    def count(self) -> int:
        """Number of references."""
        return self.manifest.count

    @property
    def name(self) -> str:
        """The index's name."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """The version's name."""
        return self.manifest.version

    def check_bundle(self, bundle: Bundle) -> None:
        """Refuse a bundle other than the one that described the references.

        Raises:
            ModelIndexMismatchError: the fingerprints differ; answers would be nonsense.
        """
        ours = self.manifest.bundle
        if bundle.fingerprint != ours.fingerprint:
            raise ModelIndexMismatchError(
                f"the index was described with bundle {ours.name} ({ours.fingerprint[:12]}), "
                f"not with {bundle.name} ({bundle.fingerprint[:12]})",
                where=str(self.folder),
                remedy="Give the bundle it was made with (--bundle), or index the photos again with this one",
            )

    def search(
        self, descriptors: Descriptors, k: int, geo_priors: Sequence[GeoPrior | None] | None = None
    ) -> SearchResult:
        """The k references most like each query, exactly.

        Args:
            descriptors: (Q, D) float32, unit rows.
            k: at least 1; more than the references there are is allowed.
            geo_priors: one for each query (None: the whole index), or None for none at all. Every returned reference
                lies inside its query's prior.

        Raises:
            ParameterError: k below 1, or descriptors of another shape than (Q, D).
        """
        if k < 1:
            raise ParameterError(f"k is {k}, below 1", remedy="Ask for at least one match")
        if descriptors.ndim != 2 or descriptors.shape[1] != self.manifest.descriptor_dim:
            raise ParameterError(
                f"descriptors are {descriptors.shape}, the index holds (N, {self.manifest.descriptor_dim})",
                remedy="Describe the queries with the index's bundle",
            )
        k_found = min(k, self.count)
        priors = [None] * len(descriptors) if geo_priors is None else geo_priors
        free = np.array([prior is None for prior in priors], bool)
        rows = np.full((len(descriptors), k), -1, np.int64)
        scores = np.full((len(descriptors), k), -np.inf, np.float32)
        if free.any():
            rows[free, :k_found], scores[free, :k_found] = self._vectors.search(descriptors[free], k_found)
        for query, prior in enumerate(priors):
            if prior is not None:
                inside = self._blocks.rows_within(prior)
                rows[query, :k_found], scores[query, :k_found] = self._vectors.search_rows(
                    descriptors[query], k_found, inside
                )
        return SearchResult(rows, scores)

    def references(self, rows: Sequence[int] | NDArray[np.int64]) -> list[Reference]:
        """The references of some rows, in the order given.

        Raises:
            IndexError: no such row (our own mistake).
        """
        wanted = np.asarray(rows, np.int64)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < self.count):
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} of {self.count}")
        root = Path(self.manifest.source.root)
        return [_reference(record, root) for record in self._table.take(pa.array(wanted)).to_pylist()]

    def row_of(self, reference_id: str) -> int:
        """The row of a reference.

        Raises:
            IndexNotFoundError: the index has no reference of that id (``reference_not_found``).
        """
        row = int(pc.index(self._table["id"], reference_id).as_py())
        if row < 0:
            raise IndexNotFoundError(
                f"the index {self.name} has no reference {reference_id!r}",
                remedy="Take a reference_id from an answer",
                code="reference_not_found",
            )
        return row

    def descriptors(self, rows: NDArray[np.int64]) -> Descriptors:
        """The stored descriptors of some rows: (len(rows), D) float32."""
        return self._vectors.descriptors(rows)


def _reference(record: dict[str, Any], root: Path) -> Reference:
    captured_at, metadata = record["captured_at"], record["metadata"]
    return Reference(
        id=record["id"],
        path=root / record["path"],
        position=Position(record["lat"], record["lon"]),
        altitude_m=record["altitude_m"],
        heading_deg=record["heading_deg"],
        captured_at=datetime.fromisoformat(captured_at) if captured_at else None,
        session=record["session"],
        metadata=json.loads(metadata) if metadata else {},
    )


def _read_table(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise PlaceIndexError(
            f"the reference table cannot be read ({error})", where=str(path), remedy="Build the index again"
        ) from error
    if not table.schema.equals(REFERENCE_SCHEMA, check_metadata=False):
        raise PlaceIndexError("the reference table has other columns than it should", where=str(path))
    return table.combine_chunks()
