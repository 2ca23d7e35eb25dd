"""Photos that a command was given, described."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape

from index_builder.calibrating import fit_calibration
from index_builder.calibration_queries import DescribedIndex, DescribedVectors, ReferenceIndex, calibration_photos_of
from index_builder.describing import DescribedReferences, DescribeSettings, describe_references
from retrieval.describer import Describer, Descriptors
from retrieval.errors import ParameterError, ReferenceDataError
from retrieval.evaluation import BeforeReranking, Fixes, Positions, Protocol, Ranked, exact_ranking, fixes_of_matches
from retrieval.index.place_index import PlaceIndex
from retrieval.index.searchable import PlaceIndexStore
from retrieval.localize.evidence import StoredDescriptors, centre_of, centred_cosines
from retrieval.localize.fix import Calibration, FixSettings
from retrieval.references import Reference, open_references
from retrieval.reranking.reranker import Reranker, RerankSettings, require_features, rerank_photos
from sightfix.console import console, progress_bar


def describe_photos(what: str, spec: str, describer: Describer, settings: DescribeSettings) -> DescribedReferences:
    """Describe all photos of a spec that have a position, with a progress bar; how many were left out is said.

    Args:
        what: is being done, for the bar.
        spec: of the photos.
        describer: that describes them.
        settings: how.

    Raises:
        ReferenceDataError: there is none, the source cannot be read, or too many photos are unreadable.
    """
    source = open_references(spec)
    with progress_bar(what, len(source)) as advance:
        described = describe_references(source, describer, settings, advance)
    if not described.references:
        raise ReferenceDataError("there is no photo with a position", where=spec, remedy="Check folder and filters")
    left_out = len(source.skipped) + len(described.unreadable)
    if left_out:
        console.print(
            f"[yellow]left out[/] {left_out} photos of {escape(spec)}; see: sightfix inspect {escape(spec)}",
            soft_wrap=True,
        )
    return described


# What `sightfix evaluate` looks for and finds: queries, their matches in photos or in an index, and fixes of them.

_SAME_PHOTO: Final = 0.999

_QUERIES_AT_ONCE: Final = 256


@dataclass(frozen=True)
class Asked:
    """What to localize, and how."""

    queries: str
    out_of_area: str | None
    calibrate: bool
    rerank: RerankSettings | None = None


@dataclass(frozen=True)
class Matches:
    """What was found for some photos.

    Attributes:
        rows, scores: (Q, K), best first.
        centred: (Q, k) centred cosines of the first of them.
        order: (Q, K) places in these, best first after re-ranking; None where nothing was re-ranked.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    centred: NDArray[np.float64]
    order: NDArray[np.int64] | None = None

    def in_order(self, values: NDArray[Any]) -> NDArray[Any]:
        """Rows or scores as they are told: re-ranked, where that was asked for."""
        return values if self.order is None else np.take_along_axis(values, self.order, axis=1)


