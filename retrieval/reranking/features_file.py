"""Local features of a whole index in one file: Arrow IPC, one row a reference, paged in as rows are asked for.

Rows lie in record batches of the same number each, so a row is found without reading what is before it.
"""

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from retrieval.errors import PlaceIndexError
from retrieval.reranking.local_features import DESCRIPTOR_BYTES, FeatureSettings, LocalFeatures

_ROWS_PER_BATCH: Final = 64
_POINT_BYTES: Final = 4
_SCHEMA: Final = pa.schema(
    [pa.field("points", pa.binary(), nullable=False), pa.field("descriptors", pa.binary(), nullable=False)]
)
_REMEDY: Final = "Build the index again with: sightfix index SOURCE --local-features"


class StoredFeatures:
    """The local features of an index's references. Safe to read from several threads.

    Args:
        path: of the file.
        settings: that they were computed with.
        count: of references.

    Raises:
        PlaceIndexError: it is no such file, or of another number of references.
    """

    def __init__(self, path: Path, settings: FeatureSettings, count: int) -> None:
        self.settings = settings
        self.count = count
        self._path = path
        self._lock = threading.Lock()
        try:
            self._file = pa.ipc.open_file(pa.memory_map(str(path)))
            fits = self._file.schema.equals(_SCHEMA) and self._file.num_record_batches == -(-count // _ROWS_PER_BATCH)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(str(error)) from error
        if not fits:
            raise self._damaged(f"they are not those of {count} references")

    def features(self, row: int) -> LocalFeatures:
        """The features of one reference; none of one whose photo could not be read.

        Raises:
            PlaceIndexError: the file is damaged.
        """
        if not 0 <= row < self.count:
            raise IndexError(f"row {row} of {self.count}")
        batch, place = divmod(row, _ROWS_PER_BATCH)
        try:
            with self._lock:
                rows = self._file.get_batch(batch)
            # Only these two values: what the others say of themselves is none of our business yet.
            points, descriptors = (_bytes(rows.column(name).slice(place, 1)) for name in ("points", "descriptors"))
        except (pa.ArrowException, OSError, IndexError) as error:
            raise self._damaged(str(error)) from error
        if len(points) % _POINT_BYTES or len(points) // _POINT_BYTES != len(descriptors) / DESCRIPTOR_BYTES:
            raise self._damaged(f"row {row} holds {len(points)} and {len(descriptors)} bytes")
        return LocalFeatures(
            np.frombuffer(points, "<u2").reshape(-1, 2), np.frombuffer(descriptors, np.uint8).reshape(-1, 128)
        )

    def _damaged(self, what: str) -> PlaceIndexError:
        return PlaceIndexError(f"the local features cannot be read ({what})", where=str(self._path), remedy=_REMEDY)


def write_features(path: Path, features: Iterable[LocalFeatures]) -> int:
    """Write the features of all references, in the order of the rows, and few at a time.

    Returns:
        the bytes they take.

    Raises:
        OSError: the disk refuses.
    """
    with path.open("wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
        for some in _record_batches(features):
            writer.write_batch(some)
    return path.stat().st_size


def _record_batches(features: Iterable[LocalFeatures]) -> Iterator[pa.RecordBatch]:
    """Record batches of as many rows each as the reader counts on."""
    some: list[LocalFeatures] = []
    for one in features:
        some.append(one)
        if len(some) == _ROWS_PER_BATCH:
            yield _record_batch(some)
            some = []
    if some:
        yield _record_batch(some)


def _record_batch(features: list[LocalFeatures]) -> pa.RecordBatch:
    points = [one.points.astype("<u2").tobytes() for one in features]
    descriptors = [one.descriptors.tobytes() for one in features]
    return pa.record_batch([pa.array(points, pa.binary()), pa.array(descriptors, pa.binary())], schema=_SCHEMA)


def _bytes(column: pa.Array) -> memoryview:
    column.validate(full=True)
    return memoryview(column[0].as_buffer())
