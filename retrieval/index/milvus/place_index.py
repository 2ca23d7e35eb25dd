"""A place index whose descriptors and references lie in Milvus.

A geo prior becomes a filter that Milvus understands: boxes of latitudes and longitudes that hold the circle. Milvus's
own distances differ between its server (metres) and milvus-lite (degrees), so positions are compared as plain numbers
there, a little generously, and with the haversine here.
"""

import math
import shlex
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle.whitening import Whitening
from retrieval.describer import Descriptors
from retrieval.errors import IndexNotFoundError, ParameterError, PlaceIndexError
from retrieval.geo import EARTH_RADIUS_M, Float64Array, GeoPrior, haversine_m
from retrieval.index.manifest import PlaceIndexManifest
from retrieval.index.milvus.collection import FACTS, MOST_ROWS, MilvusCollection, MilvusRow, most_effort, text
from retrieval.index.reference_table import reference_of
from retrieval.index.searchable import SearchablePlaceIndex, SearchResult
from retrieval.references.reference import Reference

# 1 cm on the ground, and some more towards the poles: what lies on the border is decided here, not there.
_SLACK_DEG: Final = 1e-7
_MOST_ROWS: Final = 16_384

# Codes order rows roughly: so many times the wanted ones are looked at closely.
_RERANK: Final = 8

# Of a circle and the box around it, and then some.
_BOX_OVER_CIRCLE: Final = 2

# Up to so many rows inside a prior are brought here and compared one by one where search is approximate.
EXACT_PRIOR_ROWS: Final = MOST_ROWS
_SCANNED_AT_ONCE: Final = 4_096

# Tracks need the position of every reference: 16 bytes each.
MOST_POSITIONS: Final = 5_000_000


def filter_of(prior: GeoPrior) -> str:
    """The filter expression of a prior: every position inside it passes, and some beside it; "" lets all pass.

    The boxes are split at the antimeridian; a circle that holds a pole has all longitudes. Longitudes of references
    are in [-180, 180], whose two ends are the same meridian.
    """
    reach = prior.radius_m / EARTH_RADIUS_M
    low, high = (prior.lat + sign * math.degrees(reach) for sign in (-1.0, 1.0))
    parts = []
    if low > -90.0:
        parts.append(f"lat >= {_number(low - _SLACK_DEG)}")
    if high < 90.0:
        parts.append(f"lat <= {_number(high + _SLACK_DEG)}")
    if low > -90.0 and high < 90.0:
        # The meridians that touch the circle do so nearer to the pole than its centre lies.
        sine = math.sin(min(reach, math.pi / 2)) / math.cos(math.radians(prior.lat))
        if sine < 1.0:
            slack = _SLACK_DEG / math.cos(math.radians(prior.lat))
            parts += _longitudes(prior.lon, math.degrees(math.asin(sine)) + slack)
    return " and ".join(parts)


class RowsSeen:
    """The rows seen last. Safe to use from several threads.

    Args:
        fetch: brings rows that were not seen, in the order asked for: row numbers, and whether with descriptors.
        most: rows that are kept.
    """

    def __init__(self, fetch: Callable[[list[int], bool], list[MilvusRow]], most: int = _MOST_ROWS) -> None:
        self._fetch = fetch
        self._most = most
        self._rows: OrderedDict[int, MilvusRow] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, rows: Iterable[MilvusRow]) -> None:
        """Remember rows; one without a descriptor does not push out the same one with it."""
        with self._lock:
            for one in rows:
                if one.descriptor is not None or one.row not in self._rows:
                    self._rows[one.row] = one
                self._rows.move_to_end(one.row)
            while len(self._rows) > self._most:
                self._rows.popitem(last=False)

    def get(self, rows: Sequence[int] | NDArray[np.int64], *, descriptors: bool = False) -> list[MilvusRow]:
        """Rows in the order given; those not seen are fetched at once.

        Args:
            rows: their numbers; repeats are allowed.
            descriptors: whether they must have theirs.
        """
        wanted = [int(row) for row in rows]
        with self._lock:
            known = {row: self._rows[row] for row in wanted if row in self._rows}
        missing = [
            row for row in dict.fromkeys(wanted) if row not in known or (descriptors and known[row].descriptor is None)
        ]
        if missing:
            fetched = self._fetch(missing, descriptors)
            self.keep(fetched)
            known |= {one.row: one for one in fetched}
        return [known[row] for row in wanted]


