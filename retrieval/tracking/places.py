"""Reference places: photos a few metres apart are one place, and a place's neighbours are found by a grid hash.

Cells are rows of equal latitude cut into columns of about equal width; a place is a cell that holds references, and
stands at their mean. Places are sorted by row and column, so the neighbours of one are a few contiguous slices that a
binary search finds: nothing per frame grows with the number of references but the logarithm in that search.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from retrieval.errors import ParameterError
from retrieval.geo import EARTH_RADIUS_M, Float64Array, unit_vectors
from retrieval.index.sampling import evenly_spaced

Int64Array = NDArray[np.int64]
_METRES_PER_DEGREE: Final = math.pi * EARTH_RADIUS_M / 180.0
_ROW_SHIFT: Final = 32
_SPACING_SAMPLE: Final = 512
_SPACING_LIMIT_M: Final = 1000.0


@dataclass(frozen=True, slots=True)
class PlacePairs:
    """Pairs of near places.

    Attributes:
        source: (M,) int64, positions in the given list.
        target: (M,) int64, place ids.
        east_north: (M, 2) float64, metres from source to target.
        distance_m: (M,) float64.
        served: how many of the given places were searched around before the limit of pairs; the first ones.
        touched: how many places were read.
    """

    source: Int64Array
    target: Int64Array
    east_north: Float64Array
    distance_m: Float64Array
    served: int
    touched: int


class PlaceMap:
    """The places of a reference database. Immutable; one serves any number of tracks and threads.

    Args:
        lat, lon: (N,) degrees of the references, by row.
        place_m: side of a place, metres.

    Attributes:
        place_of: (N,) int32, the place of each reference.
        lat, lon: (P,) float64 degrees.
        spacing_m: typical distance between neighbouring places along a way.

    Raises:
        ParameterError: no references, shapes that differ, positions outside the Earth, place_m not above 0.
    """

    def __init__(self, lat: ArrayLike, lon: ArrayLike, place_m: float = 5.0) -> None:
        lats, lons = np.asarray(lat, np.float64), np.asarray(lon, np.float64)
        _check_positions(lats, lons)
        if not (math.isfinite(place_m) and place_m >= 0.5):
            raise ParameterError(f"place_m {place_m} is below 0.5", remedy="Give the side of a place in metres")
        self.place_m = place_m
        row = self._row(lats)
        keys, place_of = np.unique((row << _ROW_SHIFT) + self._column(row, lons), return_inverse=True)
        self._keys: Int64Array = keys
        self.place_of: NDArray[np.int32] = place_of.astype(np.int32).ravel()
        points = unit_vectors(lats, lons)
        sums = [np.bincount(self.place_of, axis, minlength=len(keys)) for axis in points.T]
        mean = np.stack(sums, axis=1)
        self._points: Float64Array = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        self.lat: Float64Array = np.degrees(np.arctan2(self._points[:, 2], np.hypot(*self._points[:, :2].T)))
        self.lon: Float64Array = np.degrees(np.arctan2(self._points[:, 1], self._points[:, 0]))
        self._centre, self._span_m = self._bounding_cap()
        self.spacing_m = self._typical_spacing_m()

    @property
    def count(self) -> int:
        """Number of places, P."""
        return len(self._keys)

    def farthest_m(self, point: Float64Array) -> float:
        """An upper bound of the distance from a unit vector (3,) to any place, metres."""
        return float(np.linalg.norm(point - self._centre)) * EARTH_RADIUS_M + self._span_m

    def points(self, places: Int64Array) -> Float64Array:
        """Unit vectors (M, 3) of some places."""
        return np.asarray(self._points[places])

    def axes(self, places: Int64Array) -> tuple[Float64Array, Float64Array]:
        """Unit vectors (M, 3) that point east and north at some places."""
        phi, lam = np.radians(self.lat[places]), np.radians(self.lon[places])
        east = np.stack([-np.sin(lam), np.cos(lam), np.zeros_like(lam)], axis=-1)
        north = np.stack([-np.sin(phi) * np.cos(lam), -np.sin(phi) * np.sin(lam), np.cos(phi)], axis=-1)
        return east, north

    def nearest(self, lat: ArrayLike, lon: ArrayLike, within_m: float) -> Int64Array:
        """The nearest place to each of some positions.

        Args:
            lat, lon: (S,) degrees.
            within_m: metres.

        Returns:
            (S,) int64 place ids, -1 where no place lies within.
        """
        lats, lons = np.asarray(lat, np.float64), np.asarray(lon, np.float64)
        found = np.full(len(lats), -1, np.int64)
        source, starts, stops = self._slices(lats, lons, within_m)
        source, target = _unrolled(source, starts, stops - starts)
        way = self._points[target] - unit_vectors(lats, lons)[source]
        distance = np.sqrt(np.einsum("mi,mi->m", way, way)) * EARTH_RADIUS_M
        order = np.lexsort((target, distance, source))
        order = order[distance[order] <= within_m]
        whose, first = np.unique(source[order], return_index=True)
        found[whose] = target[order][first]
        return found

    def near(self, places: Int64Array, radius_m: float, max_pairs: int | None = None) -> PlacePairs:
        """All pairs of the given places with places within a radius, themselves included.

        Args:
            places: (S,) int64 place ids.
            radius_m: metres, border included; straight lines, which is the ground to 1e-7 at 5 km.
            max_pairs: the last of `places` are left out where more than this many places would be read.
        """
        source, starts, stops = self._slices(self.lat[places], self.lon[places], radius_m)
        lengths = stops - starts
        served = len(places)
        if max_pairs is not None and int(lengths.sum()) > max_pairs:
            reads = np.cumsum(np.bincount(source, lengths, minlength=len(places)))
            served = int(np.searchsorted(reads, max_pairs, side="right"))
            kept = source < served
            source, starts, lengths = source[kept], starts[kept], lengths[kept]
        touched = int(lengths.sum())
        source, target = _unrolled(source, starts, lengths)
        way = self._points[target] - self._points[places[source]]
        distance = np.sqrt(np.einsum("mi,mi->m", way, way)) * EARTH_RADIUS_M
        inside = distance <= radius_m
        source, target, way = source[inside], target[inside], way[inside]
        east, north = (axis[source] for axis in self.axes(places))
        east_north = np.stack([np.einsum("mi,mi->m", way, axis) for axis in (east, north)], axis=1) * EARTH_RADIUS_M
        return PlacePairs(source, target, east_north, distance[inside], served, touched)

    def _slices(
        self, lat: Float64Array, lon: Float64Array, radius_m: float
    ) -> tuple[Int64Array, Int64Array, Int64Array]:
        """Runs of places in sorted order that hold all neighbours: whose (M,), starts (M,), stops (M,)."""
        # A mean may lie outside its cell where cells are odd (around a pole), never by more than two of them.
        padded_m = radius_m + 2.0 * self.place_m
        padded_deg = padded_m / _METRES_PER_DEGREE
        lowest = self._row(np.maximum(lat - padded_deg, -90.0))
        highest = self._row(np.minimum(lat + padded_deg, 90.0))
        rows = lowest[:, None] + np.arange(int((highest - lowest).max(initial=0)) + 1)
        whose, nth = np.nonzero(rows <= highest[:, None])
        row, half = rows[whose, nth], self._half_width_deg(lat, padded_m)[whose]
        west, east = lon[whose] - half, lon[whose] + half
        around = half >= 180.0
        west, east = np.where(around, -180.0, west), np.where(around, 180.0, east)
        parts = [(whose, row, np.maximum(west, -180.0), np.minimum(east, 180.0))]
        # Over the antimeridian, what sticks out on one side comes in on the other.
        over_west, over_east = np.flatnonzero(west < -180.0), np.flatnonzero(east > 180.0)
        parts.append((whose[over_west], row[over_west], west[over_west] + 360.0, np.full(len(over_west), 180.0)))
        parts.append((whose[over_east], row[over_east], np.full(len(over_east), -180.0), east[over_east] - 360.0))
        owner, row, west, east = (np.concatenate(part) for part in zip(*parts, strict=True))
        starts = np.searchsorted(self._keys, (row << _ROW_SHIFT) + self._column(row, west))
        # Longitude 180 is the last column here, though the cell of a position on it is the first.
        last = np.where(east >= 180.0, self._columns(row) - 1, self._column(row, np.minimum(east, 179.999999999)))
        stops = np.searchsorted(self._keys, (row << _ROW_SHIFT) + last, side="right")
        order = np.argsort(owner, kind="stable")
        return owner[order], starts[order], np.maximum(stops, starts)[order]

    def _half_width_deg(self, lat: Float64Array, radius_m: float) -> Float64Array:
        """Half the range of longitudes of a circle; 180 where it holds a pole."""
        angle = min(radius_m / EARTH_RADIUS_M, math.pi / 2)
        cosine = np.cos(np.radians(lat))
        ratio = np.minimum(math.sin(angle) / np.maximum(cosine, 1e-300), 1.0)
        holds_pole = np.abs(lat) + math.degrees(angle) >= 90.0
        return np.where(holds_pole, 180.0, np.degrees(np.arcsin(ratio)))

    def _row(self, lat: Float64Array) -> Int64Array:
        rows: Int64Array = np.floor((lat + 90.0) * (_METRES_PER_DEGREE / self.place_m)).astype(np.int64)
        return rows

    def _columns(self, row: Int64Array) -> Int64Array:
        middle = (row + 0.5) * (self.place_m / _METRES_PER_DEGREE) - 90.0
        round_m = 360.0 * _METRES_PER_DEGREE * np.maximum(np.cos(np.radians(np.minimum(middle, 90.0))), 0.0)
        columns: Int64Array = np.maximum(1, np.floor(round_m / self.place_m)).astype(np.int64)
        return columns

    def _column(self, row: Int64Array, lon: Float64Array) -> Int64Array:
        columns = self._columns(row)
        share = ((lon + 180.0) % 360.0) / 360.0
        column: Int64Array = np.minimum((share * columns).astype(np.int64), columns - 1)
        return column

    def _bounding_cap(self) -> tuple[Float64Array, float]:
        """A unit vector in the middle of all places, and the farthest place from it in metres."""
        mean = self._points.mean(axis=0)
        norm = float(np.linalg.norm(mean))
        centre = mean / norm if norm > 1e-12 else np.array([1.0, 0.0, 0.0])
        return centre, float(np.linalg.norm(self._points - centre, axis=1).max()) * EARTH_RADIUS_M

    def _typical_spacing_m(self) -> float:
        """Median distance to the second nearest place, over a sample; never below `place_m`.

        The second, because the nearest is often across the street: two lanes 4 m apart with a photo every 10 m are
        places 10 m apart to someone who drives along.
        """
        sample = evenly_spaced(self.count, _SPACING_SAMPLE)
        radius = 2.0 * self.place_m
        while radius < _SPACING_LIMIT_M:
            pairs = self.near(sample, radius)
            order = np.lexsort((pairs.distance_m, pairs.source))
            source, distance = pairs.source[order], pairs.distance_m[order]
            # The place itself comes first, at distance 0.
            second = np.searchsorted(source, np.arange(len(sample))) + 2
            has_two = np.bincount(source, minlength=len(sample)) > 2
            if has_two.mean() > 0.5:
                found = np.where(has_two, distance[np.minimum(second, len(distance) - 1)], np.inf)
                return max(self.place_m, float(np.median(found)))
            radius *= 2.0
        return self.place_m


def _unrolled(source: Int64Array, starts: Int64Array, lengths: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Slices as pairs: whose (M,), and the places in them (M,)."""
    target = np.arange(int(lengths.sum())) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    return np.repeat(source, lengths), target


def _check_positions(lat: Float64Array, lon: Float64Array) -> None:
    if lat.ndim != 1 or lat.shape != lon.shape or len(lat) == 0:
        raise ParameterError(
            f"references have latitudes of shape {lat.shape} and longitudes of shape {lon.shape}",
            remedy="Give two arrays of the same length, at least 1",
        )
    fine = (np.abs(lat) <= 90.0) & (lon >= -180.0) & (lon < 360.0)
    if not fine.all():
        row = int(np.argmin(fine))
        raise ParameterError(
            f"the position {lat[row]}, {lon[row]} is not on the Earth",
            where=f"reference {row}",
            remedy="Give WGS84 degrees",
        )
