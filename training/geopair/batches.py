"""The batches of an epoch: pairs of different places, first come, first served.

Each batch takes the pair that waits longest, then the next one that lies far enough from all it holds (and finds its
negatives there), until it is full or none of the waiting ones fits. The number of pairs that wait is bounded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from retrieval.errors import counted
from retrieval.geo import EARTH_RADIUS_M
from training.geopair.negatives import Ranking
from training.geopair.photo_table import BoolArray, Float64Array, GeoPairError, Int64Array
from training.geopair.positives import SLACK_M, near_any

# Batches' worth of pairs that wait at most: the work stays proportional to the number of pairs.
_LOOK_AHEAD: Final = 16
# Candidate negatives tried in one go; doubled until one fits. Mostly the first does.
_TRIED_AT_FIRST: Final = 8
_NO_ROWS: Final = np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class PairBatch:
    """n pairs of one batch, no two of which show the same place.

    Attributes:
        queries: (n,) int64 rows of the photo table.
        positives: (n,) int64, taken near their query.
        negatives: (n, K) int64, the hardest first, or None without negative mining.
    """

    queries: Int64Array
    positives: Int64Array
    negatives: Int64Array | None


@dataclass(frozen=True, eq=False)
class EpochBatches:
    """The batches of one epoch, in order.

    Attributes:
        epoch: from 0.
        batches: at least one.
        dropped: sampled queries that fitted into no batch.
    """

    epoch: int
    batches: tuple[PairBatch, ...]
    dropped: int

    def photos(self, index: int) -> int:
        """How many photos a batch has."""
        batch = self.batches[index]
        return 2 * len(batch.queries) + (0 if batch.negatives is None else batch.negatives.size)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The same as a few int64 arrays, for a checkpoint."""
        arrays: dict[str, NDArray[Any]] = {
            "epoch": np.array([self.epoch], np.int64),
            "dropped": np.array([self.dropped], np.int64),
            "sizes": np.array([len(batch.queries) for batch in self.batches], np.int64),
            "queries": np.concatenate([batch.queries for batch in self.batches]),
            "positives": np.concatenate([batch.positives for batch in self.batches]),
        }
        negatives = [batch.negatives for batch in self.batches if batch.negatives is not None]
        if negatives:
            arrays["negatives"] = np.concatenate(negatives)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "EpochBatches":
        """The batches that `to_arrays` gave.

        Raises:
            KeyError: an array is missing.
        """
        ends = np.cumsum(arrays["sizes"])[:-1]
        queries = np.split(np.asarray(arrays["queries"], np.int64), ends)
        positives = np.split(np.asarray(arrays["positives"], np.int64), ends)
        if "negatives" in arrays:
            negatives: list[Int64Array | None] = [*np.split(np.asarray(arrays["negatives"], np.int64), ends)]
        else:
            negatives = [None] * len(queries)
        batches = tuple(PairBatch(*rows) for rows in zip(queries, positives, negatives, strict=True))
        return cls(int(arrays["epoch"][0]), batches, int(arrays["dropped"][0]))


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


@dataclass(frozen=True, slots=True)
class Composition:
    """What became of an epoch's pairs.

    Attributes:
        batches: in order.
        dropped: pairs that are in none.
        without_negatives: those of them that had too few negatives even in an empty batch.
        largest: pairs in the largest batch tried, given up or not.
    """

    batches: tuple[PairBatch, ...]
    dropped: int
    without_negatives: int
    largest: int


def compose_batches(pairs: Int64Array, points: Float64Array, rules: BatchRules, ranking: Ranking | None) -> Composition:
    """Fill batches with pairs that show different places.

    Args:
        pairs: (n, 2) rows, query and positive, in the order in which they are to be used.
        points: (N, 3) float64 of the photo table.
        rules: what each batch keeps to.
        ranking: of negatives, where `rules` asks for some.
    """
    queue = _Queue(pairs, _LOOK_AHEAD * rules.queries, ranking)
    batches: list[PairBatch] = []
    dropped = without_negatives = largest = 0
    while queue.refill():
        batch = _OpenBatch(points, rules)
        placed, without = _fill(batch, queue, points, rules)
        queue.remove(placed | without)
        without_negatives += int(without.sum())
        largest = max(largest, len(batch))
        if len(batch) >= rules.least:
            batches.append(batch.close())
        else:
            dropped += len(batch)
    return Composition(tuple(batches), dropped + without_negatives, without_negatives, largest)


