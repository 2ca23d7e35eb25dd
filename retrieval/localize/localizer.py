"""From a photo to its matches, its position fix and how far to trust it: describer, place index and fix together."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, Self

from retrieval.describer import Describer, Descriptors
from retrieval.errors import ParameterError
from retrieval.geo import Float64Array, GeoPrior
from retrieval.images import DEFAULT_LIMITS, ImageLimits, RgbImage, decode_image, read_image_bytes
from retrieval.index.searchable import SearchablePlaceIndex, SearchResult
from retrieval.localize.calibration import Calibration
from retrieval.localize.evidence import FixSettings
from retrieval.localize.fix import Fix, FixMaker, FixStatus, Ranking
from retrieval.machine import read_ahead
from retrieval.references.reference import Reference
from retrieval.verification.verifier import QueryFeatures, Reranker, RerankSettings, require_features

MAX_TOP_K: Final = 100


@dataclass(frozen=True, slots=True)
class LocalizeOptions:
    """What to ask for one photo.

    Attributes:
        top_k: how many matches to report, 1 to 100.
        geo_prior: where the answer must lie, or None.
        min_score: matches below this cosine are not reported, -1 to 1, or None; when none is left, it is NO_MATCH.
        min_ranked: so many matches are searched for at least, however few are reported.

    Raises:
        ParameterError: top_k or min_score outside its range.
    """

    top_k: int = 10
    geo_prior: GeoPrior | None = None
    min_score: float | None = None
    min_ranked: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= MAX_TOP_K:
            raise ParameterError(f"top_k {self.top_k} is outside [1, {MAX_TOP_K}]", remedy="Ask for 1 to 100 matches")
        if self.min_score is not None and not -1.0 <= self.min_score <= 1.0:
            raise ParameterError(f"min_score {self.min_score} is outside [-1, 1]", remedy="Give a cosine, or none")


def new_request_id() -> str:
    """A random request id, 128 bits in hex."""
    return secrets.token_hex(16)


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked for one photo, or one descriptor.

    Attributes:
        options: what to ask for.
        request_id: names it in answers and logs.
        decode_ms: how long decoding took; 0 for a descriptor.
        features: the photo's local features, to re-rank by; None without.
    """

    options: LocalizeOptions = field(default_factory=LocalizeOptions)
    request_id: str = field(default_factory=new_request_id)
    decode_ms: float = 0.0
    features: QueryFeatures | None = None


@dataclass(frozen=True, slots=True)
class DecodedPhoto:
    """A photo ready to be described, and what is asked for it."""

    image: RgbImage
    query: Query = field(default_factory=Query)


