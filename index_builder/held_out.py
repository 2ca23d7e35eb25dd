"""Localize an index's own references as if their session had never been indexed.

Only stored descriptors are read, never photos. Blocks of rows are streamed past all queries at once, so the cost is
one pass over the descriptors, however many sessions there are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval.calibration import HeldOut
from retrieval.evidence import centre_rows, centred_cosines
from retrieval.geo import Float64Array, GeoPrior
from retrieval.references.reference import Reference
from retrieval.spatial_blocks import SpatialBlocks

Int64Array = NDArray[np.int64]
Float32Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

# References taken further apart than this were taken on another occasion.
PAUSE_S: Final = 1800.0

# A photo that was described twice differs in the last digits of its descriptor only.
_COPY: Final = 1e-5

_BLOCK: Final = 8192
UNKNOWN: Final = -1


class ReferenceIndex(Protocol):
    """What is read of a place index: `PlaceIndex` is one."""

    @property
    def lat(self) -> Float64Array:
        """(N,) degrees."""

    @property
    def lon(self) -> Float64Array:
        """(N,) degrees."""

    @property
    def count(self) -> int:
        """Number of references."""

    @property
    def score_stretch(self) -> float:
        """By how much its scores are further apart than the bundle's own; see `WhiteningRecord.score_stretch`."""

    def descriptors(self, rows: Int64Array) -> Float32Array:
        """The stored descriptors of some rows: (len(rows), D) float32."""

    def references(self, rows: Int64Array) -> Sequence[Reference]:
        """The references of some rows."""


@dataclass(frozen=True, slots=True)
class Occasions:
    """When each reference was taken, as far as matters: on the same occasion as another, or not.

    Attributes:
        label: (N,) int64, which session or block of time; -1 where nothing is known.
        kind: what a label is.
        copies: (M, 2) int64, a row and another label that it belongs to as well, ascending in rows: a photo that was
            taken at the same instant and place as one of that session is the same photo, or of the same rig.
    """

    label: Int64Array
    kind: HeldOut
    copies: Int64Array = field(default_factory=lambda: np.empty((0, 2), np.int64))

    @property
    def count(self) -> int:
        """How many there are."""
        return int(np.unique(self.label[self.label != UNKNOWN]).size)


def occasions_of(index: ReferenceIndex) -> list[Occasions]:
    """What can be held out: the sessions by name, and blocks of time between pauses of half an hour."""
    told = TakenWhen.of(index)
    copies = _copies(told.session, told.seconds, index.lat, index.lon)
    return [Occasions(told.session, "sessions", copies), Occasions(time_blocks(told.seconds), "time blocks")]


@dataclass(frozen=True, slots=True)
class TakenWhen:
    """When the references of an index were taken, as far as they say.

    Attributes:
        session: (N,) int64, -1 where there is none.
        seconds: (N,) float64, of the epoch; NaN where nothing is known.
        number: of each session's name.
    """

    session: Int64Array
    seconds: Float64Array
    number: dict[str, int]

    @classmethod
    def of(cls, index: ReferenceIndex) -> "TakenWhen":
        """Read all references, some at a time."""
        session, seconds = np.full(index.count, UNKNOWN, np.int64), np.full(index.count, np.nan)
        number: dict[str, int] = {}
        for rows in row_blocks(index.count):
            for row, reference in zip(rows, index.references(rows), strict=True):
                if reference.session:
                    session[row] = number.setdefault(reference.session, len(number))
                if reference.captured_at is not None:
                    seconds[row] = reference.captured_at.timestamp()
        return cls(session, seconds, number)