@dataclass(frozen=True)
class Found:
    """Queries and what was found for them."""

    queries: Sequence[Reference]
    query_positions: Positions
    database_positions: Positions
    references: Callable[[NDArray[np.int64]], Sequence[Reference]]
    matches: Matches
    elsewhere: Matches | None = None
    calibration: Calibration | None = None
    search_notes: tuple[str, ...] = ()
    rerank: RerankSettings | None = None

    def ranked(self) -> Ranked:
        """The ranking with a fix for every query, where degrees are known."""
        fixes = None
        if self.query_positions.lat is not None and self.database_positions.lat is not None:
            fixes = self._fixes("Making fixes", self.matches)
        sessions = [query.session for query in self.queries]
        elsewhere = None if self.elsewhere is None or fixes is None else self._fixes("and elsewhere", self.elsewhere)
        rows, how = self.matches.rows, self.rerank
        before = None if how is None else BeforeReranking(rows, how.top, how.min_inliers)
        told = self.matches.in_order(rows)
        return Ranked(self.database_positions, self.query_positions, told, fixes, sessions, elsewhere, before)

    def _fixes(self, what: str, matches: Matches) -> Fixes:
        with progress_bar(what, len(matches.rows), "fixes") as advance:
            return fixes_of_matches(
                self.database_positions,
                # As the localizer does: what was calibrated stays by score, what was not follows the new order.
                matches.rows if self.calibration is not None else matches.in_order(matches.rows),
                matches.scores,
                on_progress=advance,
                centred=matches.centred,
                calibration=self.calibration,
            )

    def notes(self) -> list[str]:
        """What makes the numbers look better than they are."""
        notes = list(self.search_notes)
        same = int((self.matches.scores[:, 0] > _SAME_PHOTO).sum())
        if same:
            notes.append(f"{_queries(same)} a best match with a score above {_SAME_PHOTO}: the same photo, very likely")
        distinct, back = np.unique(self.matches.rows[:, 0], return_inverse=True)
        sessions = np.array([reference.session or "" for reference in self.references(distinct)], dtype=object)
        of_queries = np.array([query.session or "" for query in self.queries], dtype=object)
        own = int(((sessions[back.ravel()] == of_queries) & (of_queries != "")).sum())
        if own:
            notes.append(f"{_queries(own)} a best match of the same session: not a test of another day")
        return notes


def _queries(count: int) -> str:
    return "1 query has" if count == 1 else f"{count} queries have"


def search_photos(
    database: str, asked: Asked, describer: Describer, settings: DescribeSettings, protocol: Protocol
) -> Found:
    """Describe a database of photos and look for the queries in it, exactly.

    Args:
        database: a spec of the photos.
        asked: what to look for.
        describer: of both.
        settings: how they are described.
        protocol: how many matches it wants.

    Raises:
        ReferenceDataError: a source without photos, or one that cannot be read.
    """
    described = describe_photos("Describing the database", database, describer, settings)
    positions = Positions.from_references(described.references)
    stored = DescribedVectors(described.descriptors)
    index = DescribedIndex(described.references, described.descriptors) if positions.lat is not None else None

    def search(descriptors: Descriptors) -> Matches:
        with progress_bar("Searching", len(descriptors), "queries") as advance:
            rows, scores = exact_ranking(described.descriptors, descriptors, _matches_needed(protocol), advance)
        return _with_centred(stored, rows, scores, descriptors)

    queries = describe_photos("Describing the queries", asked.queries, describer, settings)
    calibration, notes = _calibrated(index) if asked.calibrate and index is not None else (None, ())
    return Found(
        queries.references,
        Positions.from_references(queries.references),
        positions,
        lambda wanted: [described.references[row] for row in wanted],
        search(queries.descriptors),
        _elsewhere(asked, describer, settings, search),
        calibration,
        notes,
    )