@dataclass(frozen=True, slots=True)
class Match:
    """One reported match.

    Attributes:
        row: of the reference in the place index.
        reference: with its position.
        score: cosine of the descriptors, as the index stores them.
        inliers: how many points of the photo fit the reference in one geometry; None where that was not counted.
    """

    row: int
    reference: Reference
    score: float
    inliers: int | None


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, milliseconds. Parts that did not happen are 0, or None for re-ranking."""

    decode_ms: float
    describe_ms: float
    search_ms: float
    rerank_ms: float | None
    fix_ms: float
    queue_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Located:
    """Where a photo was taken: the result that servers, commands and evaluations translate.

    Attributes:
        request_id: of the query.
        status: what the matches allow to say.
        fix: the position estimate; None with NO_MATCH.
        matches: the reported ones, best first.
        ranking: all that were found and not below `min_score`; at least as many as are reported.
        familiarity: how much the photo looks like what it was compared with; see `FixMaker.familiarity`.
        timings: of the parts of the work.
        describer: that described the photo.
        place_index: that the rows are of.
    """

    request_id: str
    status: FixStatus
    fix: Fix | None
    matches: tuple[Match, ...]
    ranking: Ranking
    familiarity: float
    timings: Timings
    describer: Describer
    place_index: SearchablePlaceIndex

    def timed(self, *, queue_ms: float, total_ms: float) -> Self:
        """The same with how long the photo waited for the model, and how long everything took."""
        return replace(self, timings=replace(self.timings, queue_ms=queue_ms, total_ms=total_ms))


class Localizer:
    """Localizes photos against one place index.

    Args:
        describer: of the bundle that the index was made with.
        place_index: what to search.
        fix_settings: how the fix is made from the matches.
        limits: of encoded images.
        calibration: how far to trust fixes; the index's own by default.
        rerank: how photos' matches are re-ranked; not at all if left out, nor where only a descriptor is given.
        rerank_threads: that compare the matches of a batch of photos; a server shares its cores with other work.

    Raises:
        PlaceIndexError: re-ranking is wanted, and the index holds no local features (``no_local_features``).
        MissingExtraError: re-ranking is wanted, and OpenCV is not installed.
        ModelIndexMismatchError: the index was described with another bundle.
    """

    def __init__(
        self,
        describer: Describer,
        place_index: SearchablePlaceIndex,
        fix_settings: FixSettings | None = None,
        limits: ImageLimits = DEFAULT_LIMITS,
        calibration: Calibration | Literal["own"] | None = "own",
        rerank: RerankSettings | None = None,
        *,
        rerank_threads: int = 1,
    ) -> None:
        place_index.check_bundle(describer.bundle)
        self.reranker = (
            Reranker(require_features(place_index.local_features, place_index.where), rerank) if rerank else None
        )
        self.describer = describer
        self.place_index = place_index
        self.limits = limits
        self._rerank_threads = rerank_threads
        self.fix_maker = FixMaker(
            place_index,
            fix_settings or FixSettings(),
            place_index.manifest.calibration if calibration == "own" else calibration,
        )

    def decode(
        self,
        data: bytes,
        options: LocalizeOptions | None = None,
        request_id: str | None = None,
        where: str | None = None,
    ) -> DecodedPhoto:
        """Decode one encoded photo. Safe to call from many threads.

        Raises:
            ImageError: see `decode_image`.
        """
        started = time.perf_counter()
        image = decode_image(data, self.describer.bundle.preprocessing, self.limits, where=where)
        features = self.reranker.decode(data, self.limits, where=where) if self.reranker else None
        decode_ms = _ms_since(started)
        return DecodedPhoto(
            image, Query(options or LocalizeOptions(), request_id or new_request_id(), decode_ms, features)
        )

    def localize(self, photos: Sequence[DecodedPhoto]) -> list[Located]:
        """Localize a batch of photos, in order."""
        if not photos:
            return []
        started = time.perf_counter()
        descriptors = self.describer.describe([photo.image for photo in photos])
        return self.locate(descriptors, [photo.query for photo in photos], _ms_since(started))

    def localize_file(self, path: Path, options: LocalizeOptions | None = None) -> Located:
        """Localize one photo on disk.

        Raises:
            ImageError: see `read_image`.
        """
        return self.localize([self.decode(read_image_bytes(path, self.limits), options, where=str(path))])[0]

    def searched(self, options: LocalizeOptions) -> int:
        """How many matches are searched for: the fix always sees enough, however few are reported."""
        compared = self.reranker.settings.top if self.reranker else 1
        return max(self.fix_maker.settings.matches_needed, compared, options.top_k, options.min_ranked)

    def locate(self, descriptors: Descriptors, queries: Sequence[Query], describe_ms: float = 0.0) -> list[Located]:
        """Localize photos by their descriptors, in order.

        Args:
            descriptors: (N, D) float32, unit rows, of the bundle that the index was made with.
            queries: what to ask for each.
            describe_ms: how long describing took.

        Raises:
            ParameterError: descriptors of another length.
        """
        if not queries:
            return []
        started = time.perf_counter()
        k = max(self.searched(query.options) for query in queries)
        stored = self.place_index.whitened(descriptors)
        found = self.place_index.search_whitened(stored, k, [query.options.geo_prior for query in queries])
        search_ms = _ms_since(started)
        centred = self.fix_maker.centred(stored, found.rows)
        rankings = self._rankings(queries, found)
        return [self._localized(*each, describe_ms, search_ms) for each in zip(queries, rankings, centred, strict=True)]

    def _rankings(self, queries: Sequence[Query], found: SearchResult) -> list[tuple[Ranking, float | None]]:
        """The matches of each photo, and how many milliseconds re-ranking took; None without."""

        def ranked(place: int) -> tuple[Ranking, float | None]:
            rows, scores, features = found.rows[place], found.scores[place], queries[place].features
            if self.reranker is None or features is None:
                return self.fix_maker.ranking(rows, scores), None
            started = time.perf_counter()
            matched = rows[rows >= 0]
            inliers = self.reranker.inliers(features, matched)
            order = self.reranker.order(inliers, len(matched))
            return self.fix_maker.ranking(rows, scores, inliers, order), _ms_since(started)

        places = range(len(queries))
        if self.reranker is None or self._rerank_threads == 1:
            return [ranked(place) for place in places]
        return list(read_ahead(ranked, places, threads=self._rerank_threads))

    def _localized(
        self,
        query: Query,
        ranked: tuple[Ranking, float | None],
        centred: Float64Array | None,
        describe_ms: float,
        search_ms: float,
    ) -> Located:
        started = time.perf_counter()
        ranking, rerank_ms = ranked
        min_score = query.options.min_score
        status, fix = self.fix_maker.fix(ranking, centred, min_score)
        familiarity = self.fix_maker.familiarity(ranking, centred)
        kept = ranking.at_least(min_score)
        matches = self._matches(kept, query.options.top_k)
        fix_ms = _ms_since(started)
        total_ms = query.decode_ms + describe_ms + search_ms + (rerank_ms or 0.0) + fix_ms
        return Located(
            request_id=query.request_id,
            status=status,
            fix=fix,
            matches=matches,
            ranking=kept,
            familiarity=familiarity,
            timings=Timings(query.decode_ms, describe_ms, search_ms, rerank_ms, fix_ms, total_ms=total_ms),
            describer=self.describer,
            place_index=self.place_index,
        )

    def _matches(self, ranking: Ranking, top_k: int) -> tuple[Match, ...]:
        counted = [] if ranking.inliers is None else ranking.inliers.tolist()
        best = ranking.order[:top_k]
        rows = ranking.rows[best]
        return tuple(
            Match(int(row), reference, float(ranking.scores[place]), counted[place] if place < len(counted) else None)
            for row, reference, place in zip(rows, self.place_index.references(rows), best, strict=True)
        )


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1e3
