"""Positions where spatial code breaks: clusters at seams and poles, and scatter over the whole Earth."""

import math
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from retrieval.geo import EARTH_RADIUS_M, GeoPrior, haversine_m, hilbert_key, unit_vectors

CENTRES = [(48.0, 11.0), (0.0, 180.0), (0.0, -180.0), (65.0, 179.9999), (90.0, 0.0), (-90.0, 30.0), (0.0, 0.0)]


def cluster(centre: tuple[float, float], count: int, spread_m: float, seed: int) -> np.ndarray:
    """(count, 2) latitudes and longitudes, normally distributed around the centre."""
    phi, lam = np.radians(centre)
    up = unit_vectors(*centre)
    east = np.array([-np.sin(lam), np.cos(lam), 0.0])
    north = np.array([-np.sin(phi) * np.cos(lam), -np.sin(phi) * np.sin(lam), np.cos(phi)])
    steps = np.random.default_rng(seed).normal(scale=spread_m / EARTH_RADIUS_M, size=(count, 2))
    x, y, z = (up + steps @ np.stack([east, north])).T
    return np.degrees(np.stack([np.arctan2(z, np.hypot(x, y)), np.arctan2(y, x)], axis=1))


def everywhere(count: int, seed: int) -> np.ndarray:
    """(count, 2) latitudes and longitudes, evenly over the sphere."""
    rng = np.random.default_rng(seed)
    lat = np.degrees(np.arcsin(rng.uniform(-1.0, 1.0, count)))
    return np.stack([lat, rng.uniform(-180.0, 180.0, count)], axis=1)


@dataclass(frozen=True)
class Scatter:
    """A made-up reference database: `count` rows in each part, a cluster around a centre or (None) everywhere."""

    parts: tuple[tuple[float, float] | None, ...]
    count: int
    spread_m: float
    seed: int
    along_the_curve: bool

    def positions(self) -> tuple[np.ndarray, np.ndarray]:
        pieces = [
            everywhere(self.count, self.seed + place)
            if centre is None
            else cluster(centre, self.count, self.spread_m, self.seed + place)
            for place, centre in enumerate(self.parts)
        ]
        lat, lon = np.concatenate(pieces).T
        order = np.argsort(hilbert_key(lat, lon), kind="stable") if self.along_the_curve else np.arange(len(lat))
        return np.ascontiguousarray(lat[order]), np.ascontiguousarray(lon[order])


scatters = st.builds(
    Scatter,
    parts=st.lists(st.sampled_from([*CENTRES, None]), min_size=1, max_size=3).map(tuple),
    count=st.sampled_from([1, 2, 100, 255, 256, 257, 600]),
    spread_m=st.floats(0.0, 5.0).map(lambda exponent: 10.0**exponent),
    seed=st.integers(0, 2**32 - 1),
    along_the_curve=st.booleans(),
)


@st.composite
def priors(draw: st.DrawFn) -> GeoPrior:
    """Circles of one metre to the whole Earth, most of them near a cluster."""
    lat, lon = draw(st.sampled_from(CENTRES) | st.tuples(st.floats(-90.0, 90.0), st.floats(-180.0, 180.0)))
    return GeoPrior(lat, lon, min(GeoPrior.MAX_RADIUS_M, 10.0 ** draw(st.floats(0.0, 7.4))))


def surely_inside(lat: np.ndarray, lon: np.ndarray, prior: GeoPrior) -> tuple[np.ndarray, np.ndarray]:
    """By the haversine of every row: the rows inside, and those too near the border for floating point to tell."""
    distance = haversine_m(prior.lat, prior.lon, lat, lon)
    # Near the antipode the haversine itself is worth no more than half a metre.
    slack = 0.5 if prior.radius_m > 0.98 * math.pi * EARTH_RADIUS_M else 1e-3
    border = np.abs(distance - min(prior.radius_m, math.pi * EARTH_RADIUS_M)) <= slack
    return np.flatnonzero((distance <= prior.radius_m) & ~border), np.flatnonzero(border)
