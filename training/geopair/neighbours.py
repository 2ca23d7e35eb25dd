"""The photos around a photo: a k-d tree over their positions, asked in pieces of bounded memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.spatial import cKDTree

from retrieval.geo import EARTH_RADIUS_M
from training.geopair.arrays import BoolArray, Float64Array, Int64Array

# Radii include their border: a micrometre covers the rounding of degrees and of unit vectors (some nanometres).
SLACK_M: Final = 1e-6
# Pairs found at once, 24 bytes each: a dense spot takes more pieces, not more memory.
PAIRS_AT_ONCE: Final = 1_000_000
_ROWS_AT_ONCE: Final = 50_000


@dataclass(frozen=True, eq=False)
class NeighbourPairs:
    """Some rows and all photos around each.

    Attributes:
        at: (c,) places of these rows in the rows that were asked for.
        owner: (p,) places in `at`, in no particular order.
        rows: (p,) the photo near that row; never the row itself.
    """

    at: Int64Array
    owner: Int64Array
    rows: Int64Array


class Neighbours:
    """A spatial index of photos, of O(N) memory.

    Args:
        points: (N, 3) float64, see `PhotoTable`; N at least 1.
    """

    def __init__(self, points: Float64Array) -> None:
        self._points = points
        self._tree = cKDTree(points)
        # A row's place in the tree's leaves: rows sorted by it are near each other.
        self._leaf_order = np.empty(len(points), np.int64)
        self._leaf_order[self._tree.indices] = np.arange(len(points))

    def pairs_within(
        self, rows: Int64Array, radius_m: float, *, at_once: int = PAIRS_AT_ONCE
    ) -> Iterator[NeighbourPairs]:
        """All photos within a radius of the given rows, in pieces of about `at_once` pairs at most.

        Args:
            rows: (n,) distinct rows of the table.
            radius_m: metres, the border included.
            at_once: pairs in one piece, but that all of a single row always come together.
        """
        radius = (radius_m + SLACK_M) / EARTH_RADIUS_M
        order = np.argsort(self._leaf_order[rows], kind="stable")
        for begin in range(0, len(rows), _ROWS_AT_ONCE):
            part = order[begin : begin + _ROWS_AT_ONCE]
            counts = self._tree.query_ball_point(self._points[rows[part]], radius, return_length=True)
            for at in _pieces(part, np.asarray(counts, np.int64), at_once):
                yield self._pairs(rows, at, radius)

    def _pairs(self, rows: Int64Array, at: Int64Array, radius: float) -> NeighbourPairs:
        # A tree of the piece against the tree of all gives arrays; asking row by row gives lists of Python numbers.
        found = cKDTree(self._points[rows[at]]).sparse_distance_matrix(self._tree, radius, output_type="ndarray")
        owner, near = found["i"], found["j"]
        others = near != rows[at][owner]
        return NeighbourPairs(at, owner[others], near[others])

    def nearest(self, rows: Int64Array, count: int) -> tuple[Float64Array, Int64Array]:
        """The nearest photos of each row, itself included.

        Args:
            rows: (n,).
            count: k, at least 2 and at most N.

        Returns:
            (n, k) metres, ascending, and (n, k) rows.
        """
        distances, near = self._tree.query(self._points[rows], k=count)
        return np.asarray(distances) * EARTH_RADIUS_M, np.asarray(near, np.int64)


def near_any(points: Float64Array, others: Float64Array, radius_m: float) -> BoolArray:
    """Which of some points lie within a radius of any of some others.

    Args:
        points: (n, 3) float64.
        others: (m, 3) float64.
        radius_m: metres, the border included.

    Returns:
        (n,) bool.
    """
    limit = ((radius_m + SLACK_M) / EARTH_RADIUS_M) ** 2
    squared = np.zeros((len(points), len(others)))
    for axis in range(points.shape[1]):
        gaps = points[:, None, axis] - others[None, :, axis]
        squared += gaps * gaps
    return np.asarray((squared <= limit).any(axis=1))


def _pieces(rows: Int64Array, counts: Int64Array, at_once: int) -> Iterator[Int64Array]:
    """Cut rows into runs whose counts add up to at most `at_once`, one row at least."""
    ends = np.cumsum(counts)
    begin = 0
    while begin < len(rows):
        before = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, before + at_once, side="right")))
        yield rows[begin:end]
        begin = end
