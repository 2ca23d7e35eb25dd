"""Which rows can lie in a circle, when rows are ordered along a spatial curve: a few contiguous slices.

Every run of 256 rows is wrapped in a cap of the sphere (centre and angle). A geo prior is compared with the caps only,
in three dimensions, so the antimeridian and the poles are nothing special. Rows of the remaining blocks are then
compared one by one, so the answer is exact.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.geo import EARTH_RADIUS_M, Float64Array, GeoPrior, unit_vectors

BLOCK_ROWS: Final = 256

# Angles below this are rounding (0.6 m on the ground; near the antipode the arcsine loses half of its digits): caps are
# widened by it, never a row's own test.
_SLACK_RAD: Final = 1e-7


class SpatialBlocks:
    """Caps around the blocks of a row order. Holds 24 bytes a row.

    Args:
        lat, lon: (N,) float64 degrees, in row order. Any order gives right answers; a spatial one gives few slices.
    """

    def __init__(self, lat: Float64Array, lon: Float64Array) -> None:
        self._points = points = unit_vectors(lat, lon)
        starts = np.arange(0, len(points), BLOCK_ROWS)
        sums = np.add.reduceat(points, starts, axis=0) if len(starts) else np.empty((0, 3))
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        # Points spread evenly over the globe have no mean direction; any centre with a wide enough cap will do.
        self._centres = np.where(norms > 1e-12, sums / np.maximum(norms, 1e-12), np.array([1.0, 0.0, 0.0]))
        chords = np.linalg.norm(points - np.repeat(self._centres, BLOCK_ROWS, axis=0)[: len(points)], axis=1)
        self._angles = _chord_angle(np.maximum.reduceat(chords, starts) if len(starts) else np.empty(0))

    def rows_within(self, prior: GeoPrior) -> NDArray[np.int64]:
        """The rows inside the prior, border included, ascending: (R,) int64."""
        centre = unit_vectors(prior.lat, prior.lon)
        reach = min(prior.radius_m / EARTH_RADIUS_M, math.pi)
        distance = _chord_angle(np.linalg.norm(self._centres - centre, axis=1))
        near = np.flatnonzero(distance <= self._angles + reach + _SLACK_RAD)
        whole = distance[near] + self._angles[near] < reach - _SLACK_RAD
        rows = np.arange(BLOCK_ROWS) + near[:, None] * BLOCK_ROWS
        inside = np.ones(rows.shape, bool)
        # The chord grows with the angle, so comparing squared chords needs no trigonometry per row.
        chords = self._points[rows[~whole].clip(max=len(self._points) - 1)] - centre
        inside[~whole] = np.einsum("brc,brc->br", chords, chords) <= (2.0 * math.sin(reach / 2.0)) ** 2
        found: NDArray[np.int64] = rows[inside]
        return found[found < len(self._points)]


def _chord_angle(chord: Float64Array) -> Float64Array:
    return np.asarray(2.0 * np.arcsin(np.clip(chord / 2.0, 0.0, 1.0)))
