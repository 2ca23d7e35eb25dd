"""Positions on the Earth: great-circle distance, bearing, local metres, UTM, and an order along a spatial curve.

Angles are WGS84 degrees, distances metres on the mean sphere (R = 6 371 008.8 m, IUGG). Against the ellipsoid the
sphere is off by at most 0.56 %: 14 cm at 25 m.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from retrieval.errors import ParameterError

if TYPE_CHECKING:
    import pyproj

EARTH_RADIUS_M = 6_371_008.8
HALF_CIRCUMFERENCE_M = math.pi * EARTH_RADIUS_M
Float64Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Position:
    """A WGS84 position: latitude and longitude in degrees, longitude in [-180, 180].

    Raises:
        ParameterError: latitude outside [-90, 90], longitude outside [-180, 360), or either not finite.
    """

    lat: float
    lon: float

    def __post_init__(self) -> None:
        check_lat_lon(self.lat, self.lon)
        if self.lon > 180.0:
            object.__setattr__(self, "lon", self.lon - 360.0)


def check_lat_lon(lat: float, lon: float) -> None:
    """Raise ParameterError unless lat is in [-90, 90] and lon in [-180, 360)."""
    if not (math.isfinite(lat) and -90.0 <= lat <= 90.0):
        raise ParameterError(f"latitude {lat} is outside [-90, 90]", remedy="Give WGS84 degrees")
    if not (math.isfinite(lon) and -180.0 <= lon < 360.0):
        raise ParameterError(f"longitude {lon} is outside [-180, 360)", remedy="Give WGS84 degrees")


@dataclass(frozen=True, slots=True)
class GeoPrior:
    """A circle in which the answer must lie: centre in degrees, radius in metres, border included.

    Raises:
        ParameterError: centre outside the Earth, radius not in (0, 21 000 000].
    """

    lat: float
    lon: float
    radius_m: float

    MAX_RADIUS_M = 21_000_000.0

    def __post_init__(self) -> None:
        check_lat_lon(self.lat, self.lon)
        if not (math.isfinite(self.radius_m) and 0.0 < self.radius_m <= self.MAX_RADIUS_M):
            raise ParameterError(
                f"geo prior radius_m {self.radius_m} is outside (0, {self.MAX_RADIUS_M:.0f}]",
                remedy="Give a radius in metres, or leave the geo prior out",
            )


def haversine_m(lat1: ArrayLike, lon1: ArrayLike, lat2: ArrayLike, lon2: ArrayLike) -> Float64Array:
    """Great-circle distance in metres between positions in degrees; broadcasts like numpy."""
    phi1, phi2 = np.radians(np.asarray(lat1, np.float64)), np.radians(np.asarray(lat2, np.float64))
    half_dphi = (phi2 - phi1) / 2
    half_dlam = np.radians(np.asarray(lon2, np.float64) - np.asarray(lon1, np.float64)) / 2
    h = np.sin(half_dphi) ** 2 + np.cos(phi1) * np.cos(phi2) * np.sin(half_dlam) ** 2
    return np.asarray(2 * EARTH_RADIUS_M * np.arcsin(np.sqrt(np.clip(h, 0.0, 1.0))))


def bearing_deg(lat1: ArrayLike, lon1: ArrayLike, lat2: ArrayLike, lon2: ArrayLike) -> Float64Array:
    """Initial great-circle bearing from the first to the second position, degrees clockwise from north in [0, 360)."""
    phi1, phi2 = np.radians(np.asarray(lat1, np.float64)), np.radians(np.asarray(lat2, np.float64))
    dlam = np.radians(np.asarray(lon2, np.float64) - np.asarray(lon1, np.float64))
    east = np.sin(dlam) * np.cos(phi2)
    north = np.cos(phi1) * np.sin(phi2) - np.sin(phi1) * np.cos(phi2) * np.cos(dlam)
    bearing = np.degrees(np.arctan2(east, north)) % 360.0
    # A bearing a hair west of north rounds up to 360.
    return np.asarray(np.where(bearing < 360.0, bearing, 0.0))


def to_local_metres(origin: Position, lat: ArrayLike, lon: ArrayLike) -> Float64Array:
    """Positions as metres east and north of an origin (azimuthal equidistant: distances from the origin are exact).

    Works across the antimeridian and at the poles, where "north" is the direction of the origin's own meridian.

    Args:
        origin: where (0, 0) lies.
        lat, lon: (N,) degrees.

    Returns:
        (N, 2) float64, columns east and north.
    """
    distance = haversine_m(origin.lat, origin.lon, lat, lon)
    bearing = np.radians(bearing_deg(origin.lat, origin.lon, lat, lon))
    return np.stack([distance * np.sin(bearing), distance * np.cos(bearing)], axis=-1)


def from_local_metres(origin: Position, east: float, north: float) -> Position:
    """The position that lies `east` and `north` metres from the origin; the inverse of `to_local_metres`."""
    arc = math.hypot(east, north) / EARTH_RADIUS_M
    bearing = math.atan2(east, north)
    phi, lam = math.radians(origin.lat), math.radians(origin.lon)
    up = np.array([math.cos(phi) * math.cos(lam), math.cos(phi) * math.sin(lam), math.sin(phi)])
    to_east = np.array([-math.sin(lam), math.cos(lam), 0.0])
    to_north = np.cross(up, to_east)
    # Vectors, not the spherical law of cosines: that loses the longitude near the poles.
    ahead = math.sin(bearing) * to_east + math.cos(bearing) * to_north
    x, y, z = (float(c) for c in math.cos(arc) * up + math.sin(arc) * ahead)
    return Position(math.degrees(math.atan2(z, math.hypot(x, y))), math.degrees(math.atan2(y, x)))


def longitude_bounds(lon: Float64Array) -> tuple[float, float]:
    """The narrowest (west, east) in degrees that holds all longitudes: it starts after the widest gap on the Earth."""
    ring = np.unique(lon)
    gaps = np.diff(ring, append=ring[0] + 360.0)
    widest = int(np.argmax(gaps))
    return float(ring[(widest + 1) % len(ring)]), float(ring[widest])


def unit_vectors(lat: ArrayLike, lon: ArrayLike) -> Float64Array:
    """Positions as (N, 3) float64 points on the unit sphere, free of seams and poles."""
    phi, lam = np.radians(np.asarray(lat, np.float64)), np.radians(np.asarray(lon, np.float64))
    return np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], axis=-1)


def hilbert_key(lat: ArrayLike, lon: ArrayLike, order: int = 26) -> NDArray[np.int64]:
    """The place of each position along a Hilbert curve over latitude and longitude.

    Neighbours on the curve are neighbours on the ground, so rows sorted by it keep a circle in few contiguous slices.
    One cell is at most 0.6 m high at order 26. Algorithm: Hilbert 1891 in the iterative form of Warren, Hacker's
    Delight (2nd ed.), chapter 16, vectorised.

    Args:
        lat, lon: (N,) degrees.
        order: bits per axis, 1..31.

    Returns:
        (N,) int64 in [0, 4**order).
    """
    side = 1 << order
    x = _cell((np.asarray(lon, np.float64) + 180.0) % 360.0 / 360.0, side)
    y = _cell((np.asarray(lat, np.float64) + 90.0) / 180.0, side)
    key = np.zeros(x.shape, np.int64)
    for bit in range(order - 1, -1, -1):
        s = np.int64(1) << bit
        rx, ry = (x & s) > 0, (y & s) > 0
        key = (key << 2) | ((3 * rx.astype(np.int64)) ^ ry.astype(np.int64))
        flip = ~ry & rx
        x, y = np.where(flip, side - 1 - x, x), np.where(flip, side - 1 - y, y)
        x, y = np.where(~ry, y, x), np.where(~ry, x, y)
    return key


def _cell(fraction: Float64Array, side: int) -> NDArray[np.int64]:
    cells: NDArray[np.int64] = np.clip((np.atleast_1d(fraction) * side).astype(np.int64), 0, side - 1)
    return cells


@lru_cache(maxsize=64)
def _utm_transformer(zone: int, south: bool, inverse: bool) -> "pyproj.Transformer":
    import pyproj  # here, because most processes never convert UTM

    if not 1 <= zone <= 60:
        raise ParameterError(f"UTM zone {zone} does not exist", remedy="Give a zone from 1 to 60")
    utm = f"EPSG:{32700 + zone if south else 32600 + zone}"
    pair = (utm, "EPSG:4326") if inverse else ("EPSG:4326", utm)
    return pyproj.Transformer.from_crs(*pair, always_xy=True)


def utm_to_wgs84(east: ArrayLike, north: ArrayLike, zone: int, south: bool) -> tuple[Float64Array, Float64Array]:
    """UTM metres to (lat, lon) in degrees.

    Raises:
        ParameterError: no such zone.
    """
    lon, lat = _utm_transformer(zone, south, True).transform(np.asarray(east), np.asarray(north))
    return np.asarray(lat, np.float64), np.asarray(lon, np.float64)


def wgs84_to_utm(lat: ArrayLike, lon: ArrayLike, zone: int, south: bool) -> tuple[Float64Array, Float64Array]:
    """Degrees to UTM (east, north) in metres in the given zone.

    Raises:
        ParameterError: no such zone.
    """
    east, north = _utm_transformer(zone, south, False).transform(np.asarray(lon), np.asarray(lat))
    return np.asarray(east, np.float64), np.asarray(north, np.float64)
