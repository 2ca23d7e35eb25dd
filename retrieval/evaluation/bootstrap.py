"""Intervals by the cluster bootstrap: whole groups of photos are drawn again, never single photos.

Photos of one walk, or of one spot, are right or wrong together; drawing them one by one would give intervals that are
far too narrow. Percentile interval of Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; drawing
whole clusters as in Davison & Hinkley, Bootstrap Methods and their Application (1997), section 3.8.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from retrieval.errors import ParameterError
from retrieval.evaluation.positions import Int64Array, Positions
from retrieval.geo import EARTH_RADIUS_M, Float64Array

# Below this many groups a percentile interval is itself a guess.
FEW_GROUPS = 10
# Small enough to stay in a core's cache.
_WEIGHTS_AT_ONCE = 250_000


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How intervals are drawn.

    Attributes:
        resamples: how often the groups are drawn again.
        level: the share of resamples the interval holds, in (0, 1).
        seed: of the random generator; the same seed gives the same interval.

    Raises:
        ParameterError: fewer than 1 resample, or a level outside (0, 1).
    """

    resamples: int = 2000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 1:
            raise ParameterError(f"resamples is {self.resamples}, below 1", remedy="Give at least 1, usually 2000")
        if not 0.0 < self.level < 1.0:
            raise ParameterError(f"level {self.level} is outside (0, 1)", remedy="Give for example 0.95")

    def mean_interval(self, values: ArrayLike, groups: Int64Array) -> Float64Array:
        """Intervals of means over queries.

        Args:
            values: (Q, M) one column a quantity (bool or float).
            groups: (Q,) int64, which group each query belongs to; any labels.

        Returns:
            (2, M) float64: low and high. NaN when Q is 0.
        """
        columns = np.asarray(values, np.float64)
        if len(columns) == 0:
            return np.full((2, columns.shape[1]), np.nan)
        return self.percentiles(self.means(columns, groups))

    def means(self, values: ArrayLike, groups: Int64Array) -> Float64Array:
        """Means over queries, once for each resample: (resamples, M) float64 for (Q, M) values; Q is not 0."""
        columns = np.asarray(values, np.float64)
        index, count = _relabel(groups)
        sums = np.stack([np.bincount(index, column, minlength=count) for column in columns.T], axis=1)
        sizes = np.bincount(index, minlength=count).astype(np.float64)
        return np.concatenate([(w @ sums) / (w @ sizes)[:, None] for w in self._weights(count)])

    def percentiles(self, estimates: Float64Array) -> Float64Array:
        """The interval of a number that was computed once for each resample: (resamples, …) → (2, …) float64."""
        tail = (1.0 - self.level) / 2.0
        return np.asarray(np.quantile(estimates, [tail, 1.0 - tail], axis=0))

    def quantile_interval(self, values: ArrayLike, groups: Int64Array, quantiles: Sequence[float]) -> Float64Array:
        """Intervals of quantiles over queries (numpy's default, linear between neighbours).

        Args:
            values: (Q,) float.
            groups: (Q,) int64, which group each query belongs to; any labels.
            quantiles: each in [0, 1].

        Returns:
            (2, len(quantiles)) float64: low and high. NaN when Q is 0.
        """
        column = np.asarray(values, np.float64)
        if len(column) == 0:
            return np.full((2, len(quantiles)), np.nan)
        index, count = _relabel(groups)
        order = np.argsort(column, kind="stable")
        ordered, owner = column[order], index[order]
        drawn = [_weighted_quantiles(ordered, w[owner], quantiles) for block in self._weights(count) for w in block]
        return self.percentiles(np.stack(drawn))

    def _weights(self, groups: int) -> Iterator[Float64Array]:
        """How often each group is drawn: blocks of (b, groups) rows, `resamples` rows in all, each summing to groups.

        The drawn numbers do not depend on the size of a block.
        """
        random = np.random.default_rng(self.seed)
        block = max(1, _WEIGHTS_AT_ONCE // groups)
        for begin in range(0, self.resamples, block):
            rows = min(block, self.resamples - begin)
            drawn = random.integers(0, groups, size=(rows, groups)) + np.arange(rows)[:, None] * groups
            yield np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups).astype(np.float64)


def _relabel(groups: Int64Array) -> tuple[Int64Array, int]:
    labels, index = np.unique(groups, return_inverse=True)
    return index.astype(np.int64), labels.size


def _weighted_quantiles(ordered: Float64Array, weights: Float64Array, quantiles: Sequence[float]) -> Float64Array:
    """Quantiles of `ordered` with each value repeated `weights` times: (len(quantiles),)."""
    cumulative = np.cumsum(weights)
    last = cumulative[-1] - 1
    place = last * np.asarray(quantiles, np.float64)
    below = np.floor(place)
    low = ordered[np.searchsorted(cumulative, below, side="right")]
    high = ordered[np.searchsorted(cumulative, np.minimum(below + 1, last), side="right")]
    return np.asarray(low + (high - low) * (place - below))


def place_groups(positions: Positions, cell_m: float) -> Int64Array:
    """Group positions by place: square cells of `cell_m` metres (on the sphere: rows of latitude, cut to equal width).

    Args:
        positions: N positions; degrees are used where there are any, else the plane.
        cell_m: metres, above 0.

    Returns:
        (N,) int64 labels 0..G-1.

    Raises:
        ParameterError: cell_m is not above 0.
    """
    if not cell_m > 0.0:
        raise ParameterError(f"cell_m {cell_m} is not above 0", remedy="Give the side of a place in metres")
    if positions.lat is not None and positions.lon is not None:
        metres_per_degree = np.pi * EARTH_RADIUS_M / 180.0
        row = np.floor(positions.lat * metres_per_degree / cell_m)
        row_lat = (row + 0.5) * cell_m / metres_per_degree
        width = np.maximum(np.cos(np.radians(row_lat)), 0.0) * metres_per_degree
        column = np.floor(((positions.lon + 180.0) % 360.0) * width / cell_m)
        cells = np.stack([row, column], axis=1)
    else:
        cells = np.floor(np.asarray(positions.plane_m) / cell_m)
    labels = np.unique(cells, axis=0, return_inverse=True)[1]
    return np.asarray(labels, np.int64).ravel()


def session_groups(sessions: Sequence[str | None]) -> Int64Array:
    """Group queries by the drive or walk they belong to; a query without a session is a group of its own.

    Returns:
        (N,) int64 labels.
    """
    known: dict[str, int] = {}
    labels = [
        known.setdefault(session, len(known)) if session is not None else -1 - row
        for row, session in enumerate(sessions)
    ]
    return np.asarray(labels, np.int64)
