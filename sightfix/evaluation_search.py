"""What `sightfix evaluate` measures: photos of known position, localized in photos or an index as the server does."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape

from index_builder.calibration.calibrating import fit_calibration
from index_builder.calibration.queries import DescribedIndex, ReferenceIndex, calibration_photos_of
from index_builder.describing import (
    DescribedReferences,
    DescribeSettings,
    describe_references,
)
from retrieval.describer import Describer, Descriptors
from retrieval.errors import ImageError, ParameterError, ReferenceDataError, counted
from retrieval.evaluation import BeforeReranking, Fixes, Positions, Protocol, Ranked, exact_ranking
from retrieval.geo import Float64Array
from retrieval.images import LeftOut, UnreadableTally, read_image_bytes
from retrieval.index.manifest import BundleIdentity
from retrieval.index.place_index import PlaceIndex
from retrieval.index.searchable import SearchablePlaceIndex
from retrieval.localize.calibration import Calibration
from retrieval.localize.fix import Fix, FixStatus
from retrieval.localize.localizer import DecodedPhoto, LocalizeOptions, Localizer, Located
from retrieval.machine import available_cores, read_ahead
from retrieval.references import Reference, ReferenceSource, open_references
from retrieval.verification.verifier import RerankSettings
from sightfix.console import console, progress_bar

# Descriptors of one photo that was described twice.
_SAME_PHOTO: Final = 0.999


@dataclass(frozen=True)
class EvaluationRequest:
    """What to localize, and how.

    Attributes:
        queries: spec of photos of known position.
        out_of_area: spec of photos of other places, or None.
        calibrate: fit confidence to the database's own sessions, instead of taking the index's own calibration.
        rerank: how matches are re-ranked; not at all with None.
    """

    queries: str
    out_of_area: str | None
    calibrate: bool
    rerank: RerankSettings | None = None


@dataclass(frozen=True)
class LocalizedPhotos:
    """Photos that could be read, and what the localizer says of them.

    Attributes:
        references: Q photos of known position.
        descriptors: (Q, D) float32.
        rows, scores: (Q, K), their matches by score, best first, -1 and -inf where there are fewer.
        order: (Q, K) places in these, best first: another order where matches were re-ranked.
        outcomes: Q times status and fix; None where the database has no degrees.
        familiarity: (Q,) float64, or None where it was not measured.
    """

    references: Sequence[Reference]
    descriptors: Descriptors
    rows: NDArray[np.int64]
    scores: Float64Array
    order: NDArray[np.int64]
    outcomes: Sequence[tuple[FixStatus, Fix | None]] | None = None
    familiarity: Float64Array | None = None

    @classmethod
    def of(
        cls, references: Sequence[Reference], descriptors: Descriptors, localizations: Sequence[Located], k: int
    ) -> "LocalizedPhotos":
        """Results of the localizer as columns; k matches were searched for."""
        rows = np.full((len(localizations), k), -1, np.int64)
        scores = np.full(rows.shape, -np.inf)
        order = np.tile(np.arange(k), (len(rows), 1))
        for query, one in enumerate(localizations):
            count = len(one.ranking)
            rows[query, :count], scores[query, :count] = one.ranking.rows, one.ranking.scores
            order[query, :count] = one.ranking.order
        familiarity = [one.familiarity for one in localizations if one.familiarity is not None]
        return cls(
            references,
            descriptors,
            rows,
            scores,
            order,
            [(one.status, one.fix) for one in localizations],
            np.array(familiarity) if len(familiarity) == len(localizations) else None,
        )

    @property
    def fixes(self) -> Fixes | None:
        """The fixes as columns; None where there are none."""
        return None if self.outcomes is None else Fixes.of(self.outcomes, self.familiarity)

    @property
    def reported_rows(self) -> NDArray[np.int64]:
        """(Q, K), best first, in the order of answers."""
        return np.take_along_axis(self.rows, self.order, axis=1)

    @property
    def reported_scores(self) -> NDArray[np.float32]:
        """(Q, K), of `reported_rows`."""
        return np.take_along_axis(self.scores, self.order, axis=1).astype(np.float32)


@dataclass(frozen=True)
class Found:
    """Localized queries, and the database that they were looked for in.

    Attributes:
        queries: localized.
        database: positions of its N references.
        references_of: the references of some rows.
        elsewhere: localized photos of other places, or None.
        rerank: how matches were re-ranked; None where they were not.
        notes: what a reader of the figures must know.
    """

    queries: LocalizedPhotos
    database: Positions
    references_of: Callable[[NDArray[np.int64]], Sequence[Reference]]
    elsewhere: LocalizedPhotos | None
    rerank: RerankSettings | None
    notes: tuple[str, ...]

    def ranked(self) -> Ranked:
        """What is evaluated: matches in the order of answers, and a fix for every query where degrees are known."""
        positions = Positions.from_references(self.queries.references)
        fixes = None if positions.lat is None else self.queries.fixes
        elsewhere = None if self.elsewhere is None or fixes is None else self.elsewhere.fixes
        rerank = self.rerank
        before = None if rerank is None else BeforeReranking(self.queries.rows, rerank.top, rerank.min_inliers)
        sessions = [query.session for query in self.queries.references]
        return Ranked(self.database, positions, self.queries.reported_rows, fixes, sessions, elsewhere, before)

    def all_notes(self) -> list[str]:
        """The notes, and what makes the figures look better than they are."""
        notes = list(self.notes)
        same = int((self.queries.scores[:, 0] > _SAME_PHOTO).sum())
        if same:
            notes.append(f"{_queries(same)} a best match with a score above {_SAME_PHOTO}: the same photo, very likely")
        distinct, back = np.unique(self.queries.rows[:, 0], return_inverse=True)
        sessions = np.array([reference.session or "" for reference in self.references_of(distinct)], dtype=object)
        of_queries = np.array([query.session or "" for query in self.queries.references], dtype=object)
        own = int(((sessions[back.ravel()] == of_queries) & (of_queries != "")).sum())
        if own:
            notes.append(f"{_queries(own)} a best match of the same session: not a test of another day")
        return notes


def _queries(count: int) -> str:
    return counted(count, "query has", "queries have")


def search_photos(
    database: str, request: EvaluationRequest, describer: Describer, settings: DescribeSettings, protocol: Protocol
) -> Found:
    """Describe a database of photos and look for the queries in it, exactly.

    Args:
        database: a spec of the photos.
        request: what to look for.
        describer: of both.
        settings: how they are described.
        protocol: how many matches it wants.

    Raises:
        ReferenceDataError: a source without photos, or one that cannot be read.
    """
    described = describe_photos("Describing the database", database, describer, settings)
    positions = Positions.from_references(described.references)
    if positions.lat is None:
        return _search_plane(described, positions, request, describer, settings, protocol)
    bundle = BundleIdentity(name=describer.bundle.name, fingerprint=describer.bundle.fingerprint)
    index = DescribedIndex(described.references, described.descriptors, bundle)
    calibration, notes = _calibrated(index) if request.calibrate else (None, ())
    return _localized(index, positions, request, describer, settings, protocol, calibration, notes)


def search_index(
    place_index: SearchablePlaceIndex,
    request: EvaluationRequest,
    describer: Describer,
    settings: DescribeSettings,
    protocol: Protocol,
) -> Found:
    """Look for the queries in a published index.

    Args:
        place_index: which.
        request: what to look for.
        describer: of the bundle that the index was made with.
        settings: how queries are described.
        protocol: how many matches it wants.

    Raises:
        ModelIndexMismatchError: another bundle.
        ParameterError: a calibration is wanted of an index that is not in a folder.
        PlaceIndexError: re-ranking is wanted of an index without local features.
        ReferenceDataError: queries that cannot be read.
    """
    place_index.check_bundle(describer.bundle)
    calibration: Calibration | None = place_index.manifest.calibration
    notes: tuple[str, ...] = ()
    if request.calibrate:
        if not isinstance(place_index, PlaceIndex):
            raise ParameterError(
                "an index is calibrated where its files are",
                where=place_index.where,
                remedy="Leave out --calibrate, or give the folder: --indexes",
            )
        calibration, notes = _calibrated(place_index)
    if request.rerank is not None:
        order = "by score, as the calibration was measured" if calibration is not None else "in their new order"
        notes = (*notes, f"Fixes are made from the matches {order}")
    if protocol.convention != "solvable":
        stored = place_index.manifest.storage
        notes = (*notes, f"The matches come from the index's own search ({stored} vectors, cosine)")
    positions = Positions.from_degrees(*place_index.all_positions())
    return _localized(place_index, positions, request, describer, settings, protocol, calibration, notes)


def _localized(
    index: SearchablePlaceIndex,
    positions: Positions,
    request: EvaluationRequest,
    describer: Describer,
    settings: DescribeSettings,
    protocol: Protocol,
    calibration: Calibration | None,
    notes: tuple[str, ...],
) -> Found:
    localizer = Localizer(
        describer,
        index,
        limits=settings.limits,
        calibration=calibration,
        rerank=request.rerank,
        rerank_threads=available_cores(),
    )
    # One match is reported, for figures it is all the same: they read the whole ranking.
    options = LocalizeOptions(top_k=1, min_ranked=max(protocol.recall_at))
    queries = localize_photos("Localizing the queries", request.queries, localizer, options, settings)
    elsewhere = None
    if request.out_of_area is not None:
        what = "Localizing photos of other places"
        elsewhere = localize_photos(what, request.out_of_area, localizer, options, settings)
    if not request.calibrate and isinstance(index, PlaceIndex):
        notes = (*_calibrated_on(index, queries.descriptors), *notes)
    return Found(queries, positions, index.references, elsewhere, request.rerank, notes)


def _search_plane(
    described: DescribedReferences,
    positions: Positions,
    request: EvaluationRequest,
    describer: Describer,
    settings: DescribeSettings,
    protocol: Protocol,
) -> Found:
    """A database with positions in a plane only: matches without fixes."""
    queries = describe_photos("Describing the queries", request.queries, describer, settings)
    k = max(protocol.recall_at)
    with progress_bar("Searching", len(queries.references), "queries") as advance:
        rows, scores = exact_ranking(described.descriptors, queries.descriptors, k, advance)
    order = np.tile(np.arange(k), (len(rows), 1))
    found = LocalizedPhotos(queries.references, queries.descriptors, rows, scores.astype(np.float64), order)
    return Found(found, positions, lambda wanted: [described.references[row] for row in wanted], None, None, ())


def localize_photos(
    what: str, spec: str, localizer: Localizer, options: LocalizeOptions, settings: DescribeSettings
) -> LocalizedPhotos:
    """Localize all photos of a spec that have a position, with a progress bar; how many were left out is printed.

    Args:
        what: is being done, for the bar.
        spec: of the photos.
        localizer: of the index to look for them in.
        options: what to ask for each photo.
        settings: how many photos are described at once, and how many may be unreadable.

    Raises:
        ReferenceDataError: there is none, the source cannot be read, or too many photos are unreadable.
    """
    source = open_references(spec)
    references: list[Reference] = []
    descriptors: list[Descriptors] = []
    localizations: list[Located] = []
    tally = UnreadableTally(settings.max_unreadable)
    with progress_bar(what, len(source)) as advance:
        for batch in _decoded_batches(source, localizer, options, settings.batch_size):
            for reference, photo in batch:
                if isinstance(photo, ImageError):
                    tally.add(LeftOut.of(reference.path, photo))
            tally.check()
            photos = [photo for _, photo in batch if isinstance(photo, DecodedPhoto)]
            described = localizer.describer.describe([photo.image for photo in photos])
            localizations += localizer.locate(described, [photo.query for photo in photos])
            descriptors.append(described)
            references += [reference for reference, photo in batch if isinstance(photo, DecodedPhoto)]
            advance(len(batch))
    _check_found(references, source, tally.count)
    return LocalizedPhotos.of(references, np.concatenate(descriptors), localizations, localizer.searched(options))


def _decoded_batches(
    source: ReferenceSource, localizer: Localizer, options: LocalizeOptions, size: int
) -> Iterator[list[tuple[Reference, DecodedPhoto | ImageError]]]:
    """The photos of a source in batches of so many that could be decoded, with those in between that could not."""

    def decode(reference: Reference) -> tuple[Reference, DecodedPhoto | ImageError]:
        try:
            data = read_image_bytes(reference.path, localizer.limits)
            return reference, localizer.decode(data, options, where=str(reference.path))
        except ImageError as error:
            return reference, error

    batch: list[tuple[Reference, DecodedPhoto | ImageError]] = []
    for decoded in read_ahead(decode, source):
        batch.append(decoded)
        if sum(isinstance(photo, DecodedPhoto) for _, photo in batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def describe_photos(what: str, spec: str, describer: Describer, settings: DescribeSettings) -> DescribedReferences:
    """Describe all photos of a spec that have a position, with a progress bar; how many were left out is printed.

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
    _check_found(described.references, source, len(described.unreadable))
    return described


