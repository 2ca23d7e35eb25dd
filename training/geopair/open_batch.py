"""A batch while it is filled: which photos it holds, and which may still join."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.spatial import cKDTree

from retrieval.geo import EARTH_RADIUS_M
from training.geopair.arrays import BoolArray, Float64Array, Int64Array
from training.geopair.neighbours import SLACK_M, near_any
from training.geopair.plan import PairBatch

# Candidates looked at in one go; doubled until one fits. Mostly the first does.
_FIRST_LOOK: Final = 8


@dataclass(frozen=True, slots=True)
class BatchRules:
    """What a batch must keep to.

    Attributes:
        queries: pairs in a full batch.
        least: pairs below which it is given up.
        min_queries: the fewest pairs that the objective can compare.
        separation_m: photos of different pairs lie further apart than this.
        negatives: K mined negatives of each query, 0 for none.
        never_negative_m: a negative lies further than this from its query and from its query's positive.
        separate_negatives: negatives become pairs of the batch: they too lie further than `separation_m` from every
            other photo.
    """

    queries: int
    least: int
    min_queries: int
    separation_m: float
    negatives: int
    never_negative_m: float
    separate_negatives: bool


class OpenBatch:
    """A batch that grows pair by pair.

    Args:
        points: (N, 3) float64 of the photo table.
        rules: what it keeps to.
    """

    def __init__(self, points: Float64Array, rules: BatchRules) -> None:
        self._points = points
        self._rules = rules
        self._pairs: list[Int64Array] = []
        self._negatives: list[Int64Array] = []
        self._rows = np.empty(rules.queries * (2 + rules.negatives), np.int64)
        self._count = 0

    def __len__(self) -> int:
        return len(self._pairs)

    @property
    def is_full(self) -> bool:
        """Whether it holds as many pairs as it shall."""
        return len(self) == self._rules.queries

    def find_negatives(self, pair: Int64Array, ranking: Int64Array) -> Int64Array | None:
        """The first K of a ranking that may stand beside a pair in this batch.

        Args:
            pair: (2,) query and positive.
            ranking: rows to try, in order.

        Returns:
            (K,) rows, or None where fewer fit.
        """
        rules, found = self._rules, np.empty(0, np.int64)
        begin, look = 0, _FIRST_LOOK
        while begin < len(ranking) and len(found) < rules.negatives:
            part = ranking[begin : begin + look]
            begin, look = begin + look, 2 * look
            for row in part[self._may_be_negatives(part, pair)]:
                if len(found) < rules.negatives and self._apart(row, found):
                    found = np.append(found, row)
        return found if len(found) == rules.negatives else None

    def _may_be_negatives(self, rows: Int64Array, pair: Int64Array) -> BoolArray:
        rules, held = self._rules, self._rows[: self._count]
        points = self._points[rows]
        fits = ~near_any(points, self._points[pair], rules.never_negative_m)
        if rules.separate_negatives:
            others = np.concatenate([pair, held])
            return fits & ~near_any(points, self._points[others], rules.separation_m)
        return fits & ~np.isin(rows, held)

    def _apart(self, row: np.int64, found: Int64Array) -> bool:
        if not self._rules.separate_negatives or not len(found):
            return True
        return not near_any(self._points[[row]], self._points[found], self._rules.separation_m)[0]

    def add(self, pair: Int64Array, negatives: Int64Array) -> None:
        """Take a pair and its negatives in: (2,) and (K,) rows."""
        self._pairs.append(pair)
        self._negatives.append(negatives)
        for rows in (pair, negatives):
            self._rows[self._count : self._count + len(rows)] = rows
            self._count += len(rows)

    def bars(self, waiting: "WaitingPairs", pair: Int64Array, negatives: Int64Array) -> BoolArray:
        """Which of (w,) waiting pairs cannot join any more once a pair and its negatives are in."""
        rules = self._rules
        apart = np.concatenate([pair, negatives]) if rules.separate_negatives else pair
        barred = waiting.near(self._points[apart], rules.separation_m)
        if len(negatives) and not rules.separate_negatives:
            barred |= waiting.holds(negatives)
        return barred

    def close(self) -> PairBatch:
        """The batch as it is now."""
        pairs = np.stack(self._pairs)
        negatives = np.stack(self._negatives) if self._rules.negatives else None
        return PairBatch(pairs[:, 0].copy(), pairs[:, 1].copy(), negatives)


class WaitingPairs:
    """Pairs that wait for a place in a batch, indexed by where they were taken.

    Args:
        pairs: (w, 2) rows.
        points: (N, 3) float64 of the photo table.
    """

    def __init__(self, pairs: Int64Array, points: Float64Array) -> None:
        self.pairs = pairs
        self._tree = cKDTree(points[pairs.ravel()])

    def near(self, others: Float64Array, radius_m: float) -> BoolArray:
        """(w,) which have a photo within a radius of any of (m, 3) points."""
        near = np.zeros(len(self.pairs), np.bool_)
        for places in self._tree.query_ball_point(others, (radius_m + SLACK_M) / EARTH_RADIUS_M):
            near[np.asarray(places, np.int64) // 2] = True
        return near

    def holds(self, rows: Int64Array) -> BoolArray:
        """(w,) which have a photo among (m,) rows."""
        return np.asarray((self.pairs[:, :, None] == rows).any(axis=(1, 2)))
