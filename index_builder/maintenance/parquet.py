"""A whole index as one Parquet file: for other tools, for a backup, for moving it elsewhere."""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from index_builder.index_design import IndexDesign
from index_builder.publish import DEFAULT_KEEP, draft_version, remove_old_versions
from index_builder.version_writer import VersionContent, write_version
from retrieval.artefact import new_file
from retrieval.bundle import Bundle, open_bundle
from retrieval.errors import (
    ArtefactError,
    IndexNotFoundError,
    ModelIndexMismatchError,
    ParameterError,
    ReferenceDataError,
)
from retrieval.index.folder import VERSIONS_NAME, check_index_name, current_version
from retrieval.index.manifest import BundleIdentity, PlaceIndexManifest, Source
from retrieval.index.place_index import REFERENCES_NAME, PlaceIndex, held_bundle
from retrieval.index.reference_table import REFERENCE_SCHEMA, read_references
from retrieval.index.vectors.exact import Storage

DESCRIPTOR: Final = "descriptor"
# Of a file that does not say how its vectors were stored.
DEFAULT_STORAGE: Final[Storage] = "fp16"

_META: Final = b"sightfix"
_ROWS: Final = 4096
_UNIT: Final = 1e-2


class ExportedIndex(BaseModel):
    """What the file says of itself, beside its rows: JSON under the key ``sightfix`` of the schema's metadata."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: str
    version: str
    bundle: BundleIdentity
    descriptor_dim: int
    source: Source
    storage: Storage | None = None


def export_index(index: PlaceIndex, path: Path) -> int:
    """Write all references and their stored descriptors.

    Args:
        index: which; not one that whitens, whose stored descriptors only its own whitening can search.
        path: of the file; replaced when it is whole.

    Returns:
        how many rows.

    Raises:
        ParameterError: the index whitens.
        OSError: the disk refuses.
    """
    if index.whitening is not None:
        raise ParameterError(
            "the stored descriptors are whitened; elsewhere they could not be searched",
            where=str(index.folder),
            remedy="Index the photos again, then export; or copy the index's folder",
        )
    manifest = index.manifest
    exported = ExportedIndex(
        index=manifest.name,
        version=manifest.version,
        bundle=manifest.bundle.model_copy(update={"held": False}),
        descriptor_dim=manifest.descriptor_dim,
        source=manifest.source,
        storage=manifest.storage,
    )
    descriptor = pa.field(DESCRIPTOR, pa.list_(pa.float32(), manifest.descriptor_dim), nullable=False)
    schema = pa.schema([*REFERENCE_SCHEMA, descriptor], {_META: exported.model_dump_json().encode()})
    table = read_references(index.folder / REFERENCES_NAME)
    with new_file(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for start in range(0, index.count, _ROWS):
            piece = table.slice(start, _ROWS)
            rows = np.arange(start, start + piece.num_rows)
            values = pa.array(index.descriptors(rows).ravel(), pa.float32())
            listed = pa.FixedSizeListArray.from_arrays(values, manifest.descriptor_dim)
            writer.write_table(piece.append_column(descriptor, listed).cast(schema))
    return index.count


def import_index(
    path: Path,
    bundle: Bundle | None,
    indexes: Path,
    name: str,
    design: IndexDesign | None = None,
    keep: int = DEFAULT_KEEP,
    *,
    root: Path | None = None,
) -> PlaceIndexManifest:
    """Publish what `export_index` wrote, or another tool in the same form, as the new version of an index.

    Args:
        path: of the file.
        bundle: that described the references, and will describe queries; None: the one that the current version of the
            index holds, where it is the same, else the shipped one.
        indexes: the folder of all indexes.
        name: of this index.
        design: of the index; None for exact search, stored as it was when the file was written.
        keep: how many versions remain.
        root: where the photos lie now; where they lay when the file was written if left out.

    Raises:
        ReferenceDataError: not such a file, or rows that no index can hold; the first is named.
        ModelIndexMismatchError: another bundle described them.
        StorageError: the disk refuses; nothing is published.
    """
    file, stated = _open(path)
    bundle = bundle or _held_alike(indexes, name, stated.bundle) or open_bundle()
    if stated.bundle.fingerprint != bundle.fingerprint:
        raise ModelIndexMismatchError(
            f"the descriptors are of bundle {stated.bundle.name} ({stated.bundle.fingerprint[:12]}), "
            f"not of {bundle.name} ({bundle.fingerprint[:12]})",
            where=str(path),
            remedy="Give the bundle they were made with, or a place index that holds it (--bundle)",
        )
    table = _read_rows(file, path)
    design = design or IndexDesign(storage=stated.storage or DEFAULT_STORAGE)
    with draft_version(indexes, name) as draft:
        raw = draft.folder / "descriptors.raw"
        _copy_descriptors(file, raw, bundle.descriptor_dim, path)
        described = np.memmap(raw, np.float32, "r", shape=(table.num_rows, bundle.descriptor_dim))
        source = stated.source if root is None else stated.source.model_copy(update={"root": str(root.resolve())})
        content = VersionContent(
            name=name,
            version=draft.version,
            bundle=bundle,
            source=source,
            table=table,
            described=lambda rows: np.asarray(described[rows]),
        )
        written = write_version(draft.folder, content, design)
        raw.unlink()
        draft.name_version()
        draft.make_current()
        remove_old_versions(draft.index_folder, keep)
    return written.manifest


def stored_as(path: Path) -> Storage:
    """How the vectors of an exported index were stored, so that they come back bit by bit if they are stored so again.

    Raises:
        ReferenceDataError: not such a file.
    """
    return _open(path)[1].storage or DEFAULT_STORAGE


def _held_alike(indexes: Path, name: str, wanted: BundleIdentity) -> Bundle | None:
    """The bundle that the current version of an index holds, where it is the wanted one."""
    folder = indexes / check_index_name(name)
    try:
        held = held_bundle(folder / VERSIONS_NAME / current_version(folder))
    except (IndexNotFoundError, ArtefactError):
        return None
    return held if held is not None and held.fingerprint == wanted.fingerprint else None


def _open(path: Path) -> tuple[pq.ParquetFile, ExportedIndex]:
    try:
        file = pq.ParquetFile(path)
        stated = ExportedIndex.model_validate_json((file.schema_arrow.metadata or {}).get(_META, b""))
    except (OSError, pa.ArrowException) as error:
        raise ReferenceDataError(f"the file cannot be read ({error})", where=str(path)) from error
    except ValidationError as error:
        raise ReferenceDataError(
            "the file does not say which bundle described its rows",
            where=str(path),
            remedy="Write it with: sightfix index export",
        ) from error
    wanted = pa.list_(pa.float32(), stated.descriptor_dim)
    missing = [field.name for field in REFERENCE_SCHEMA if field.name not in file.schema_arrow.names]
    if missing or file.schema_arrow.field(DESCRIPTOR).type != wanted:
        raise ReferenceDataError(
            f"columns are missing ({', '.join(missing)})" if missing else f"{DESCRIPTOR} is not {wanted}",
            where=str(path),
            remedy="Write it with: sightfix index export",
        )
    return file, stated


def _read_rows(file: pq.ParquetFile, path: Path) -> pa.Table:
    """All columns but the descriptors, checked; longitudes in [-180, 180]."""
    try:
        table = file.read(columns=REFERENCE_SCHEMA.names).replace_schema_metadata()
    except (OSError, pa.ArrowException) as error:
        raise ReferenceDataError(f"the file cannot be read ({error})", where=str(path)) from error
    for column in REFERENCE_SCHEMA:
        if not column.nullable and table[column.name].null_count:
            row = table[column.name].is_null().index(True).as_py()
            raise ReferenceDataError(f"row {row}: it has no {column.name}", where=str(path))
    try:
        table = table.cast(REFERENCE_SCHEMA)
    except pa.ArrowException as error:
        raise ReferenceDataError(
            f"a column has another type ({error})", where=str(path), remedy="Write it with: sightfix index export"
        ) from error
    _check_rows(table, path)
    lon = table["lon"].to_numpy()
    place = REFERENCE_SCHEMA.get_field_index("lon")
    return table.set_column(place, REFERENCE_SCHEMA.field("lon"), pa.array(np.where(lon > 180.0, lon - 360.0, lon)))


def _check_rows(table: pa.Table, path: Path) -> None:
    ids = table["id"].to_pylist()
    if not ids:
        raise ReferenceDataError("the file holds no references", where=str(path))
    seen: set[str] = set()
    for row, name in enumerate(ids):
        if name in seen:
            raise ReferenceDataError(f"row {row}: the id {name!r} stands there twice", where=str(path))
        seen.add(name)
    lat, lon = table["lat"].to_numpy(), table["lon"].to_numpy()
    wrong = np.flatnonzero(~((np.abs(lat) <= 90) & (lon >= -180) & (lon < 360)))
    if len(wrong):
        row = int(wrong[0])
        raise ReferenceDataError(
            f"row {row} ({ids[row]}): latitude {lat[row]:g}, longitude {lon[row]:g} are no position", where=str(path)
        )
    for row, text in enumerate(table["metadata"].to_pylist()):
        try:
            fine = text is None or isinstance(json.loads(text), dict)
        except ValueError:
            fine = False
        if not fine:
            raise ReferenceDataError(f"row {row} ({ids[row]}): metadata is no JSON object", where=str(path))
    for row, text in enumerate(table["captured_at"].to_pylist()):
        try:
            datetime.fromisoformat(text or "2000-01-01")
        except ValueError:
            raise ReferenceDataError(
                f"row {row} ({ids[row]}): captured_at {text!r} is no time of ISO 8601", where=str(path)
            ) from None


def _copy_descriptors(file: pq.ParquetFile, raw: Path, dim: int, path: Path) -> None:
    """Into one plain file, checked on the way."""
    row = 0
    with raw.open("wb") as out:
        for piece in _descriptors(file, dim):
            lengths = np.linalg.norm(piece, axis=1)
            wrong = np.flatnonzero(~(np.abs(lengths - 1.0) < _UNIT))
            if len(wrong):
                at = int(wrong[0])
                raise ReferenceDataError(
                    f"row {row + at}: the descriptor has length {lengths[at]:g}, not 1", where=str(path)
                )
            out.write(piece.tobytes())
            row += len(piece)


def _descriptors(file: pq.ParquetFile, dim: int) -> Iterator[NDArray[np.float32]]:
    for batch in file.iter_batches(_ROWS, columns=[DESCRIPTOR]):
        column: Any = batch.column(0)
        yield np.asarray(column.flatten(), np.float32).reshape(-1, dim)
