"""How a set of positions covers the ground: bounds, extent, spacing, and the area it reaches."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from retrieval.geo import EARTH_RADIUS_M, Float64Array, longitude_bounds, unit_vectors
from sightfix.inspection.survey import Survey

CELL_M: Final = 25.0
_SAMPLE: Final = 2000
_FIRST_WINDOW: Final = 32
_SQUARE_METRES_A_HECTARE: Final = 10_000.0


@dataclass(frozen=True, slots=True)
class Coverage:
    """The ground that the references cover.

    Attributes:
        lat_min, lat_max, lon_min, lon_max: degrees, or None without positions; lon_min > lon_max where the box crosses
            the antimeridian.
        east_west_m, north_south_m: size of the box, the first at its middle latitude.
        distinct: how many different positions there are.
        shared: how many references share their position with another.
        most_on_one: the most references on one position.
        nearest_m: distance of each looked-at position to the nearest other one; a sample of at most 2000.
        covered_m2: the area of all squares of 25 m that hold a reference.
    """

    lat_min: float | None
    lat_max: float | None
    lon_min: float | None
    lon_max: float | None
    east_west_m: float
    north_south_m: float
    distinct: int
    shared: int
    most_on_one: int
    nearest_m: Float64Array
    covered_m2: float

    @property
    def spacing_m(self) -> float | None:
        """The median distance from a position to the nearest other one."""
        return float(np.median(self.nearest_m)) if self.nearest_m.size else None

    @property
    def covered_hectares(self) -> float:
        """The covered area in hectares."""
        return self.covered_m2 / _SQUARE_METRES_A_HECTARE


def measure_coverage(survey: Survey) -> Coverage | None:
    """Measure a survey by latitude and longitude, or in its own plane where it has none; None without either."""
    on_earth = survey.has_positions
    first, second = (survey.lat, survey.lon) if on_earth else (survey.north, survey.east)
    known = np.isfinite(first)
    if not known.any():
        return None
    first, second = first[known], second[known]
    spots, counts = np.unique(first + 1j * second, return_counts=True)
    north, east = spots.real, spots.imag
    if on_earth:
        west, east_edge = longitude_bounds(east)
        bounds = (float(north.min()), float(north.max()), west, east_edge)
        degrees = ((east_edge - west) % 360.0, bounds[1] - bounds[0])
        middle = math.radians((bounds[0] + bounds[1]) / 2)
        size = (math.radians(degrees[0]) * math.cos(middle) * EARTH_RADIUS_M, math.radians(degrees[1]) * EARTH_RADIUS_M)
        points = unit_vectors(north, east) * EARTH_RADIUS_M
    else:
        bounds = (None, None, None, None)  # type: ignore[assignment]
        size = (float(np.ptp(east)), float(np.ptp(north)))
        points = np.stack([east, north], axis=1)
    return Coverage(
        *bounds,
        east_west_m=size[0],
        north_south_m=size[1],
        distinct=len(spots),
        shared=int(counts[counts > 1].sum()),
        most_on_one=int(counts.max()),
        nearest_m=nearest_other_m(points),
        covered_m2=_covered_m2(north, east, on_earth),
    )


def nearest_other_m(points: Float64Array, sample: int = _SAMPLE) -> Float64Array:
    """The exact distance from points to their nearest other point.

    Points are sorted along their widest axis; the nearest cannot lie further along it than the best one found so far.

    Args:
        points: (N, d) float64 metres, all different.
        sample: look at so many, drawn with a fixed seed.

    Returns:
        (min(N, sample),) float64 metres; empty for fewer than two points.
    """
    if len(points) < 2:
        return np.empty(0)
    axis = int(np.argmax(np.ptp(points, axis=0)))
    points = points[np.argsort(points[:, axis])]
    along = points[:, axis]
    chosen = np.random.default_rng(0).permutation(len(points))[:sample]
    nearest = np.empty(len(chosen))
    for place, row in enumerate(chosen):
        low, high = max(0, row - _FIRST_WINDOW), row + _FIRST_WINDOW + 1
        best = _nearest_in(points, int(row), low, high)
        low, high = np.searchsorted(along, (along[row] - best, along[row] + best), side="left")
        nearest[place] = _nearest_in(points, int(row), int(low), int(high) + 1)
    return nearest


def _nearest_in(points: Float64Array, row: int, low: int, high: int) -> float:
    low, high = min(low, max(0, row - 1)), max(high, row + 2)
    squared = np.square(points[low:high] - points[row]).sum(axis=1)
    squared[row - low] = np.inf
    return float(np.sqrt(squared.min()))


def _covered_m2(north: Float64Array, east: Float64Array, on_earth: bool) -> float:
    if on_earth:
        metres_a_degree = math.radians(1.0) * EARTH_RADIUS_M
        rows = np.floor(north * metres_a_degree / CELL_M)
        # A row of squares has the width of its middle latitude.
        middle = np.radians((rows + 0.5) * CELL_M / metres_a_degree)
        columns = np.floor(east * metres_a_degree * np.cos(middle) / CELL_M)
    else:
        rows, columns = np.floor(north / CELL_M), np.floor(east / CELL_M)
    return len(np.unique(rows + 1j * columns)) * CELL_M**2