def explain_no_batches(composition: Composition, pairs: int, rules: BatchRules) -> GeoPairError:
    """The error for an epoch without a batch.

    Args:
        composition: what was tried.
        pairs: how many there were.
        rules: what a batch had to keep to.
    """
    mined = counted(rules.negatives, "mined negative")
    if composition.without_negatives == pairs:
        return GeoPairError(
            f"none of {pairs} queries finds {mined} outside {rules.never_negative_m:g} m of it and of its positive: "
            "the area is too small",
            remedy="Add photos of other places, raise geopair.negative_sample, or lower "
            "geopair.never_negative_radius_m",
            code="no_negatives",
        )
    remedies = [f"geopair.batch_separation_m below {rules.separation_m:g}", "add photos of other places"]
    if composition.largest >= rules.min_queries:
        # Two views of each negative are pairs of the recipe too.
        each = 1 + (rules.negatives if rules.separate_negatives else 0)
        remedies.insert(0, f"training.pairs to at most {composition.largest * each}")
    negatives = f", each with {mined}," if rules.negatives else ""
    return GeoPairError(
        f"of {pairs} pairs no more than {composition.largest}{negatives} fit into one batch, further than "
        f"{rules.separation_m:g} m apart; a batch needs {rules.least}",
        remedy=f"Set {', or '.join(remedies)}",
        code="no_batches",
    )


class _OpenBatch:
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
        """Whether it holds as many pairs as the rules allow."""
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
        begin, tried = 0, _TRIED_AT_FIRST
        while begin < len(ranking) and len(found) < rules.negatives:
            part = ranking[begin : begin + tried]
            begin, tried = begin + tried, 2 * tried
            for row in part[self._may_be_negatives(part, pair)]:
                if len(found) < rules.negatives and self._is_separate(row, found):
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

    def _is_separate(self, row: np.int64, found: Int64Array) -> bool:
        if not self._rules.separate_negatives or not len(found):
            return True
        return not near_any(self._points[[row]], self._points[found], self._rules.separation_m)[0]

    def add(self, pair: Int64Array, negatives: Int64Array) -> None:
        """Add a pair and its negatives: (2,) and (K,) rows."""
        self._pairs.append(pair)
        self._negatives.append(negatives)
        for rows in (pair, negatives):
            self._rows[self._count : self._count + len(rows)] = rows
            self._count += len(rows)

    def conflicts_with(self, waiting: "_WaitingPairs", pair: Int64Array, negatives: Int64Array) -> BoolArray:
        """Which of (w,) waiting pairs cannot join any more once a pair and its negatives are added."""
        rules = self._rules
        apart = np.concatenate([pair, negatives]) if rules.separate_negatives else pair
        conflicting = waiting.near(self._points[apart], rules.separation_m)
        if len(negatives) and not rules.separate_negatives:
            conflicting |= waiting.include(negatives)
        return conflicting

    def close(self) -> PairBatch:
        """The batch as it is now."""
        pairs = np.stack(self._pairs)
        negatives = np.stack(self._negatives) if self._rules.negatives else None
        return PairBatch(pairs[:, 0].copy(), pairs[:, 1].copy(), negatives)


class _WaitingPairs:
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

    def include(self, rows: Int64Array) -> BoolArray:
        """(w,) which have a photo among (m,) rows."""
        return np.asarray((self.pairs[:, :, None] == rows).any(axis=(1, 2)))


class _Queue:
    """The waiting pairs, the oldest first, with the rankings of their negatives."""

    def __init__(self, pairs: Int64Array, length: int, ranking: Ranking | None) -> None:
        self._pairs = pairs
        self._length = length
        self._ranking = ranking
        self._next = 0
        self._waiting = _NO_ROWS
        self._ranked: dict[int, Int64Array] = {}

    def refill(self) -> bool:
        """Add pairs until the queue is full; whether any waits."""
        end = min(len(self._pairs), self._next + self._length - len(self._waiting))
        added = np.arange(self._next, end)
        if self._ranking is not None and len(added):
            rankings = self._ranking(self._pairs[added, 0])
            self._ranked.update(zip(added.tolist(), rankings, strict=True))
        self._waiting = np.concatenate([self._waiting, added])
        self._next = end
        return len(self._waiting) > 0

    def pairs(self) -> Int64Array:
        """(w, 2) the waiting pairs."""
        return self._pairs[self._waiting]

    def ranking(self, place: int) -> Int64Array:
        """Rows to try as negatives of the pair at a place of the queue."""
        return self._ranked[int(self._waiting[place])]

    def remove(self, removed: BoolArray) -> None:
        """Take pairs out: (w,) bool."""
        for index in self._waiting[removed].tolist():
            self._ranked.pop(index, None)
        self._waiting = self._waiting[~removed]


def _fill(batch: _OpenBatch, queue: _Queue, points: Float64Array, rules: BatchRules) -> tuple[BoolArray, BoolArray]:
    """Fill a batch; (w,) bool: which waiting pairs it took, and which fit into none for want of negatives."""
    waiting = _WaitingPairs(queue.pairs(), points)
    placed, unplaceable, tried = (np.zeros(len(waiting.pairs), np.bool_) for _ in range(3))
    while not batch.is_full:
        place = int(np.argmin(tried))
        if tried[place]:
            break
        tried[place] = True
        pair = waiting.pairs[place]
        negatives = batch.find_negatives(pair, queue.ranking(place)) if rules.negatives else _NO_ROWS
        if negatives is None:
            # Beside other pairs it may find none and wait; alone it never will.
            unplaceable[place] = len(batch) == 0
            continue
        batch.add(pair, negatives)
        placed[place] = True
        tried |= batch.conflicts_with(waiting, pair, negatives)
    return placed, unplaceable