def _check_found(references: Sequence[Reference], source: ReferenceSource, unreadable: int) -> None:
    if not references:
        raise ReferenceDataError(
            "there is no photo with a position", where=source.spec, remedy="Check folder and filters"
        )
    left_out = len(source.skipped) + unreadable
    if left_out:
        photos, spec = counted(left_out, "photo"), escape(source.spec)
        console.print(f"[yellow]left out[/] {photos} of {spec}; see: sightfix inspect {spec}", soft_wrap=True)


def _calibrated(index: ReferenceIndex) -> tuple[Calibration | None, tuple[str, ...]]:
    with console.status("Calibrating"):
        calibration = fit_calibration(index)
    if calibration is None:
        return None, ("Not calibrated: too few references see what references of other sessions see",)
    taken = f"{counted(calibration.queries, 'reference')} of {calibration.groups} {calibration.held_out}"
    return calibration, (f"Calibrated on {taken}, each held out with its own",)


def _calibrated_on(index: PlaceIndex, descriptors: Descriptors) -> tuple[str, ...]:
    """What calibrating on photos has to do with these queries: (Q, D) float32."""
    calibration = index.manifest.calibration
    if calibration is None or calibration.held_out != "photos":
        return ()
    photos = calibration_photos_of(index.folder, index.manifest.bundle.fingerprint)
    if photos is None:
        return ()
    same = int(((descriptors @ photos.descriptors.T).max(axis=1) > _SAME_PHOTO).sum())
    given = f"Calibrated on {counted(photos.count, 'photo')} given for it"
    return (f"{given}; {same} of the queries are among them: no test of confidence" if same else given,)
