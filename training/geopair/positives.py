"""Which photos may be a query's positive, which of them is taken, and why there may be none.

A k-d tree over the positions of all photos answers, in pieces of bounded memory.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from scipy.spatial import cKDTree

from retrieval.geo import EARTH_RADIUS_M
from training.geopair.photo_table import BoolArray, DescribedRows, Float64Array, GeoPairError, Int64Array, PhotoTable
from training.recipe_settings import GeoPairSettings

# Radii include their border: a micrometre covers the rounding of degrees and of unit vectors (some nanometres).
SLACK_M: Final = 1e-6
# Headings are float32: a thousandth of a degree covers their rounding.
_HEADING_SLACK_DEG: Final = 1e-3

# Pairs found at once, 24 bytes each: a dense spot takes more pieces, not more memory.
_PAIRS_AT_ONCE: Final = 1_000_000
_ROWS_AT_ONCE: Final = 50_000
# Queries compared at once with all of their positives: one product of matrices, which also serves a dense spot.
_QUERIES_AT_ONCE: Final = 64
_DISTANCES_AT_ONCE: Final = 1_000_000

# How many nearest photos of each are searched for two that could be a pair, until two are found.
_SEARCHED: Final = (2, 16, 128)


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

    def pairs_within(self, rows: Int64Array, radius_m: float) -> Iterator[NeighbourPairs]:
        """All photos within a radius of the given rows, in pieces of about a million pairs at most.

        All pairs of a single row come in one piece.

        Args:
            rows: (n,) distinct rows of the table.
            radius_m: metres, the border included.
        """
        radius = (radius_m + SLACK_M) / EARTH_RADIUS_M
        order = np.argsort(self._leaf_order[rows], kind="stable")
        for begin in range(0, len(rows), _ROWS_AT_ONCE):
            part = order[begin : begin + _ROWS_AT_ONCE]
            counts = self._tree.query_ball_point(self._points[rows[part]], radius, return_length=True)
            for at in _pieces(part, np.asarray(counts, np.int64)):
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


@dataclass(frozen=True, eq=False)
class Positives:
    """The positives of a table's photos: near enough, looking the same way, of another session, as the settings say.

    A photo whose heading is unknown neither has nor is a positive where there is a heading window: whether it
    looks the same way is unknown.

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
            # Ascending within a query, so that the draw does not depend on the order of the tree.
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


def check_sessions(positives: Positives) -> None:
    """Refuse photos of one session where positives must come from another.

    Raises:
        GeoPairError: ``one_session``.
    """
    settings, sessions = positives.settings, positives.table.sessions
    if not settings.other_session_only or settings.same_session_fallback or np.ptp(sessions) > 0:
        return
    known = "are of one session" if sessions[0] >= 0 else "have no session, which counts as one"
    raise GeoPairError(
        f"all {len(sessions)} references {known}, but geopair.other_session_only asks for positives of another",
        remedy="Set geopair.other_session_only=false or geopair.same_session_fallback=true, or add photos of another "
        "session",
        code="one_session",
    )


def explain_no_pairs(positives: Positives) -> GeoPairError:
    """The error for photos none of which has a positive: how near two come that could be a pair, and what to change."""
    settings, table = positives.settings, positives.table
    conditions = []
    remedies = []
    if settings.heading_window_deg is not None:
        unknown = int(np.isnan(table.headings_deg).sum())
        without = f" ({unknown} have no heading, which never matches)" if unknown else ""
        conditions.append(f"look the same way within {settings.heading_window_deg:g}°{without}")
        remedies.append("widen geopair.heading_window_deg or leave it out")
    if settings.other_session_only and not settings.same_session_fallback:
        conditions.append("are of different sessions")
        remedies.append("set geopair.same_session_fallback=true")
    nearest = nearest_possible_m(positives)
    if math.isfinite(nearest):
        found = f"the nearest two that could be a pair are {nearest:.2f} m apart"
        at_least = math.ceil(nearest * 10) / 10
        also = " (and geopair.never_negative_radius_m)" if at_least > settings.never_negative_radius_m else ""
        remedies.insert(0, f"raise geopair.positive_radius_m to at least {at_least:g}{also}")
    else:
        found = f"nor could any be a pair with one of its {_SEARCHED[-1]} nearest"
    which = f" and {' and '.join(conditions)}" if conditions else ""
    remedy = ", or ".join(remedies) or "add photos of the same places"
    return GeoPairError(
        f"of {len(table)} references no two lie within {settings.positive_radius_m:g} m of each other{which}; {found}",
        remedy=remedy[0].upper() + remedy[1:],
        code="no_pairs",
    )


def nearest_possible_m(positives: Positives) -> float:
    """Distance in metres of the nearest two photos that could be a pair but for the radius; infinite if none is found.

    Exact unless none of a photo's 128 nearest could be its positive.
    """
    rows = np.arange(len(positives.table))
    best = math.inf
    for searched in _SEARCHED:
        count = min(searched, len(rows))
        best, reach = math.inf, math.inf
        step = max(1, _DISTANCES_AT_ONCE // count)
        for begin in range(0, len(rows), step):
            part = rows[begin : begin + step]
            distances, near = positives.neighbours.nearest(part, count)
            could = positives.may_pair(part[:, None], near) & (near != part[:, None])
            best = min(best, float(distances[could].min(initial=math.inf)))
            # Beyond its farthest neighbour a photo without any may still have one.
            reach = min(reach, float(distances[~could.any(axis=1), -1].min(initial=math.inf)))
        if best <= reach or count == len(rows):
            break
    return best


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


def _by_query(pairs: NeighbourPairs) -> Iterator[tuple[Int64Array, Int64Array, Int64Array]]:
    """A few queries at a time: their places, and owner (place among these) and row of each pair."""
    order = np.argsort(pairs.owner, kind="stable")
    owner, rows = pairs.owner[order], pairs.rows[order]
    for begin in range(0, len(pairs.at), _QUERIES_AT_ONCE):
        end = min(begin + _QUERIES_AT_ONCE, len(pairs.at))
        first, last = np.searchsorted(owner, (begin, end))
        yield pairs.at[begin:end], owner[first:last] - begin, rows[first:last]


def _pieces(rows: Int64Array, counts: Int64Array) -> Iterator[Int64Array]:
    """Cut rows into runs whose counts add up to at most `_PAIRS_AT_ONCE`, one row at least."""
    ends = np.cumsum(counts)
    begin = 0
    while begin < len(rows):
        before = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, before + _PAIRS_AT_ONCE, side="right")))
        yield rows[begin:end]
        begin = end