def search_index(
    store: PlaceIndexStore,
    name: str | None,
    asked: Asked,
    describer: Describer,
    settings: DescribeSettings,
    protocol: Protocol,
) -> Found:
    """Look for the queries in a published index, through its own search.

    Args:
        store: where it is.
        name: of the index; None: the only one.
        asked: what to look for.
        describer: of the bundle that the index was made with.
        settings: how queries are described.
        protocol: how many matches it wants.

    Raises:
        ModelIndexMismatchError: another bundle.
        ParameterError: a calibration is wanted of an index that is not in a folder.
        PlaceIndexError: re-ranking is wanted of an index without local features.
        ReferenceDataError: queries that cannot be read.
    """
    place_index = store.open(store.find(name))
    place_index.check_bundle(describer.bundle)
    if asked.calibrate and not isinstance(place_index, PlaceIndex):
        raise ParameterError(
            "an index is calibrated where its files are",
            where=store.where,
            remedy="Leave out --calibrate, or give the folder: --indexes",
        )
    reranker = None
    if asked.rerank is not None:
        reranker = Reranker(require_features(place_index.local_features, place_index.where), asked.rerank)

    matches_needed = max(_matches_needed(protocol), asked.rerank.top if asked.rerank else 0)

    def search(descriptors: Descriptors) -> Matches:
        pieces = []
        with progress_bar("Searching", len(descriptors), "queries") as advance:
            for begin in range(0, len(descriptors), _QUERIES_AT_ONCE):
                some = descriptors[begin : begin + _QUERIES_AT_ONCE]
                pieces.append(place_index.search(some, matches_needed))
                advance(len(some))
        rows = np.concatenate([piece.rows for piece in pieces])
        scores = np.concatenate([piece.scores for piece in pieces])
        return _with_centred(place_index, rows, scores, place_index.whitened(descriptors))

    queries = describe_photos("Describing the queries", asked.queries, describer, settings)
    calibration: Calibration | None = place_index.manifest.calibration
    notes: tuple[str, ...] = ()
    if isinstance(place_index, PlaceIndex) and asked.calibrate:
        calibration, notes = _calibrated(place_index)
    elif isinstance(place_index, PlaceIndex) and calibration is not None and calibration.held_out == "photos":
        notes = _calibrated_on(place_index, queries.descriptors)
    matches = search(queries.descriptors)
    if reranker is not None:
        matches = replace(matches, order=_reranked(reranker, queries.references, matches.rows))
        order = "by score, as the calibration was measured" if calibration is not None else "in their new order"
        notes = (*notes, f"Fixes are made from the matches {order}")
    if protocol.convention != "solvable":
        stored = place_index.manifest.storage
        notes = (*notes, f"The matches come from the index's own search ({stored} vectors, cosine)")
    return Found(
        queries.references,
        Positions.from_references(queries.references),
        Positions.from_degrees(*place_index.all_positions()),
        place_index.references,
        matches,
        _elsewhere(asked, describer, settings, search),
        calibration,
        notes,
        asked.rerank,
    )


def _reranked(reranker: Reranker, queries: Sequence[Reference], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The new order of each query's matches, (Q, K) places."""
    with progress_bar("Re-ranking", len(queries), "queries") as advance:
        return rerank_photos(reranker, [query.path for query in queries], rows, on_progress=advance)


def _elsewhere(
    asked: Asked, describer: Describer, settings: DescribeSettings, search: Callable[[Descriptors], Matches]
) -> Matches | None:
    if asked.out_of_area is None:
        return None
    described = describe_photos("Describing photos of other places", asked.out_of_area, describer, settings)
    return search(described.descriptors)


def _calibrated(index: ReferenceIndex) -> tuple[Calibration | None, tuple[str, ...]]:
    with console.status("Calibrating"):
        calibration = fit_calibration(index)
    if calibration is None:
        return None, ("Not calibrated: too few references see what references of other sessions see",)
    taken = f"{calibration.queries} references of {calibration.groups} {calibration.held_out}"
    return calibration, (f"Calibrated on {taken}, each held out with its own",)


def _calibrated_on(index: PlaceIndex, descriptors: Descriptors) -> tuple[str, ...]:
    """What calibrating on photos has to do with these queries: (Q, D) float32."""
    photos = calibration_photos_of(index.folder, index.manifest.bundle.fingerprint)
    if photos is None:
        return ()
    same = int(((descriptors @ photos.descriptors.T).max(axis=1) > _SAME_PHOTO).sum())
    given = f"Calibrated on {photos.count} photos that were given for it"
    return (f"{given}; {same} of the queries are among them: no test of confidence" if same else given,)


def _with_centred(
    index: StoredDescriptors,
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    descriptors: Descriptors,
) -> Matches:
    """Matches with the centred cosines that confidence needs."""
    centre, best = centre_of(index), rows[:, : FixSettings().matches_needed]
    centred = np.empty(best.shape)
    for begin in range(0, len(best), _QUERIES_AT_ONCE):
        some = slice(begin, begin + _QUERIES_AT_ONCE)
        matched = index.descriptors(np.maximum(best[some], 0).ravel()).reshape(*best[some].shape, -1)
        centred[some] = np.where(best[some] < 0, -1.0, centred_cosines(descriptors[some], matched, centre))
    return Matches(rows, scores, centred)


def _matches_needed(protocol: Protocol) -> int:
    return max(*protocol.recall_at, FixSettings().matches_needed)
