"""How many database images lie within a radius of each query, without ever holding all pairs.

A sorted-cell grid: cells at least one radius wide, so every positive of a query lies in the 3^d cells around it. Time
grows with the number of candidate pairs, memory only with the number of points.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.evaluation.positions import Ground, Int64Array, squared_distance
from retrieval.geo import Float64Array

_PAIRS_AT_ONCE = 1_000_000
_QUERIES_AT_ONCE = 16_384
# Twenty bits an axis: three axes fit an int64 key.
_CELLS_PER_AXIS = 1 << 20


def count_positives(
    ground: Ground, radii_m: Sequence[float], on_progress: Callable[[int], None] | None = None
) -> Int64Array:
    """Count the database images within each radius of each query, the border included.

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
    for begin in range(0, total, _QUERIES_AT_ONCE):
        end = min(begin + _QUERIES_AT_ONCE, total)
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