class MilvusPlaceIndex(SearchablePlaceIndex):
    """A place index opened from a Milvus. Safe to search from several threads; immutable.

    What a search found is kept for a while, so the fix, the answer and the evidence of its matches need no further
    question. Make one with `MilvusStore.open`.

    Args:
        manifest: of the version.
        collection: of it.
        whitening: that queries go through, or None.
    """

    def __init__(
        self, manifest: PlaceIndexManifest, collection: MilvusCollection, whitening: Whitening | None = None
    ) -> None:
        super().__init__(manifest, whitening, f"{collection.connection.where}, {collection.name}")
        self.collection = collection
        self._facts = FACTS[collection.searching.index_type]
        # Calibrated fixes look at the descriptors of the best matches, too.
        self._with_descriptors = not self._facts.scores_are_cosines or manifest.calibration is not None
        self._most_rows = collection.most_rows(descriptors=self._with_descriptors)
        self._seen = RowsSeen(self._fetch)

    @property
    def without_bundle(self) -> str:
        """As `SearchablePlaceIndex.without_bundle`."""
        return "Milvus holds no bundles"

    @property
    def bundle_remedy(self) -> str:
        """As `SearchablePlaceIndex.bundle_remedy`."""
        pushed_from = self.collection.searching.pushed_from
        if pushed_from is None:
            return "Name the folder of that bundle, or of a place index that holds it: --bundle FOLDER"
        what = "the place index that was pushed, which holds it"
        return f"Name the folder of that bundle, or of {what}: --bundle {shlex.quote(pushed_from)}"

    @property
    def type_name(self) -> str:
        """Of Milvus's index, as answers state it."""
        return f"milvus:{self.collection.searching.index_type}"

    @property
    def searches_exactly(self) -> bool:
        """As `SearchablePlaceIndex.searches_exactly`."""
        return self._facts.effort is None

    def search_whitened(
        self,
        descriptors: Descriptors,
        k: int,
        geo_priors: Sequence[GeoPrior | None] | None = None,
        *,
        effort: int | None = None,
    ) -> SearchResult:
        """As `SearchablePlaceIndex.search_whitened`.

        Inside a prior, search is exact for every type of index up to `EXACT_PRIOR_ROWS` rows in the box around it;
        beyond, an approximate index looks as hard as it can, and where it finds too few all rows inside are compared.
        At most 16,384 matches can be had, 1,024 of a GPU's index.
        """
        found = min(k, self.count, self._most_rows)
        priors = [None] * len(descriptors) if geo_priors is None else geo_priors
        rows = np.full((len(descriptors), k), -1, np.int64)
        scores = np.full((len(descriptors), k), -np.inf, np.float32)
        free = [place for place, prior in enumerate(priors) if prior is None]
        ranked = dict(zip(free, self._ranked(descriptors[free], found, "", effort), strict=True)) if free else {}
        for place, prior in enumerate(priors):
            best = ranked[place] if prior is None else self._within(descriptors[place], found, prior)
            best = best[:found]
            rows[place, : len(best)] = [one.row for one, _ in best]
            scores[place, : len(best)] = [score for _, score in best]
        return SearchResult(rows, scores)

    def descriptors(self, rows: NDArray[np.int64]) -> Descriptors:
        """As `SearchablePlaceIndex.descriptors`."""
        found = self._seen.get(rows, descriptors=True)
        stored = [one.descriptor for one in found if one.descriptor is not None]
        return np.stack(stored) if stored else np.empty((0, self.manifest.descriptor_dim), np.float32)

    def positions(self, rows: NDArray[np.int64]) -> tuple[Float64Array, Float64Array]:
        """As `SearchablePlaceIndex.positions`."""
        found = self._seen.get(rows)
        return np.array([one.lat for one in found], np.float64), np.array([one.lon for one in found], np.float64)

    def all_positions(self) -> tuple[Float64Array, Float64Array]:
        """As `SearchablePlaceIndex.all_positions`; at most `MOST_POSITIONS`."""
        if self.count > MOST_POSITIONS:
            raise ParameterError(
                f"the positions of {self.count:,} references are too many to load, the limit is {MOST_POSITIONS:,}",
                where=self.where,
                remedy="Serve without tracks (--max-tracks 0), or an index for each region",
            )
        pieces = list(self.collection.scan())
        rows, lat, lon = (np.concatenate([piece[part] for piece in pieces]) for part in range(3))
        order = np.argsort(rows)
        if not np.array_equal(rows[order], np.arange(self.count)):
            raise PlaceIndexError(
                f"Milvus gives {len(rows)} rows, the manifest says {self.count}",
                where=self.where,
                remedy="Publish the version again: sightfix index push",
            )
        return lat[order], lon[order]

    def references(self, rows: Sequence[int] | NDArray[np.int64]) -> list[Reference]:
        """As `SearchablePlaceIndex.references`."""
        wanted = np.asarray(rows, np.int64)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < self.count):
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} of {self.count}")
        root = Path(self.manifest.source.root)
        return [reference_of(one.record | {"lat": one.lat, "lon": one.lon}, root) for one in self._seen.get(wanted)]

    def row_of(self, reference_id: str) -> int:
        """As `SearchablePlaceIndex.row_of`."""
        found = self.collection.rows_where(f"id == {text(reference_id)}")
        if not found:
            raise IndexNotFoundError(
                f"the index {self.name} has no reference {reference_id!r}",
                remedy="Take a reference_id from an answer",
                code="reference_not_found",
            )
        self._seen.keep(found)
        return found[0].row

    def _ranked(
        self, queries: Descriptors, k: int, filter_: str, effort: int | None
    ) -> list[list[tuple[MilvusRow, float]]]:
        """Rows and cosines, best first."""
        exact = self._facts.scores_are_cosines
        wanted = k if exact else min(k * _RERANK, self._most_rows)
        answers = self.collection.search(queries, wanted, filter_, effort, descriptors=self._with_descriptors)
        for answer in answers:
            self._seen.keep(answer)
        if exact:
            return [[(one, one.score) for one in answer] for answer in answers]
        return [_by_cosine(query, answer) for query, answer in zip(queries, answers, strict=True)]

    def _within(self, query: Descriptors, k: int, prior: GeoPrior) -> list[tuple[MilvusRow, float]]:
        """The k best inside a prior."""
        box = filter_of(prior)
        searching = self.collection.searching
        if self._facts.effort is None:
            most = None
        elif self.collection.count(box) <= EXACT_PRIOR_ROWS:
            return self._scanned(query, k, prior, box)
        else:
            most = most_effort(searching.index_type, searching.build)
        wanted = min(_BOX_OVER_CIRCLE * k, self._most_rows)
        while True:
            answer = self._ranked(query[None], wanted, box, most)[0]
            inside = _inside(answer, prior)
            # An exact search that gave fewer than were asked for gave all there are.
            if len(inside) >= k or (most is None and len(answer) < wanted):
                return inside
            if wanted == self._most_rows or len(answer) < wanted:
                return self._scanned(query, k, prior, box)
            wanted = min(4 * wanted, self._most_rows)

    def _scanned(self, query: Descriptors, k: int, prior: GeoPrior, box: str) -> list[tuple[MilvusRow, float]]:
        """The k best inside a prior, all rows inside compared; only their descriptors are brought here."""
        best: list[tuple[MilvusRow, float]] = []
        for rows, lat, lon in self.collection.scan(box):
            near = rows[haversine_m(prior.lat, prior.lon, lat, lon) <= prior.radius_m]
            for start in range(0, len(near), _SCANNED_AT_ONCE):
                some = self.collection.rows(near[start : start + _SCANNED_AT_ONCE], descriptors=True)
                best = sorted([*best, *_by_cosine(query, list(some.values()))[:k]], key=lambda one: -one[1])[:k]
        self._seen.keep([one for one, _ in best])
        return best

    def _fetch(self, rows: list[int], descriptors: bool) -> list[MilvusRow]:
        found = self.collection.rows(rows, descriptors=descriptors)
        missing = [row for row in rows if row not in found]
        if missing:
            raise PlaceIndexError(
                f"Milvus has no row {missing[0]}" + (f" (and {len(missing) - 1} more)" if missing[1:] else ""),
                where=self.where,
                remedy="Publish the version again: sightfix index push",
            )
        return [found[row] for row in rows]


