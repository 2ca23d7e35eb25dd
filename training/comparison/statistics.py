"""From first true matches to recalls, differences and contrasts, each with an interval over places.

Seeds are averaged query by query before places are drawn, so an interval says how much the result depends on the
places that happened to be photographed. How much it depends on the seed is the spread over seeds, stated beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.evaluation import Bootstrap, hits_at
from retrieval.evaluation.positions import Int64Array
from retrieval.geo import Float64Array


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its bootstrap interval; shares from 0 to 1, or differences of such."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Cell:
    """One recall of one row.

    Attributes:
        recall: mean over seeds and queries.
        seed_min, seed_max: the lowest and the highest seed.
    """

    recall: Interval
    seed_min: float
    seed_max: float


def hits_by_seed(
    first_hit: Int64Array, counted: NDArray[np.bool_], cutoffs: Sequence[int], ranked: int
) -> Float64Array:
    """Whether each counted query has a true match among its first N, by seed.

    Args:
        first_hit: (S, Nq) int64, rank of the first true match by seed, `ranked` where there is none.
        counted: (Nq,) whether the query counts.
        cutoffs: the Ns.
        ranked: how many matches were ranked.

    Returns:
        (S, Qc, len(cutoffs)) float64, 0 or 1.
    """
    hits = [hits_at(seed[counted], cutoffs, ranked) for seed in first_hit]
    return np.asarray(np.stack(hits), np.float64)


def recall_cells(hits: Float64Array, groups: Int64Array, bootstrap: Bootstrap) -> list[Cell]:
    """Recall at each N: mean over seeds and queries, its interval over places, and the spread over seeds.

    Args:
        hits: (S, Qc, M) from `hits_by_seed`.
        groups: (Qc,) the place of each query.
        bootstrap: how intervals are drawn.
    """
    per_query = hits.mean(axis=0)
    low, high = bootstrap.mean_interval(per_query, groups)
    value = per_query.mean(axis=0)
    seeds = hits.mean(axis=1)
    return [
        Cell(Interval(float(v), float(lo), float(hi)), float(smallest), float(largest))
        for v, lo, hi, smallest, largest in zip(value, low, high, seeds.min(axis=0), seeds.max(axis=0), strict=True)
    ]


def mean_with_interval(values: Float64Array, groups: Int64Array, bootstrap: Bootstrap) -> Interval | None:
    """The mean of one value a query, NaN left out; None when nothing is left.

    Args:
        values: (Q,) float64.
        groups: (Q,) the place of each query.
        bootstrap: how intervals are drawn.
    """
    known = np.isfinite(values)
    if not known.any():
        return None
    low, high = bootstrap.mean_interval(values[known][:, None], groups[known])[:, 0]
    return Interval(float(values[known].mean()), float(low), float(high))


def paired_difference(ours: Float64Array, theirs: Float64Array, groups: Int64Array, bootstrap: Bootstrap) -> Interval:
    """How much one row is above another on the same queries: the interval is of the differences by query.

    Pairing takes away what both have in common, such as hard queries: the interval is narrower than that of either.

    Args:
        ours, theirs: (Q,) float64, each query's mean over seeds.
        groups: (Q,) the place of each query.
        bootstrap: how intervals are drawn.
    """
    difference = ours - theirs
    low, high = bootstrap.mean_interval(difference[:, None], groups)[:, 0]
    return Interval(float(difference.mean()), float(low), float(high))


def mean_of_known(values: Float64Array) -> Float64Array:
    """(S, Q) → (Q,) mean over seeds, NaN left out, without a warning where all are NaN."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.asarray(np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0))
