"""In which order photos are tried as a query's negatives: the hardest first, or at random."""

from collections.abc import Callable
from typing import Final

import numpy as np

from training.geopair.photo_table import DescribedRows, Float32Array, Int64Array

RANKED_AT_MOST: Final = 4096
"""How many of its ranking a query tries; one whose negatives all rank lower waits for another batch."""

# Bounds the cosines in memory, whatever the sample.
_QUERIES_AT_ONCE: Final = 128
OwnRandom = Callable[[int], np.random.Generator]
"""A query's row → its own generator of random numbers in this epoch, whichever other queries are sampled."""


Ranking = Callable[[Int64Array], list[Int64Array]]
"""(n,) queries → rows to try as negatives of each, in order; whether they lie far enough is checked later."""


def random_ranking(count: int, sample: int, own_random: OwnRandom) -> Ranking:
    """`random`: every query has photos of the whole table in another random order.

    Args:
        count: N photos in the table.
        sample: how many are tried at most.
        own_random: the draws.
    """
    tried = min(count, sample, RANKED_AT_MOST)
    return lambda queries: [own_random(query).choice(count, tried, replace=False) for query in queries.tolist()]


def shared_ranking(sample: Int64Array, described: DescribedRows) -> Ranking:
    """`partial`: all queries have the same sample of an epoch, each with its hardest first (VG-SSL, section 1.4).

    Args:
        sample: (C,) rows, ascending; of equal cosines the lower row comes first.
        described: they and the queries.
    """
    transposed = np.ascontiguousarray(described.of(sample).T)

    def rank(queries: Int64Array) -> list[Int64Array]:
        rankings: list[Int64Array] = []
        for begin in range(0, len(queries), _QUERIES_AT_ONCE):
            cosines = described.of(queries[begin : begin + _QUERIES_AT_ONCE]) @ transposed
            rankings.extend(sample[order] for order in _descending(cosines))
        return rankings

    return rank


def own_ranking(own_rows: Callable[[int], Int64Array], described: DescribedRows) -> Ranking:
    """`full`: every query has its own sample of the whole table, and the negatives that were its hardest before.

    Args:
        own_rows: a query's row → (C,) rows, ascending, distinct; the same when asked again.
        described: they and the queries.
    """

    def rank(queries: Int64Array) -> list[Int64Array]:
        rankings = []
        for query, descriptor in zip(queries.tolist(), described.of(queries), strict=True):
            rows = own_rows(query)
            rankings.append(rows[_descending((described.of(rows) @ descriptor)[None, :])[0]])
        return rankings

    return rank


class LastHardest:
    """The negatives that queries had when they were last in a batch: state of `full` mining.

    Args:
        queries: (m,) rows, ascending.
        negatives: (m, K) rows.
    """

    def __init__(self, queries: Int64Array, negatives: Int64Array) -> None:
        self.queries = queries
        self.negatives = negatives

    def of(self, query: int) -> Int64Array:
        """(K,) rows, or none."""
        place = int(np.searchsorted(self.queries, query))
        if place < len(self.queries) and self.queries[place] == query:
            return np.asarray(self.negatives[place])
        return np.empty(0, np.int64)

    def updated(self, queries: Int64Array, negatives: Int64Array) -> "LastHardest":
        """The same with newer ones in place of older ones: (n,) distinct rows and (n, K) rows."""
        kept = ~np.isin(self.queries, queries)
        all_queries = np.concatenate([self.queries[kept], queries])
        order = np.argsort(all_queries)
        return LastHardest(all_queries[order], np.concatenate([self.negatives[kept], negatives])[order])


def _descending(scores: Float32Array) -> Int64Array:
    """(n, C) → (n, min(C, RANKED_AT_MOST)) columns by descending score, equal ones by column."""
    if scores.shape[1] <= RANKED_AT_MOST:
        return np.argsort(-scores, axis=1, kind="stable")
    highest = np.sort(np.argpartition(-scores, RANKED_AT_MOST, axis=1)[:, :RANKED_AT_MOST], axis=1)
    order = np.argsort(-np.take_along_axis(scores, highest, axis=1), axis=1, kind="stable")
    return np.take_along_axis(highest, order, axis=1)
