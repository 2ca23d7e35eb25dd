"""Build a place index: describe the references, order them along a spatial curve, check, publish."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from index_builder.describing import DescribeSettings, UnreadablePhoto, describe_in_batches
from index_builder.publishing import DEFAULT_KEEP, Draft, check_free_space, draft_version, prune
from retrieval.artefact import record_files
from retrieval.describer import Describer
from retrieval.errors import PlaceIndexError, ReferenceDataError
from retrieval.exact_vectors import ExactVectors, Storage
from retrieval.geo import hilbert_key, longitude_bounds
from retrieval.place_index import (
    REFERENCE_SCHEMA,
    REFERENCES_NAME,
    VECTORS_NAME,
    Bounds,
    BundleIdentity,
    PlaceIndex,
    PlaceIndexManifest,
    Source,
)
from retrieval.references.reference import Reference, ReferenceSource

Step = Literal[
    "draft opened", "described", "vectors written", "references written", "manifest written", "version named", "current"
]

_RAW_NAME: Final = "descriptors.raw"
_COPY_ROWS: Final = 4096
_CANARIES: Final = 64


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """How an index is built.

    Attributes:
        storage: of the vectors; fp16 halves the memory and changes no recall that we could measure.
        describe: how the references are described.
        keep: how many versions remain after publishing, the new one included.
    """

    storage: Storage = "fp16"
    describe: DescribeSettings = field(default_factory=DescribeSettings)
    keep: int = DEFAULT_KEEP


@dataclass(frozen=True, slots=True)
class BuiltIndex:
    """A published version, and the photos that are not in it because they could not be decoded."""

    folder: Path
    manifest: PlaceIndexManifest
    unreadable: list[UnreadablePhoto]


def build_index(
    source: ReferenceSource,
    describer: Describer,
    indexes: Path,
    name: str,
    settings: BuildSettings | None = None,
    *,
    on_progress: Callable[[int], None] | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> BuiltIndex:
    """Describe a reference database and publish it as the new version of an index.

    Args:
        source: the reference database.
        describer: of the bundle to describe it with.
        indexes: the folder of all indexes.
        name: of this index.
        settings: how.
        on_progress: called after each batch with the number of references done in it.
        on_step: called after each step of the protocol.

    Raises:
        ReferenceDataError: no rows, a row without a position, two rows of one id, or too many unreadable photos.
        StorageError: the disk is full or refuses, or another build of this index is running; nothing is published.
        PlaceIndexError: the written version does not answer as it should; nothing is published.
    """
    settings = settings or BuildSettings()
    step = on_step or (lambda _: None)
    dim = describer.bundle.descriptor_dim
    bytes_per_row = dim * (4 + (4 if settings.storage == "fp32" else 2)) + 512
    with draft_version(indexes, name) as draft:
        # Here, where the leftovers of a killed build are gone already.
        check_free_space(indexes, len(source) * bytes_per_row)
        step("draft opened")
        rows, unreadable = _describe_to_disk(source, describer, draft.folder / _RAW_NAME, settings, on_progress)
        step("described")
        order = rows.spatial_order()
        _write_vectors(draft.folder, order, dim, settings.storage)
        step("vectors written")
        pq.write_table(rows.table(order), draft.folder / REFERENCES_NAME, compression="zstd")
        step("references written")
        manifest = PlaceIndexManifest(
            name=name,
            version=draft.version,
            bundle=BundleIdentity(name=describer.bundle.name, fingerprint=describer.bundle.fingerprint),
            descriptor_dim=dim,
            storage=settings.storage,
            count=len(order),
            bounds=rows.bounds(),
            source=Source(spec=source.spec, root=str(source.root.resolve()), skipped=len(source.skipped)),
            files=record_files(draft.folder, [VECTORS_NAME, REFERENCES_NAME]),
        )
        manifest.write(draft.folder)
        step("manifest written")
        _check_answers(draft)
        folder = draft.name_version()
        step("version named")
        draft.make_current()
        step("current")
        prune(draft.index_folder, settings.keep)
    return BuiltIndex(folder, manifest, unreadable)


class _Rows:
    """The reference rows of a build, column by column."""

    def __init__(self, root: Path) -> None:
        self._root = Path(os.path.abspath(root))  # noqa: PTH100 - as the photos' own paths below
        self._columns: dict[str, list[object]] = {name: [] for name in REFERENCE_SCHEMA.names}
        self._ids: set[str] = set()

    def append(self, reference: Reference) -> None:
        if reference.position is None:
            raise ReferenceDataError(
                f"reference {reference.id} has plane metres but no latitude and longitude",
                where=str(reference.path),
                remedy="A place index needs WGS84 positions; give the UTM zone in the spec (zone=33N)",
            )
        if reference.id in self._ids:
            raise ReferenceDataError(f"two references have the id {reference.id!r}", where=str(reference.path))
        self._ids.add(reference.id)
        path = Path(os.path.abspath(reference.path))  # noqa: PTH100 - resolve() would follow links out of the root
        values = {
            "id": reference.id,
            "path": path.relative_to(self._root).as_posix() if path.is_relative_to(self._root) else str(path),
            "lat": reference.position.lat,
            "lon": reference.position.lon,
            "altitude_m": reference.altitude_m,
            "heading_deg": reference.heading_deg,
            "captured_at": reference.captured_at.isoformat() if reference.captured_at else None,
            "session": reference.session,
            "metadata": json.dumps(dict(reference.metadata)) if reference.metadata else None,
        }
        for name, value in values.items():
            self._columns[name].append(value)

    def __len__(self) -> int:
        return len(self._ids)

    def _positions(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return np.array(self._columns["lat"], np.float64), np.array(self._columns["lon"], np.float64)

    def spatial_order(self) -> NDArray[np.int64]:
        """Row numbers along the spatial curve; rows of one place keep their order."""
        return np.argsort(hilbert_key(*self._positions()), kind="stable")

    def table(self, order: NDArray[np.int64]) -> pa.Table:
        return pa.Table.from_pydict(self._columns, schema=REFERENCE_SCHEMA).take(pa.array(order))

    def bounds(self) -> Bounds:
        lat, lon = self._positions()
        west, east = longitude_bounds(lon)
        return Bounds(lat_min=float(lat.min()), lat_max=float(lat.max()), lon_min=west, lon_max=east)


def _describe_to_disk(
    source: ReferenceSource,
    describer: Describer,
    raw: Path,
    settings: BuildSettings,
    on_progress: Callable[[int], None] | None,
) -> tuple[_Rows, list[UnreadablePhoto]]:
    rows, unreadable = _Rows(source.root), list[UnreadablePhoto]()
    with raw.open("wb") as file:
        for batch in describe_in_batches(source, describer, settings.describe):
            for reference in batch.references:
                rows.append(reference)
            file.write(batch.descriptors.tobytes())
            unreadable.extend(batch.unreadable)
            if on_progress:
                on_progress(len(batch.references) + len(batch.unreadable))
    if not len(rows):
        raise ReferenceDataError(
            "there is no photo to index", where=source.spec, remedy="Look at the source with: sightfix inspect SPEC"
        )
    return rows, unreadable


def _write_vectors(folder: Path, order: NDArray[np.int64], dim: int, storage: Storage) -> None:
    raw = np.memmap(folder / _RAW_NAME, np.float32, "r", shape=(len(order), dim))

    def in_order() -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(order), _COPY_ROWS):
            yield raw[order[start : start + _COPY_ROWS]]

    vectors = ExactVectors.from_descriptors(in_order(), dim, storage)
    with (folder / VECTORS_NAME).open("wb") as file:
        vectors.write(file.write)
    (folder / _RAW_NAME).unlink()


def _check_answers(draft: Draft) -> None:
    """Open the draft as a server would, and ask it for some of its own references: each must score 1 with itself."""
    index = PlaceIndex.open(draft.folder)
    some = np.unique(np.linspace(0, index.count - 1, _CANARIES).astype(np.int64))
    descriptors = index.descriptors(some)
    found = index.search(descriptors, 1)
    own_scores = (descriptors * descriptors).sum(axis=1)
    if not np.all(found.scores[:, 0] >= own_scores - 1e-3) or not np.all(np.abs(own_scores - 1.0) < 1e-2):
        raise PlaceIndexError(
            "the written index does not find its own references; nothing was published",
            where=str(draft.folder),
            remedy="Check the disk and the memory of this machine, then build again",
            code="canary_failed",
        )