def _copies(label: Int64Array, seconds: Float64Array, lat: Float64Array, lon: Float64Array) -> Int64Array:
    """Rows of one instant and place under several labels, each with all the labels that are not its own."""
    order = np.lexsort((lon, lat, seconds))
    order = order[np.isfinite(seconds[order]) & (label[order] != UNKNOWN)]
    told = np.stack([seconds[order], lat[order], lon[order]], axis=1)
    groups = np.split(order, np.flatnonzero((told[1:] != told[:-1]).any(axis=1)) + 1)
    pairs = [
        (row, other)
        for rows in groups
        if len(rows) > 1
        for row in rows
        for other in np.unique(label[rows])
        if other != label[row]
    ]
    found = np.array(pairs, np.int64).reshape(-1, 2)
    return found[np.lexsort((found[:, 1], found[:, 0]))]


def time_blocks(seconds: Float64Array) -> Int64Array:
    """Which block of time each instant belongs to, between pauses of half an hour; -1 for NaN."""
    label = np.full(len(seconds), UNKNOWN, np.int64)
    order = np.argsort(seconds, kind="stable")
    order = order[np.isfinite(seconds[order])]
    label[order] = np.cumsum(np.diff(seconds[order], prepend=seconds[order[:1]]) > PAUSE_S)
    return label


@dataclass(frozen=True, slots=True)
class Coverage:
    """How well a query's surroundings are known.

    Attributes:
        left: (Q,) int64, references of other occasions within the radius.
        all: (Q,) int64, references of any occasion within it, the query itself included.
    """

    left: Int64Array
    all: Int64Array


def coverage_of(index: ReferenceIndex, occasions: Occasions, queries: Int64Array, radius_m: float) -> Coverage:
    """Count the references around some references.

    Args:
        index: whose.
        occasions: what is held out.
        queries: (Q,) rows.
        radius_m: metres, border included.
    """
    near = NearPairs.of(index, index.lat[queries], index.lon[queries], radius_m)
    own, theirs = occasions.label[queries][near.whose], occasions.label[near.rows]
    other = (own != theirs) & (own != UNKNOWN) & (theirs != UNKNOWN)
    counted = [np.bincount(near.whose[which], minlength=len(queries)) for which in (other, slice(None))]
    return Coverage(*counted)


@dataclass(frozen=True, slots=True)
class HeldOutMatches:
    """The matches of held-out references.

    Attributes:
        rows: (Q, k) int64, best first, -1 where fewer remained.
        scores: (Q, k) float64 cosine, -inf where fewer remained.
        centred: (Q, k) float64 centred cosine, -1 where fewer remained.
        remained: (Q,) int64, how many references were left to be found.
    """

    rows: Int64Array
    scores: Float64Array
    centred: Float64Array
    remained: Int64Array


def search_held_out(
    index: ReferenceIndex, occasions: Occasions, queries: Int64Array, k: int, away_m: float | None = None
) -> HeldOutMatches:
    """Search for references without their own occasion, exactly.

    Args:
        index: where.
        occasions: whatever shares the query's is left out, and so are copies of the query and whatever has none.
        queries: (Q,) rows.
        k: matches for each.
        away_m: leave out everything within these metres of the query, too.
    """
    near = None if away_m is None else NearPairs.of(index, index.lat[queries], index.lon[queries], away_m)

    def allowed(rows: Int64Array) -> Mask:
        mask = _others(occasions, queries, rows)
        if near is not None:
            near.clear(mask, rows)
        return mask

    return search_allowed(index, index.descriptors(queries), allowed, k, _COPY)


