"""Where queries and database images lie, which are near each other, and what recall@N that gives.

Distances are measured on the sphere, in a plane, or in UTM. recall@N is the share of queries with at least one true
match, one within a radius, among the first N.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from retrieval.errors import ParameterError
from retrieval.geo import EARTH_RADIUS_M, HALF_CIRCUMFERENCE_M, Float64Array, unit_vectors, wgs84_to_utm
from retrieval.references.reference import Reference

Int64Array = NDArray[np.int64]
Measure = Literal["great circle", "plane", "utm"]

# Farther apart than any two points of one UTM zone (north ≤ 10 000 km), so zones never touch.
_ZONE_GAP_M: Final = 1e8

# Pairs and queries in memory at a time while positives are counted, and queries while their first hits are found.
_PAIRS_AT_ONCE: Final = 1_000_000
_COUNTED_AT_ONCE: Final = 16_384
_QUERIES_AT_ONCE: Final = 65_536

# Twenty bits an axis: three axes fit an int64 key.
_CELLS_PER_AXIS: Final = 1 << 20


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


def count_positives(
    ground: Ground, radii_m: Sequence[float], on_progress: Callable[[int], None] | None = None
) -> Int64Array:
    """Count the database images within each radius of each query, the border included, without holding all pairs.

    A grid of sorted cells, each at least one radius wide: every positive of a query lies in the 3^d cells around it.
    Time grows with the number of candidate pairs, memory only with the number of points.

    Args:
        ground: where queries and database lie.
        radii_m: metres, each above 0.
        on_progress: called with the number of queries done since the last call.

    Returns:
        (len(radii_m), Nq) int64.
    """
    limits = [ground.squared_limit(radius) for radius in radii_m]
    grid = _Grid.build(ground.database, float(np.sqrt(max(limits))))
    total = len(ground.queries)
    counts = np.zeros((len(limits), total), np.int64)
    for begin in range(0, total, _COUNTED_AT_ONCE):
        end = min(begin + _COUNTED_AT_ONCE, total)
        counts[:, begin:end] = grid.count(ground.queries[begin:end], limits)
        if on_progress is not None:
            on_progress(end - begin)
    return counts


@dataclass(frozen=True, slots=True)
class _Grid:
    """Database points sorted by the cell they lie in; the last axis varies fastest."""

    points: Float64Array
    keys: Int64Array
    origin: Float64Array
    cell: Float64Array
    shape: Int64Array

    @classmethod
    def build(cls, points: Float64Array, reach: float) -> "_Grid":
        origin, top = points.min(axis=0), points.max(axis=0)
        # A hair wider than the reach: rounding must not push a positive two cells away.
        cell = np.maximum(reach * (1 + 1e-6) + 1e-6, (top - origin) / (_CELLS_PER_AXIS - 2))
        coordinates = np.floor((points - origin) / cell).astype(np.int64)
        shape = coordinates.max(axis=0) + 1
        keys = _key(coordinates, shape)
        order = np.argsort(keys, kind="stable")
        return cls(points[order], keys[order], origin, cell, shape)

    def count(self, queries: Float64Array, limits: Sequence[float]) -> Int64Array:
        starts, lengths = self._runs(queries)
        candidates = np.cumsum(lengths.sum(axis=1))
        counts = np.zeros((len(limits), len(queries)), np.int64)
        begin = 0
        while begin < len(queries):
            seen = int(candidates[begin - 1]) if begin else 0
            end = max(begin + 1, int(np.searchsorted(candidates, seen + _PAIRS_AT_ONCE, side="right")))
            pair_query, pair_row = _expand(starts[begin:end], lengths[begin:end])
            squared = squared_distance(queries[begin:end][pair_query], self.points[pair_row])
            for i, limit in enumerate(limits):
                counts[i, begin:end] = np.bincount(pair_query[squared <= limit], minlength=end - begin)
            begin = end
        return counts

    def _runs(self, queries: Float64Array) -> tuple[Int64Array, Int64Array]:
        """Where each query's candidates lie among the sorted points: (n, 3^(d-1)) starts and lengths."""
        axes = queries.shape[1]
        # Far-away queries are brought near before the cast: int64 would overflow, and they have no neighbour anyway.
        centre = np.clip(np.floor((queries - self.origin) / self.cell), -2, self.shape + 1).astype(np.int64)
        steps = np.stack(np.meshgrid(*[[-1, 0, 1]] * (axes - 1), indexing="ij"), -1).reshape(-1, axes - 1)
        leading = centre[:, None, :-1] + steps[None]
        inside = ((leading >= 0) & (leading < self.shape[:-1])).all(axis=-1)
        first = np.maximum(centre[:, -1] - 1, 0)[:, None]
        last = np.minimum(centre[:, -1] + 1, self.shape[-1] - 1)[:, None]
        inside &= first <= last
        base = _key(np.concatenate([leading, np.zeros_like(leading[..., :1])], axis=-1), self.shape)
        starts = np.searchsorted(self.keys, base + first, side="left")
        stops = np.searchsorted(self.keys, base + last, side="right")
        return starts.astype(np.int64), np.where(inside, stops - starts, 0).astype(np.int64)


