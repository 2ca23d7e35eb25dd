"""Queries of known position for calibrating an index: its own references, held out, and photos that it does not hold.

Both are searched for without what the index holds of the same occasion, as if that had never been indexed. Only stored
descriptors are read. Blocks of rows are compared with all queries at once, so the cost is one pass over the
descriptors, however many sessions there are.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.artefact import verify_files
from retrieval.describer import Descriptors
from retrieval.errors import IndexNotFoundError, ParameterError, PlaceIndexError
from retrieval.geo import Float64Array, GeoPrior, haversine_m, longitude_bounds
from retrieval.index.manifest import Bounds, BundleIdentity, PlaceIndexManifest, Source
from retrieval.index.place_index import CALIBRATION_PHOTOS_NAME, SpatialBlocks
from retrieval.index.searchable import SearchablePlaceIndex, SearchResult
from retrieval.index.vectors.exact import ExactVectors
from retrieval.localize.calibration import HeldOut
from retrieval.localize.evidence import centre_rows, centred_cosines, score_spread
from retrieval.localize.fix import MatchedIndex
from retrieval.references.reference import Reference

Int64Array = NDArray[np.int64]
Float32Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
_log = logging.getLogger("sightfix.index")

# References taken further apart than this were taken on another occasion.
PAUSE_S: Final = 1800.0

# By how much the cosine of a photo with its copy is below 1: described twice, or elsewhere and stored in fewer bits.
_COPY: Final = 1e-5
_PHOTO_COPY: Final = 3e-3

# Positions of one photo in two lists.
_SAME_PLACE_M: Final = 1.0

_BLOCK: Final = 8192
_PAIRS_AT_ONCE: Final = 4096
_DESCRIPTOR: Final = "descriptor"
UNKNOWN: Final = -1


class ReferenceIndex(MatchedIndex, Protocol):
    """What is read of a place index: `PlaceIndex` is one."""

    @property
    def lat(self) -> Float64Array:
        """(N,) degrees."""

    @property
    def lon(self) -> Float64Array:
        """(N,) degrees."""

    def references(self, rows: Int64Array) -> Sequence[Reference]:
        """The references of some rows."""


@dataclass(frozen=True, slots=True)
class Occasions:
    """Which references were taken on the same occasion.

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
    taken = TakenWhen.of(index)
    copies = _copies(taken.session, taken.seconds, index.lat, index.lon)
    return [Occasions(taken.session, "sessions", copies), Occasions(time_blocks(taken.seconds), "time blocks")]


