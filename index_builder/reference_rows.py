"""The reference rows of a version that is being written."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index_builder.photo_paths import PathsBelow
from retrieval.errors import ReferenceDataError
from retrieval.geo import hilbert_key, longitude_bounds
from retrieval.place_index_manifest import Bounds
from retrieval.reference_table import REFERENCE_SCHEMA
from retrieval.references.reference import Reference


class ReferenceRows:
    """References gathered column by column.

    Args:
        root: the folder that the paths of photos below it are kept relative to; other paths are kept absolute.
    """

    def __init__(self, root: Path) -> None:
        self._below = PathsBelow(root).below
        self._columns: dict[str, list[object]] = {name: [] for name in REFERENCE_SCHEMA.names}
        self._ids: set[str] = set()

    def append(self, reference: Reference) -> None:
        """Add a row.

        Raises:
            ReferenceDataError: it has no position, or an id that is there already.
        """
        if reference.position is None:
            raise ReferenceDataError(
                f"reference {reference.id} has plane metres but no latitude and longitude",
                where=str(reference.path),
                remedy="A place index needs WGS84 positions; give the UTM zone in the spec (zone=33N)",
            )
        if reference.id in self._ids:
            raise ReferenceDataError(f"two references have the id {reference.id!r}", where=str(reference.path))
        self._ids.add(reference.id)
        values = {
            "id": reference.id,
            "path": self._below(reference.path),
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
            self._columns[name].append(value)

    def __len__(self) -> int:
        return len(self._ids)

    def table(self) -> pa.Table:
        """The rows in the order they came, with the columns of `REFERENCE_SCHEMA`."""
        return pa.Table.from_pydict(self._columns, schema=REFERENCE_SCHEMA)


def spatial_order(table: pa.Table) -> NDArray[np.int64]:
    """Row numbers of a reference table along the spatial curve, (N,) int64; rows of one place keep their order."""
    return np.argsort(hilbert_key(*_positions(table)), kind="stable")


def bounds_of(table: pa.Table) -> Bounds:
    """The narrowest box around the rows of a reference table."""
    lat, lon = _positions(table)
    west, east = longitude_bounds(lon)
    return Bounds(lat_min=float(lat.min()), lat_max=float(lat.max()), lon_min=west, lon_max=east)


def _positions(table: pa.Table) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return table["lat"].to_numpy(), table["lon"].to_numpy()