def _longitudes(centre: float, half: float) -> list[str]:
    if half >= 180.0:
        return []
    west, east = _wrapped(centre - half), _wrapped(centre + half)
    if west <= east:
        return [f"lon >= {_number(west)}", f"lon <= {_number(east)}"]
    return [f"(lon >= {_number(west)} or lon <= {_number(east)})"]


def _wrapped(lon: float) -> float:
    return (lon + 180.0) % 360.0 - 180.0


def _number(degrees: float) -> str:
    """Without an exponent, which not every parser of filters knows."""
    return f"{degrees:.9f}"


def _by_cosine(query: Descriptors, rows: Sequence[MilvusRow]) -> list[tuple[MilvusRow, float]]:
    """Rows with their descriptors' own cosines, best first."""
    described = [one for one in rows if one.descriptor is not None]
    if not described:
        return []
    cosines = np.stack([one.descriptor for one in described if one.descriptor is not None]) @ query
    return [(described[place], float(cosines[place])) for place in np.argsort(-cosines, kind="stable")]


def _inside(found: Sequence[tuple[MilvusRow, float]], prior: GeoPrior) -> list[tuple[MilvusRow, float]]:
    if not found:
        return []
    metres = haversine_m(
        prior.lat, prior.lon, np.array([one.lat for one, _ in found]), np.array([one.lon for one, _ in found])
    )
    return [one for one, near in zip(found, metres <= prior.radius_m, strict=True) if near]