@dataclass(frozen=True, slots=True)
class TakenWhen:
    """When the references of an index were taken, as far as that is known.

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
    instants = np.stack([seconds[order], lat[order], lon[order]], axis=1)
    groups = np.split(order, np.flatnonzero((instants[1:] != instants[:-1]).any(axis=1)) + 1)
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
        # A copy of the query, such as in another folder, is no photo of another occasion.
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


@dataclass(frozen=True)
class OutsidePhotos:
    """Photos whose position is known, to be localized by an index that does not hold them.

    Attributes:
        descriptors: (Q, d) float32, unit rows, as the index stores them.
        lat, lon: (Q,) degrees.
        sessions: Q names, None where there is none.
        seconds: (Q,) float64, when they were taken, of the epoch; NaN where nothing is known.
    """

    descriptors: Float32Array
    lat: Float64Array
    lon: Float64Array
    sessions: Sequence[str | None]
    seconds: Float64Array

    @classmethod
    def from_references(cls, references: Sequence[Reference], descriptors: Descriptors) -> "OutsidePhotos":
        """Photos that were described.

        Raises:
            ParameterError: one has no position in degrees.
        """
        taken = [reference.captured_at for reference in references]
        return cls(
            descriptors,
            *degrees_of(references),
            [reference.session or None for reference in references],
            np.array([np.nan if at is None else at.timestamp() for at in taken]),
        )

    @property
    def count(self) -> int:
        """Number of photos."""
        return len(self.descriptors)

    def take(self, places: Int64Array) -> "OutsidePhotos":
        """Some of them."""
        sessions = [self.sessions[place] for place in places]
        return OutsidePhotos(
            self.descriptors[places], self.lat[places], self.lon[places], sessions, self.seconds[places]
        )

    def write(self, path: Path) -> None:
        """Write them to a Parquet file."""
        values = pa.array(np.ascontiguousarray(self.descriptors, np.float32).ravel())
        columns = {
            "lat": pa.array(self.lat, pa.float64()),
            "lon": pa.array(self.lon, pa.float64()),
            "session": pa.array(self.sessions, pa.string()),
            "seconds": pa.array(self.seconds, pa.float64()),
            _DESCRIPTOR: pa.FixedSizeListArray.from_arrays(values, self.descriptors.shape[1]),
        }
        pq.write_table(pa.table(columns), path, compression="zstd")

    @classmethod
    def read(cls, path: Path) -> "OutsidePhotos":
        """Read what `write` wrote."""
        table = pq.read_table(path).combine_chunks()
        rows = table[_DESCRIPTOR].combine_chunks()
        descriptors = np.asarray(rows.flatten(), np.float32).reshape(len(rows), -1)
        lat, lon, seconds = (np.asarray(table[name], np.float64) for name in ("lat", "lon", "seconds"))
        return cls(descriptors, lat, lon, table["session"].to_pylist(), seconds)

    @property
    def occasions(self) -> Int64Array:
        """(Q,) int64, which photos were taken on the same occasion: by session, else by pauses of half an hour."""
        number = {name: place for place, name in enumerate(sorted({name for name in self.sessions if name}))}
        blocks = time_blocks(self.seconds)
        labels = [
            number[name] if name else len(number) + 1 + int(block)
            for name, block in zip(self.sessions, blocks, strict=True)
        ]
        return np.unique(np.array(labels, np.int64), return_inverse=True)[1].ravel()


def calibration_photos_of(version: Path, fingerprint: str) -> OutsidePhotos | None:
    """What a version was given to be calibrated on, not whitened; read without opening the rest of it.

    Args:
        version: its folder.
        fingerprint: of the bundle that they must have been described by.

    Returns:
        None where it was given nothing, and where that is damaged or another bundle described it, which is logged.
    """
    try:
        manifest = PlaceIndexManifest.read(version, PlaceIndexError)
        if not manifest.calibration_photos:
            return None
        record = {CALIBRATION_PHOTOS_NAME: manifest.files[CALIBRATION_PHOTOS_NAME]}
        verify_files(version, record, error_type=PlaceIndexError)
    except (PlaceIndexError, KeyError) as error:
        _log.warning("whether %s was calibrated on photos is unknown: %s", version, error)
        return None
    if manifest.bundle.fingerprint == fingerprint:
        return OutsidePhotos.read(version / CALIBRATION_PHOTOS_NAME)
    _log.warning(
        "%s was calibrated on %d photos that another bundle described; give them again: sightfix index calibrate",
        version,
        manifest.calibration_photos,
    )
    return None


@dataclass(frozen=True)
class OutsideSearch:
    """Searches an index for photos that it does not hold, without what it holds of the same occasion.

    Left out are references of the photo's session, those taken within half an hour of it or of what was photographed in
    one go with it (no pause of half an hour), and copies of the photo.

    Args:
        index: where.
        photos: what for.
    """

    index: ReferenceIndex
    photos: OutsidePhotos
    _taken: TakenWhen
    _session: Int64Array
    _from: Float64Array
    _until: Float64Array

    @classmethod
    def of(cls, index: ReferenceIndex, photos: OutsidePhotos) -> "OutsideSearch":
        """Read when the references were taken."""
        references = TakenWhen.of(index)
        # A session that the index does not hold is a known one, and no reference's.
        other = len(references.number)
        session = [references.number.get(name, other) if name else UNKNOWN for name in photos.sessions]
        block = time_blocks(photos.seconds)
        begun, ended = np.full(photos.count, np.nan), np.full(photos.count, np.nan)
        for one in np.unique(block[block >= 0]):
            taken = photos.seconds[block == one]
            begun[block == one], ended[block == one] = taken.min(), taken.max()
        return cls(index, photos, references, np.array(session, np.int64), begun - PAUSE_S, ended + PAUSE_S)

    def take(self, places: Int64Array) -> "OutsideSearch":
        """The same for some of the photos."""
        session, begun, ended = self._session[places], self._from[places], self._until[places]
        return OutsideSearch(self.index, self.photos.take(places), self._taken, session, begun, ended)

    def search(self, k: int, away_m: float | None = None) -> HeldOutMatches:
        """Search exactly.

        Args:
            k: matches for each.
            away_m: leave out everything within these metres of the photo, too.
        """
        near = None if away_m is None else NearPairs.of(self.index, self.photos.lat, self.photos.lon, away_m)
        every = np.arange(self.photos.count)[:, None]

        def allowed(rows: Int64Array) -> Mask:
            mask = ~self._same_occasion(every, rows[None])
            if near is not None:
                near.clear(mask, rows)
            return mask

        return search_allowed(self.index, self.photos.descriptors, allowed, k, _PHOTO_COPY)

    def known(self, radius_m: float) -> Mask:
        """(Q,): whether the index holds a reference of another occasion within a radius of the photo, and no copy."""
        near = NearPairs.of(self.index, self.photos.lat, self.photos.lon, radius_m)
        counts = ~self._same_occasion(near.whose, near.rows) & ~self._copies(near)
        return np.bincount(near.whose[counts], minlength=self.photos.count) > 0

    def indexed_undated(self) -> Mask:
        """(Q,): whether the index holds the photo itself and nothing says which references were taken with it."""
        near = NearPairs.of(self.index, self.photos.lat, self.photos.lon, _SAME_PLACE_M)
        session, seconds = self._taken.session[near.rows], self._taken.seconds[near.rows]
        named = (self._session[near.whose] != UNKNOWN) & (session != UNKNOWN)
        timed = np.isfinite(self.photos.seconds[near.whose]) & np.isfinite(seconds)
        undated = self._copies(near) & ~named & ~timed
        return np.bincount(near.whose[undated], minlength=self.photos.count) > 0

    def _same_occasion(self, whose: Int64Array, rows: Int64Array) -> Mask:
        """Whether photos and rows, broadcast together, are known to be of one occasion."""
        own, theirs, taken = self._session[whose], self._taken.session[rows], self._taken.seconds[rows]
        # Unknown times, NaN, are not close to any.
        soon = (taken >= self._from[whose]) & (taken <= self._until[whose])
        return np.asarray(((own == theirs) & (own != UNKNOWN)) | soon)

    def _copies(self, near: NearPairs) -> Mask:
        """(P,): which of some pairs are the same photo."""
        found = np.zeros(len(near.rows), bool)
        for begin in range(0, len(near.rows), _PAIRS_AT_ONCE):
            some = slice(begin, begin + _PAIRS_AT_ONCE)
            wanted = self.photos.descriptors[near.whose[some]]
            alike = np.einsum("pd,pd->p", wanted, self.index.descriptors(near.rows[some]))
            found[some] = alike >= np.einsum("pd,pd->p", wanted, wanted) - _PHOTO_COPY
        return found


class DescribedIndex(SearchablePlaceIndex):
    """A place index in memory, of references that were described and not published.

    Args:
        references: N, each with a position.
        descriptors: (N, D) float32, unit rows.
        bundle: that described them.

    Raises:
        ParameterError: a reference without degrees, or not one descriptor for each.
    """

    def __init__(self, references: Sequence[Reference], descriptors: Descriptors, bundle: BundleIdentity) -> None:
        if len(references) != len(descriptors):
            raise ParameterError(f"{len(references)} references and {len(descriptors)} descriptors")
        self._references = references
        self.lat, self.lon = degrees_of(references)
        self._vectors = ExactVectors.from_descriptors([descriptors], descriptors.shape[1], "fp32")
        west, east = longitude_bounds(self.lon)
        manifest = PlaceIndexManifest(
            name="described",
            version="memory",
            bundle=bundle,
            descriptor_dim=descriptors.shape[1],
            storage="fp32",
            score_spread=score_spread(self._vectors),
            count=len(references),
            bounds=Bounds(lat_min=self.lat.min(), lat_max=self.lat.max(), lon_min=west, lon_max=east),
            source=Source(spec="memory", root=""),
            files={},
        )
        super().__init__(manifest, None, "described photos")

    @property
    def searches_exactly(self) -> bool:
        """It does."""
        return True

    def search_whitened(
        self,
        descriptors: Descriptors,
        k: int,
        geo_priors: Sequence[GeoPrior | None] | None = None,
        *,
        effort: int | None = None,
    ) -> SearchResult:
        """As `search`."""
        rows, scores = self._vectors.search(descriptors, k)
        for query, prior in enumerate(geo_priors or []):
            if prior is not None:
                inside = haversine_m(prior.lat, prior.lon, self.lat, self.lon) <= prior.radius_m
                rows[query], scores[query] = self._vectors.search_rows(descriptors[query], k, np.flatnonzero(inside))
        return SearchResult(rows, scores)

    def descriptors(self, rows: Int64Array) -> Descriptors:
        """The descriptors of some rows: (len(rows), D) float32."""
        return self._vectors.descriptors(rows)

    def positions(self, rows: Int64Array) -> tuple[Float64Array, Float64Array]:
        """Latitudes and longitudes of some rows: (len(rows),) degrees each."""
        return self.lat[rows], self.lon[rows]

    def all_positions(self) -> tuple[Float64Array, Float64Array]:
        """Latitudes and longitudes of all rows: (N,) degrees each."""
        return self.lat, self.lon

    def references(self, rows: Sequence[int] | Int64Array) -> list[Reference]:
        """The references of some rows, in the order given."""
        return [self._references[row] for row in rows]

    def row_of(self, reference_id: str) -> int:
        """As `SearchablePlaceIndex.row_of`."""
        for row, reference in enumerate(self._references):
            if reference.id == reference_id:
                return row
        raise IndexNotFoundError(f"there is no reference {reference_id!r}", code="reference_not_found")


def degrees_of(references: Sequence[Reference]) -> tuple[Float64Array, Float64Array]:
    """Latitudes and longitudes of references: (N,) degrees each.

    Raises:
        ParameterError: one has no position in degrees.
    """
    places = [reference.position for reference in references if reference.position is not None]
    if len(places) != len(references):
        raise ParameterError("a photo has no position in degrees", remedy="Give geo-tagged photos")
    return np.array([place.lat for place in places]), np.array([place.lon for place in places])
