"""The reference table of a place index: positions in memory, the rest read when it is asked for."""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.errors import PlaceIndexError, ReferenceDataError
from retrieval.geo import Position
from retrieval.references.reference import Reference

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
        pa.field("content_sha256", pa.string()),
    ]
)

# Written before photos were hashed.
_OLDER_SCHEMA: Final = pa.schema([field for field in REFERENCE_SCHEMA if field.name != "content_sha256"])

_POSITION: Final = ("lat", "lon")

# Rows that are read at once: a large table's first answer must not wait for all of it.
ROW_GROUP_ROWS: Final = 2_048

# So many of them stay in memory, those asked for last: a million rows, some 200 MB.
_GROUPS_KEPT: Final = 512

# What becomes part of a `Reference`.
_COLUMNS_OF_A_REFERENCE: Final = frozenset(REFERENCE_SCHEMA.names) - {"content_sha256"}


class ReferenceTable:
    """The rows of a reference table. Safe to read from several threads.

    Args:
        path: of the Parquet file.

    Raises:
        PlaceIndexError: it cannot be read, or has other columns.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._ids: pa.ChunkedArray | None = None
        try:
            self._file = pq.ParquetFile(path, memory_map=True)
            if not any(self._file.schema_arrow.equals(schema) for schema in (REFERENCE_SCHEMA, _OLDER_SCHEMA)):
                raise PlaceIndexError("the reference table has other columns than it should", where=str(path))
            positions = self._file.read(columns=["lat", "lon"])
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from error
        self.lat = _numbers(positions["lat"])
        self.lon = _numbers(positions["lon"])
        sizes = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        self._starts = np.cumsum([0, *sizes])
        self._groups: OrderedDict[int, pa.Table] = OrderedDict()

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.lat)

    def references(self, rows: NDArray[np.int64], root: Path) -> list[Reference]:
        """The references of some rows, in the order given.

        Args:
            rows: (n,) int64.
            root: the folder that relative paths start from.

        Raises:
            PlaceIndexError: the file can no longer be read.
        """
        records: list[Reference | None] = [None] * len(rows)
        groups = np.searchsorted(self._starts, rows, side="right") - 1
        for group in sorted(set(groups.tolist())):
            places = np.flatnonzero(groups == group)
            offsets = rows[places] - self._starts[group]
            for place, record in zip(places, _records(self._group(group), offsets.tolist()), strict=True):
                records[place] = reference_of(record, root)
        return [record for record in records if record is not None]

    def find(self, reference_id: str) -> int | None:
        """The row of an id, or None where there is no such reference."""
        with self._lock:
            if self._ids is None:
                self._ids = self._file.read(columns=["id"])["id"]
        row = int(pc.index(self._ids, reference_id).as_py())
        return row if row >= 0 else None

    def _group(self, group: int) -> pa.Table:
        with self._lock:
            if group not in self._groups:
                try:
                    self._groups[group] = self._file.read_row_group(group, use_threads=False).combine_chunks()
                except (pa.ArrowException, OSError) as error:
                    raise self._unreadable(error) from error
                if len(self._groups) > _GROUPS_KEPT:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(group)
            return self._groups[group]

    def _unreadable(self, error: Exception) -> PlaceIndexError:
        return PlaceIndexError(
            f"the reference table cannot be read ({error})", where=str(self._path), remedy="Build the index again"
        )


def read_references(path: Path) -> pa.Table:
    """The whole table, with the columns of `REFERENCE_SCHEMA`."""
    table = pq.read_table(path)
    if "content_sha256" not in table.column_names:
        table = table.append_column(REFERENCE_SCHEMA.field("content_sha256"), pa.nulls(table.num_rows, pa.string()))
    return table.cast(REFERENCE_SCHEMA)


def iterate_references(path: Path, rows: int) -> Iterator[pa.RecordBatch]:
    """The table in its order, in pieces of so many rows (the last may be shorter); memory is that of a piece."""
    pending: list[pa.RecordBatch] = []
    held = 0
    for batch in pq.ParquetFile(path).iter_batches(rows):
        while batch.num_rows:
            taken = batch.slice(0, rows - held)
            batch = batch.slice(taken.num_rows)
            pending.append(taken)
            held += taken.num_rows
            if held == rows:
                yield _joined(pending)
                pending, held = [], 0
    if pending:
        yield _joined(pending)


def _joined(pieces: list[pa.RecordBatch]) -> pa.RecordBatch:
    return pa.Table.from_batches(pieces).combine_chunks().to_batches()[0]


def write_reference_table(table: pa.Table, order: Sequence[int] | NDArray[np.int64], path: Path) -> None:
    """Write a table with the columns of `REFERENCE_SCHEMA`, its rows in `order`."""
    pq.write_table(
        table.take(pa.array(order)),
        path,
        # Positions are read whenever the index is opened, and hardly shrink.
        compression={name: "none" if name in _POSITION else "zstd" for name in table.column_names},
        use_dictionary=[name for name in table.column_names if name not in _POSITION],
        row_group_size=ROW_GROUP_ROWS,
    )


def _records(table: pa.Table, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Some rows of a table of one chunk, value by value.

    Not by `take`, for whose list of rows pyarrow imports pandas, where there is one; nor by `to_pylist` of what lies
    between them, which took twelve times as long.
    """
    columns = [(name, table.column(name).chunk(0)) for name in table.column_names if name in _COLUMNS_OF_A_REFERENCE]
    return [{name: column[row].as_py() for name, column in columns} for row in rows]


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """A column of float64 without nulls. Not `to_numpy`, which imports pandas where there is one."""
    chunks = [np.frombuffer(chunk.buffers()[1], np.float64, len(chunk), chunk.offset * 8) for chunk in column.chunks]
    return np.concatenate([np.empty(0), *chunks])


def reference_rows(references: Iterable[Reference], path_of: Callable[[Path], str] = str) -> pa.Table:
    """References as rows of `REFERENCE_SCHEMA`, without digests; the inverse of `reference_of`.

    Args:
        references: in the order of the rows.
        path_of: what stands in the table of a photo's path.

    Raises:
        ReferenceDataError: one has no latitude and longitude, or the id of one before it.
    """
    columns: dict[str, list[object]] = {name: [] for name in REFERENCE_SCHEMA.names}
    ids: set[str] = set()
    for reference in references:
        if reference.position is None:
            raise ReferenceDataError(
                f"reference {reference.id} has plane metres but no latitude and longitude",
                where=str(reference.path),
                remedy="A place index needs WGS84 positions; give the UTM zone in the spec (zone=33N)",
            )
        if reference.id in ids:
            raise ReferenceDataError(f"two references have the id {reference.id!r}", where=str(reference.path))
        ids.add(reference.id)
        values = {
            "id": reference.id,
            "path": path_of(reference.path),
            "lat": reference.position.lat,
            "lon": reference.position.lon,
            "altitude_m": reference.altitude_m,
            "heading_deg": reference.heading_deg,
            "captured_at": reference.captured_at.isoformat() if reference.captured_at else None,
            "session": reference.session,
            "metadata": json.dumps(dict(reference.metadata)) if reference.metadata else None,
            "content_sha256": None,
        }
        for name, value in values.items():
            columns[name].append(value)
    return pa.Table.from_pydict(columns, schema=REFERENCE_SCHEMA)


def reference_of(record: dict[str, Any], root: Path) -> Reference:
    """A row of the table, by column names, as a `Reference`; its path starts from `root`."""
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
