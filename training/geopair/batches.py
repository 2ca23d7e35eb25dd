"""Pairs into batches: first come, first served, with a bounded number of pairs that wait for a place."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from training.geopair.arrays import BoolArray, Float64Array, Int64Array
from training.geopair.negatives import NegativeRanking
from training.geopair.open_batch import BatchRules, OpenBatch, WaitingPairs
from training.geopair.plan import PairBatch

# Batches' worth of pairs that wait at most: the work stays proportional to the number of pairs.
_LOOK_AHEAD: Final = 16
_NO_ROWS: Final = np.empty(0, np.int64)


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


def compose_batches(
    pairs: Int64Array, points: Float64Array, rules: BatchRules, ranking: NegativeRanking | None
) -> Composition:
    """Fill batches with pairs that show different places.

    Each batch takes the pair that waits longest, then the next one that lies far enough from all it holds (and finds
    its negatives there), until it is full or none of the waiting ones fits.

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
        batch = OpenBatch(points, rules)
        placed, hopeless = _fill(batch, queue, points, rules)
        queue.remove(placed | hopeless)
        without_negatives += int(hopeless.sum())
        largest = max(largest, len(batch))
        if len(batch) >= rules.least:
            batches.append(batch.close())
        else:
            dropped += len(batch)
    return Composition(tuple(batches), dropped + without_negatives, without_negatives, largest)


class _Queue:
    """The waiting pairs, the oldest first, with their rankings: made as they come, given up as they go."""

    def __init__(self, pairs: Int64Array, length: int, ranking: NegativeRanking | None) -> None:
        self._pairs = pairs
        self._length = length
        self._ranking = ranking
        self._next = 0
        self._waiting = _NO_ROWS
        self._ranked: dict[int, Int64Array] = {}

    def refill(self) -> bool:
        """Let pairs in until the queue is full; whether any waits."""
        end = min(len(self._pairs), self._next + self._length - len(self._waiting))
        entering = np.arange(self._next, end)
        if self._ranking is not None and len(entering):
            rankings = self._ranking.rank(self._pairs[entering, 0])
            self._ranked.update(zip(entering.tolist(), rankings, strict=True))
        self._waiting = np.concatenate([self._waiting, entering])
        self._next = end
        return len(self._waiting) > 0

    def pairs(self) -> Int64Array:
        """(w, 2) the waiting pairs."""
        return self._pairs[self._waiting]

    def ranking(self, place: int) -> Int64Array:
        """Rows to try as negatives of the pair at a place of the queue."""
        return self._ranked[int(self._waiting[place])]

    def remove(self, gone: BoolArray) -> None:
        """Take pairs out: (w,) bool."""
        for index in self._waiting[gone].tolist():
            self._ranked.pop(index, None)
        self._waiting = self._waiting[~gone]


def _fill(batch: OpenBatch, queue: _Queue, points: Float64Array, rules: BatchRules) -> tuple[BoolArray, BoolArray]:
    """Fill a batch; (w,) bool: which waiting pairs it took, and which fit into none for want of negatives."""
    waiting = WaitingPairs(queue.pairs(), points)
    placed, hopeless, barred = (np.zeros(len(waiting.pairs), np.bool_) for _ in range(3))
    while not batch.is_full:
        place = int(np.argmin(barred))
        if barred[place]:
            break
        barred[place] = True
        pair = waiting.pairs[place]
        negatives = batch.find_negatives(pair, queue.ranking(place)) if rules.negatives else _NO_ROWS
        if negatives is None:
            # Beside other pairs it may find none and wait; alone it never will.
            hopeless[place] = len(batch) == 0
            continue
        batch.add(pair, negatives)
        placed[place] = True
        barred |= batch.bars(waiting, pair, negatives)
    return placed, hopeless