def _key(coordinates: Int64Array, shape: Int64Array) -> Int64Array:
    key = coordinates[..., 0]
    for axis in range(1, coordinates.shape[-1]):
        key = key * shape[axis] + coordinates[..., axis]
    return np.asarray(key, np.int64)


def _expand(starts: Int64Array, lengths: Int64Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every (query, sorted row) pair of the runs, as two flat arrays."""
    per_query = starts.shape[1]
    flat = lengths.ravel()
    run = np.repeat(np.arange(flat.size), flat)
    within_run = np.arange(run.size) - np.repeat(np.cumsum(flat) - flat, flat)
    return run // per_query, starts.ravel()[run] + within_run


def first_hits(ground: Ground, rows: Int64Array, radius_m: float) -> Int64Array:
    """The rank (0 = best) of each query's first match that lies within the radius, the border included.

    Args:
        ground: where queries and database lie.
        rows: (Nq, K) int64 database rows, best first, -1 where there is no match.
        radius_m: metres.

    Returns:
        (Nq,) int64 in [0, K]; K where no match is within the radius.
    """
    limit = ground.squared_limit(radius_m)
    count, k = rows.shape
    ranks = np.full(count, k, np.int64)
    for begin in range(0, count, _QUERIES_AT_ONCE):
        block = rows[begin : begin + _QUERIES_AT_ONCE]
        queries = np.arange(begin, begin + len(block))[:, None]
        near = (block >= 0) & (ground.squared(queries, block) <= limit)
        ranks[begin : begin + len(block)] = np.where(near.any(axis=1), near.argmax(axis=1), k)
    return ranks


def hits_at(first_hit: Int64Array, cutoffs: Sequence[int], k: int) -> NDArray[np.bool_]:
    """Whether each query has a true match among its first N, for each N.

    Args:
        first_hit: (Nq,) int64 from `first_hits`.
        cutoffs: the Ns, each at least 1.
        k: how many matches were ranked (what `first_hits` gives for "none").

    Returns:
        (Nq, len(cutoffs)) bool.
    """
    return (first_hit[:, None] < np.asarray(cutoffs)[None, :]) & (first_hit < k)[:, None]


def chance_at(positives: Int64Array, database_size: int, cutoffs: Sequence[int]) -> Float64Array:
    """The expected recall@N of a random ranking: 1 − C(n − p, N) / C(n, N), the hypergeometric chance of ≥ 1 hit.

    Args:
        positives: (Nq,) int64, p: how many database images are true matches of each query.
        database_size: n.
        cutoffs: the Ns; an N beyond n counts as n.

    Returns:
        (Nq, len(cutoffs)) float64 in [0, 1].
    """
    distinct, back = np.unique(positives, return_inverse=True)
    drawn = np.arange(min(max(cutoffs), database_size))
    # The product of (n - p - i) / (n - i) in logarithms keeps small chances exact; once p > n - N a hit is certain.
    with np.errstate(divide="ignore"):
        misses = np.cumsum(np.log1p(-np.minimum(distinct[:, None] / (database_size - drawn)[None, :], 1.0)), axis=1)
    last = np.minimum(np.asarray(cutoffs), database_size) - 1
    return np.asarray(-np.expm1(misses[:, last])[back])
