"""recall@N: the share of queries with at least one true match among the first N, and what chance would give."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retrieval.evaluation.positions import Ground, Int64Array
from retrieval.geo import Float64Array

_QUERIES_AT_ONCE = 65_536


def first_hits(ground: Ground, rows: Int64Array, radius_m: float) -> Int64Array:
    """The rank (0 = best) of each query's first match that lies within the radius, the border included.

    Args:
        ground: where queries and database lie.
        rows: (Nq, K) int64 database rows, best first, -1 where there is no match.
        radius_m: metres.

    Returns:
        (Nq,) int64 in [0, K]; K where no match is within the radius.
    """
    limit = ground.squared_limit(radius_m)
    count, k = rows.shape
    ranks = np.full(count, k, np.int64)
    for begin in range(0, count, _QUERIES_AT_ONCE):
        block = rows[begin : begin + _QUERIES_AT_ONCE]
        queries = np.arange(begin, begin + len(block))[:, None]
        near = (block >= 0) & (ground.squared(queries, block) <= limit)
        ranks[begin : begin + len(block)] = np.where(near.any(axis=1), near.argmax(axis=1), k)
    return ranks


def hits_at(first_hit: Int64Array, cutoffs: Sequence[int], k: int) -> NDArray[np.bool_]:
    """Whether each query has a true match among its first N, for each N.

    Args:
        first_hit: (Nq,) int64 from `first_hits`.
        cutoffs: the Ns, each at least 1.
        k: how many matches were ranked (what `first_hits` gives for "none").

    Returns:
        (Nq, len(cutoffs)) bool.
    """
    return (first_hit[:, None] < np.asarray(cutoffs)[None, :]) & (first_hit < k)[:, None]


def chance_at(positives: Int64Array, database_size: int, cutoffs: Sequence[int]) -> Float64Array:
    """The expected recall@N of a random ranking: 1 − C(n − p, N) / C(n, N), the hypergeometric chance of ≥ 1 hit.

    Args:
        positives: (Nq,) int64, p: how many database images are true matches of each query.
        database_size: n.
        cutoffs: the Ns; an N beyond n counts as n.

    Returns:
        (Nq, len(cutoffs)) float64 in [0, 1].
    """
    distinct, back = np.unique(positives, return_inverse=True)
    drawn = np.arange(min(max(cutoffs), database_size))
    # The product of (n - p - i) / (n - i) in logarithms keeps small chances exact; once p > n - N a hit is certain.
    with np.errstate(divide="ignore"):
        misses = np.cumsum(np.log1p(-np.minimum(distinct[:, None] / (database_size - drawn)[None, :], 1.0)), axis=1)
    last = np.minimum(np.asarray(cutoffs), database_size) - 1
    return np.asarray(-np.expm1(misses[:, last])[back])
