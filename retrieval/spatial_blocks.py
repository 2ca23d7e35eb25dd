"""Which rows can lie in a circle, when rows are ordered along a spatial curve: a few contiguous slices.

Every run of 256 rows is wrapped in a cap of the sphere (centre and angle). A geo prior is compared with the caps only,
in three dimensions, so the antimeridian and the poles are nothing special. Rows of the remaining blocks are then
compared one by one, so the answer is exact.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.geo import EARTH_RADIUS_M, Float64Array, GeoPrior, unit_vectors

BLOCK_ROWS: Final = 256

# Angles below this are rounding (6 mm on the ground): caps are widened by it, never a row's own test.
_SLACK_RAD: Final = 1e-9


@dataclass(frozen=True, slots=True)
class RowSlice:
    """Rows `start` to `stop` (excluded), and which of them lie inside: (stop - start,) bool."""

    start: int
    stop: int
    inside: NDArray[np.bool_]


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

    def rows_within(self, prior: GeoPrior) -> list[RowSlice]:
        """The contiguous slices that hold every row inside the prior (border included), in row order."""
        centre = unit_vectors(prior.lat, prior.lon)
        reach = min(prior.radius_m / EARTH_RADIUS_M, math.pi)
        distance = _chord_angle(np.linalg.norm(self._centres - centre, axis=1))
        near = np.flatnonzero(distance <= self._angles + reach + _SLACK_RAD)
        inside = self._rows_inside(near, distance[near] + self._angles[near] < reach - _SLACK_RAD, centre, reach)
        slices = []
        for run in np.split(np.arange(len(near)), np.flatnonzero(np.diff(near) > 1) + 1) if len(near) else []:
            start = int(near[run[0]]) * BLOCK_ROWS
            stop = min(int(near[run[-1]] + 1) * BLOCK_ROWS, len(self._points))
            hits = inside[run[0] : run[-1] + 1].reshape(-1)[: stop - start]
            if hits.any():
                slices.append(_trimmed(start, hits))
        return slices

    def _rows_inside(
        self, blocks: NDArray[np.int64], whole: NDArray[np.bool_], centre: Float64Array, reach: float
    ) -> NDArray[np.bool_]:
        """For each block (those that lie inside as a `whole` are known), which rows are inside: (blocks, 256) bool."""
        inside = np.zeros((len(blocks), BLOCK_ROWS), bool)
        inside[whole] = True
        rows = (blocks[~whole, None] * BLOCK_ROWS + np.arange(BLOCK_ROWS)).clip(max=len(self._points) - 1)
        # The chord grows with the angle, so comparing squared chords needs no trigonometry per row.
        squared_chords = ((self._points[rows] - centre) ** 2).sum(axis=-1)
        inside[~whole] = squared_chords <= (2.0 * math.sin(reach / 2.0)) ** 2
        return inside


def _trimmed(start: int, inside: NDArray[np.bool_]) -> RowSlice:
    hits = np.flatnonzero(inside)
    first, last = int(hits[0]), int(hits[-1]) + 1
    return RowSlice(start + first, start + last, inside[first:last])


def _chord_angle(chord: Float64Array) -> Float64Array:
    return np.asarray(2.0 * np.arcsin(np.clip(chord / 2.0, 0.0, 1.0)))