def search_allowed(
    index: ReferenceIndex, wanted: Float32Array, allowed: Callable[[Int64Array], Mask], k: int, copy: float
) -> HeldOutMatches:
    """The k best of the rows that are allowed, exactly.

    Args:
        index: where.
        wanted: (Q, d) float32.
        allowed: for some ascending rows, (Q, R): which may be found.
        k: matches for each.
        copy: what is at most so much less alike than the query itself is a copy of it, and left out.
    """
    own = np.einsum("qd,qd->q", wanted, wanted)
    best = np.full((len(wanted), k), -np.inf)
    found = np.full((len(wanted), k), -1, np.int64)
    remained = np.zeros(len(wanted), np.int64)
    for rows in row_blocks(index.count):
        mask = allowed(rows)
        scores = wanted @ index.descriptors(rows).T
        # What is the query itself but for its name, a copy in another folder, is no photo of another occasion.
        mask &= scores < own[:, None] - copy
        remained += mask.sum(axis=1)
        scores = np.where(mask, scores, -np.inf)
        best, found = _merged(best, found, scores.astype(np.float64), rows, k)
    found[~np.isfinite(best)] = -1
    # The mean of what is left, as it would be had the rest never been indexed.
    middle = centre_rows(index.count)
    weights = allowed(middle).astype(np.float32)
    known = index.descriptors(middle)
    weights[weights.sum(axis=1) == 0] = 1.0
    centres = weights @ known / weights.sum(axis=1, keepdims=True)
    centred = np.full((len(wanted), k), -1.0)
    for begin in range(0, len(wanted), 64):
        some = slice(begin, begin + 64)
        matched = index.descriptors(np.maximum(found[some], 0).ravel()).reshape(*found[some].shape, -1)
        centred[some] = centred_cosines(wanted[some], matched, centres[some])
    centred[found < 0] = -1.0
    return HeldOutMatches(found, np.clip(best, None, 1.0), centred, remained)


def _merged(
    best: Float64Array, found: Int64Array, scores: Float64Array, rows: Int64Array, k: int
) -> tuple[Float64Array, Int64Array]:
    """The k best of what was found before and of one more block, equals in the order of rows."""
    if scores.shape[1] > k:
        top = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
        scores, candidates = np.take_along_axis(scores, top, axis=1), rows[top]
    else:
        candidates = np.broadcast_to(rows, scores.shape)
    scores = np.concatenate([best, scores], axis=1)
    candidates = np.concatenate([found, candidates], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(candidates, order, axis=1)


def row_blocks(count: int) -> list[Int64Array]:
    """All rows, ascending, in blocks of 8,192."""
    return [np.arange(begin, min(begin + _BLOCK, count)) for begin in range(0, count, _BLOCK)]


def _others(occasions: Occasions, queries: Int64Array, rows: Int64Array) -> Mask:
    """(Q, R): which of some ascending rows are known to be of another occasion."""
    own, theirs = occasions.label[queries][:, None], occasions.label[rows][None]
    mask = np.asarray((own != theirs) & (own != UNKNOWN) & (theirs != UNKNOWN))
    begin, end = np.searchsorted(occasions.copies[:, 0], [rows[0], rows[-1] + 1])
    for row, label in occasions.copies[begin:end]:
        column = int(np.searchsorted(rows, row))
        if rows[column] == row:
            mask[own[:, 0] == label, column] = False
    return mask


@dataclass(frozen=True, slots=True)
class NearPairs:
    """Which rows lie near which query: pairs, ascending in rows."""

    whose: Int64Array
    rows: Int64Array

    @classmethod
    def of(cls, index: ReferenceIndex, lat: Float64Array, lon: Float64Array, radius_m: float) -> "NearPairs":
        """All pairs of (Q,) positions and rows within a radius, border included."""
        blocks = SpatialBlocks(index.lat, index.lon)
        found = [blocks.rows_within(GeoPrior(*place, radius_m)) for place in zip(lat, lon, strict=True)]
        whose = np.repeat(np.arange(len(found)), [len(rows) for rows in found])
        rows = np.concatenate(found) if found else np.empty(0, np.int64)
        order = np.argsort(rows, kind="stable")
        return cls(whose[order], rows[order])

    def clear(self, mask: Mask, rows: Int64Array) -> None:
        """Set the pairs among some ascending rows to False in a (Q, R) mask of them."""
        begin, end = np.searchsorted(self.rows, [rows[0], rows[-1] + 1])
        column = np.searchsorted(rows, self.rows[begin:end]).clip(max=len(rows) - 1)
        there = rows[column] == self.rows[begin:end]
        mask[self.whose[begin:end][there], column[there]] = False
