"""Who may be whose positive, and which of a query's positives is taken."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from training.geopair.arrays import BoolArray, Float64Array, Int64Array
from training.geopair.descriptors import DescribedRows
from training.geopair.neighbours import NeighbourPairs, Neighbours
from training.geopair.photo_table import PhotoTable
from training.recipe_settings import GeoPairSettings

# Headings are float32: a thousandth of a degree covers their rounding.
_HEADING_SLACK_DEG: Final = 1e-3
# Queries compared at once with all of their positives: one product of matrices, which also serves a dense spot.
_QUERIES_AT_ONCE: Final = 64


@dataclass(frozen=True, eq=False)
class Positives:
    """The positives of a table's photos: near enough, looking the same way, of another session, as the settings say.

    A photo whose heading is unknown has no positive, and is nobody's, where there is a heading window: that it looks
    the same way cannot be told.

    Args:
        table: the photos.
        settings: the rules.
        neighbours: the table's spatial index.
    """

    table: PhotoTable
    settings: GeoPairSettings
    neighbours: Neighbours

    def rows_with_any(self) -> Int64Array:
        """(M,) the rows that have at least one positive, ascending."""
        has_any = np.zeros(len(self.table), np.bool_)
        rows = np.arange(len(self.table))
        for pairs in self._within_radius(rows):
            # With the fallback to the same session, another session decides which positive, not whether there is one.
            keep = self.may_pair(rows[pairs.at][pairs.owner], pairs.rows)
            has_any[pairs.at[pairs.owner[keep]]] = True
        return np.flatnonzero(has_any)

    def rows_of(self, queries: Int64Array) -> Int64Array:
        """(m,) every row that is an allowed positive of any of the queries, ascending."""
        wanted = np.zeros(len(self.table), np.bool_)
        for pairs in self._allowed(queries):
            wanted[pairs.rows] = True
        return np.flatnonzero(wanted)

    def choose_random(self, queries: Int64Array, chances: Float64Array) -> Int64Array:
        """One positive of each query at random.

        Args:
            queries: (n,) distinct rows that have a positive.
            chances: (n,) float64 in [0, 1), one a query.

        Returns:
            (n,) rows.
        """
        chosen = np.empty(len(queries), np.int64)
        for pairs in self._allowed(queries):
            # Ascending within a query, so that the draw does not depend on how the tree was walked.
            ascending = np.sort(pairs.owner * len(self.table) + pairs.rows) % len(self.table)
            counts = np.bincount(pairs.owner, minlength=len(pairs.at))
            first = np.cumsum(counts) - counts
            chosen[pairs.at] = ascending[first + (chances[pairs.at] * counts).astype(np.int64)]
        return chosen

    def choose_by_descriptor(
        self, queries: Int64Array, described: DescribedRows, which: Literal["nearest", "farthest"]
    ) -> Int64Array:
        """The positive of each query whose descriptor is nearest to, or farthest from, its own.

        Args:
            queries: (n,) distinct rows that have a positive.
            described: they and all of their positives.
            which: end of the order.

        Returns:
            (n,) rows; of equal ones the first.
        """
        chosen = np.empty(len(queries), np.int64)
        for pairs in self._allowed(queries):
            for at, owner, near in _by_query(pairs):
                rows = self._distinct(near)
                column = np.searchsorted(rows, near)
                cosines = described.of(queries[at]) @ described.of(rows).T
                order = cosines if which == "nearest" else -cosines
                allowed = np.full_like(order, -np.inf)
                allowed[owner, column] = order[owner, column]
                chosen[at] = rows[np.argmax(allowed, axis=1)]
        return chosen

    def may_pair(self, rows: Int64Array, others: Int64Array, *, fallback: bool = True) -> BoolArray:
        """Whether heading and session let photos be a pair, wherever they were taken.

        Args:
            rows, others: of the same shape, or broadcastable.
            fallback: count those that only the fallback to the same session allows.

        Returns:
            bool of their shape.
        """
        allowed = np.ones(np.broadcast_shapes(rows.shape, others.shape), np.bool_)
        settings = self.settings
        if settings.heading_window_deg is not None:
            turn = np.abs(self.table.headings_deg[rows] - self.table.headings_deg[others]) % 360
            # A comparison with NaN is false: unknown headings never match.
            allowed &= np.minimum(turn, 360 - turn) <= settings.heading_window_deg + _HEADING_SLACK_DEG
        if settings.other_session_only and not (fallback and settings.same_session_fallback):
            allowed &= self.table.sessions[rows] != self.table.sessions[others]
        return allowed

    def _distinct(self, rows: Int64Array) -> Int64Array:
        # Marking beats sorting: around a dense spot every photo comes once for each of its neighbours.
        marked = np.zeros(len(self.table), np.bool_)
        marked[rows] = True
        return np.flatnonzero(marked)

    def _within_radius(self, rows: Int64Array) -> Iterator[NeighbourPairs]:
        return self.neighbours.pairs_within(rows, self.settings.positive_radius_m)

    def _allowed(self, queries: Int64Array) -> Iterator[NeighbourPairs]:
        settings = self.settings
        for pairs in self._within_radius(queries):
            rows = queries[pairs.at][pairs.owner]
            keep = self.may_pair(rows, pairs.rows)
            if settings.other_session_only and settings.same_session_fallback:
                other = keep & self.may_pair(rows, pairs.rows, fallback=False)
                has_other = np.zeros(len(pairs.at), np.bool_)
                has_other[pairs.owner[other]] = True
                keep &= other | ~has_other[pairs.owner]
            yield NeighbourPairs(pairs.at, pairs.owner[keep], pairs.rows[keep])


def _by_query(pairs: NeighbourPairs) -> Iterator[tuple[Int64Array, Int64Array, Int64Array]]:
    """A few queries at a time: their places, and owner (place among these) and row of each pair."""
    order = np.argsort(pairs.owner, kind="stable")
    owner, rows = pairs.owner[order], pairs.rows[order]
    for begin in range(0, len(pairs.at), _QUERIES_AT_ONCE):
        end = min(begin + _QUERIES_AT_ONCE, len(pairs.at))
        first, last = np.searchsorted(owner, (begin, end))
        yield pairs.at[begin:end], owner[first:last] - begin, rows[first:last]
