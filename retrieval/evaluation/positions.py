"""Where queries and database images lie, and how far apart: on the sphere, in a plane, or in UTM."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from retrieval.errors import ParameterError
from retrieval.geo import (
    EARTH_RADIUS_M,
    HALF_CIRCUMFERENCE_M,
    Float64Array,
    unit_vectors,
    wgs84_to_utm,
)
from retrieval.references.reference import Reference

Int64Array = NDArray[np.int64]
Measure = Literal["great circle", "plane", "utm"]

# Farther apart than any two points of one UTM zone (north ≤ 10 000 km), so zones never touch.
_ZONE_GAP_M = 1e8


@dataclass(frozen=True, slots=True)
class Positions:
    """The positions of N images: degrees, plane metres, or both.

    Attributes:
        lat, lon: (N,) float64 WGS84 degrees, or None.
        plane_m: (N, 2) float64, columns east and north in metres in the data set's own plane, or None.

    Raises:
        ParameterError: neither given, shapes that do not fit, or a value that is not finite.
    """

    lat: Float64Array | None = None
    lon: Float64Array | None = None
    plane_m: Float64Array | None = None

    def __post_init__(self) -> None:
        if (self.lat is None) != (self.lon is None) or (self.lat is None and self.plane_m is None):
            raise ParameterError("positions need latitude and longitude, or plane metres")
        lengths = {len(column) for column in (self.lat, self.lon, self.plane_m) if column is not None}
        if len(lengths) != 1 or (self.plane_m is not None and self.plane_m.shape[1:] != (2,)):
            raise ParameterError("latitude, longitude (N,) and plane metres (N, 2) do not fit together")
        for name, column in (("latitude", self.lat), ("longitude", self.lon), ("plane metres", self.plane_m)):
            if column is not None and not np.isfinite(column).all():
                row = int(np.argwhere(~np.isfinite(column))[0][0])
                raise ParameterError(f"{name} is not finite", where=f"row {row}", remedy="Leave such photos out")

    def __len__(self) -> int:
        column = self.lat if self.lat is not None else self.plane_m
        return 0 if column is None else len(column)

    @classmethod
    def from_degrees(cls, lat: ArrayLike, lon: ArrayLike) -> "Positions":
        """Positions from (N,) latitudes and longitudes in WGS84 degrees."""
        return cls(lat=np.atleast_1d(np.asarray(lat, np.float64)), lon=np.atleast_1d(np.asarray(lon, np.float64)))

    @classmethod
    def from_plane(cls, plane_m: ArrayLike) -> "Positions":
        """Positions from (N, 2) metres east and north."""
        return cls(plane_m=np.asarray(plane_m, np.float64).reshape(-1, 2))

    @classmethod
    def from_references(cls, references: Iterable[Reference]) -> "Positions":
        """Positions of reference rows; a kind of position that any row lacks is left out.

        Raises:
            ParameterError: the rows share neither degrees nor plane metres.
        """
        rows = list(references)
        degrees = [(row.position.lat, row.position.lon) for row in rows if row.position is not None]
        plane = [row.plane_m for row in rows if row.plane_m is not None]
        lat_lon = np.asarray(degrees, np.float64).reshape(-1, 2) if len(degrees) == len(rows) else None
        return cls(
            lat=None if lat_lon is None else lat_lon[:, 0].copy(),
            lon=None if lat_lon is None else lat_lon[:, 1].copy(),
            plane_m=np.asarray(plane, np.float64).reshape(-1, 2) if plane and len(plane) == len(rows) else None,
        )


@dataclass(frozen=True, slots=True)
class Ground:
    """Queries and database as points in space whose straight-line distance decides what is near.

    Attributes:
        measure: ``great circle`` (points on the sphere, chord for arc), ``plane``, or ``utm`` (each position in its
            own zone; the third coordinate keeps zones apart).
        database: (N, d) float64 metres, d = 2 or 3.
        queries: (Nq, d) float64 metres.
    """

    measure: Measure
    database: Float64Array
    queries: Float64Array

    def squared_limit(self, radius_m: float) -> float:
        """The squared straight-line distance of two points that lie `radius_m` apart on the ground."""
        if self.measure == "great circle":
            angle = min(radius_m, HALF_CIRCUMFERENCE_M) / EARTH_RADIUS_M
            return float((2 * EARTH_RADIUS_M * np.sin(angle / 2)) ** 2)
        return radius_m * radius_m

    def squared(self, query_rows: Int64Array, database_rows: Int64Array) -> Float64Array:
        """Squared straight-line distance in m² between queries and database images; rows broadcast like numpy."""
        return squared_distance(self.queries[query_rows], self.database[database_rows])

    def distance_m(self, query_rows: Int64Array, database_rows: Int64Array) -> Float64Array:
        """Distance on the ground in metres between queries and database images; rows broadcast like numpy."""
        straight = np.sqrt(self.squared(query_rows, database_rows))
        if self.measure == "great circle":
            return np.asarray(2 * EARTH_RADIUS_M * np.arcsin(np.minimum(straight / (2 * EARTH_RADIUS_M), 1.0)))
        return straight


def squared_distance(a: Float64Array, b: Float64Array) -> Float64Array:
    """Σ (a − b)² over the last axis, summed axis by axis so that every caller rounds alike."""
    delta = a - b
    total = delta[..., 0] * delta[..., 0]
    for axis in range(1, delta.shape[-1]):
        total += delta[..., axis] * delta[..., axis]
    return np.asarray(total)


def true_ground(queries: Positions, database: Positions) -> Ground:
    """Ground on which metres are true: the sphere where both sides have degrees, else the shared plane.

    Raises:
        ParameterError: one side has degrees only and the other plane metres only.
    """
    if queries.lat is not None and queries.lon is not None and database.lat is not None and database.lon is not None:
        return Ground(
            "great circle",
            unit_vectors(database.lat, database.lon) * EARTH_RADIUS_M,
            unit_vectors(queries.lat, queries.lon) * EARTH_RADIUS_M,
        )
    if queries.plane_m is not None and database.plane_m is not None:
        return Ground("plane", database.plane_m, queries.plane_m)
    raise ParameterError(
        "queries and database share no kind of position: one has degrees only, the other plane metres only",
        remedy="Give both in WGS84 degrees, or both in the same plane",
    )


def field_ground(queries: Positions, database: Positions) -> Ground:
    """Ground of the field's evaluators: the data set's own plane, else UTM, each position in its own zone.

    As in the field's file names (``@easting@northing@``), two photos on either side of a zone border are not near.
    The field writes no zone at all, so there two zones may collide; here they never do.

    Raises:
        ParameterError: queries and database share no kind of position.
    """
    if queries.plane_m is not None and database.plane_m is not None:
        return Ground("plane", database.plane_m, queries.plane_m)
    if queries.lat is None or queries.lon is None or database.lat is None or database.lon is None:
        return true_ground(queries, database)
    return Ground("utm", _utm_points(database.lat, database.lon), _utm_points(queries.lat, queries.lon))


def _utm_points(lat: Float64Array, lon: Float64Array) -> Float64Array:
    zones = np.minimum(60, ((lon + 180.0) % 360.0 // 6.0).astype(np.int64) + 1)
    keys = zones * 2 + (lat < 0)
    points = np.empty((len(lat), 3), np.float64)
    for key in np.unique(keys):
        rows = keys == key
        points[rows, 0], points[rows, 1] = wgs84_to_utm(lat[rows], lon[rows], int(key) // 2, bool(key % 2))
        points[rows, 2] = float(key) * _ZONE_GAP_M
    return points
