"""Describer, place index and fix together: the whole answer for a batch of photos."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from retrieval.describer import Describer, Descriptors
from retrieval.errors import ParameterError
from retrieval.geo import GeoPrior
from retrieval.images import DEFAULT_LIMITS, ImageLimits, RgbImage, decode_image, read_image_bytes
from retrieval.index.searchable import SearchablePlaceIndex
from retrieval.localize.answer import FixAnswer, IndexAnswer, LocalizeAnswer, MatchAnswer, ModelAnswer, TimingsAnswer
from retrieval.localize.evidence import centre_of, centred_cosines
from retrieval.localize.fix import Calibration, Fix, FixSettings, FixStatus, make_fix
from retrieval.references.reference import Reference
from retrieval.reranking.reranker import QueryFeatures, Reranker, RerankSettings, require_features

MAX_TOP_K: Final = 100


@dataclass(frozen=True, slots=True)
class LocalizeOptions:
    """What to ask for one photo.

    Attributes:
        top_k: how many matches to return, 1 to 100.
        geo_prior: where the answer must lie, or None.
        min_score: matches below this cosine are not told, -1 to 1, or None; when none is left, it is NO_MATCH.

    Raises:
        ParameterError: top_k or min_score outside its range.
    """

    top_k: int = 10
    geo_prior: GeoPrior | None = None
    min_score: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= MAX_TOP_K:
            raise ParameterError(f"top_k {self.top_k} is outside [1, {MAX_TOP_K}]", remedy="Ask for 1 to 100 matches")
        if self.min_score is not None and not -1.0 <= self.min_score <= 1.0:
            raise ParameterError(f"min_score {self.min_score} is outside [-1, 1]", remedy="Give a cosine, or none")


@dataclass(frozen=True, slots=True)
class DecodedQuery:
    """A photo ready to be described, what is asked of it, how long decoding took, and features to re-rank by."""

    image: RgbImage
    options: LocalizeOptions = field(default_factory=LocalizeOptions)
    decode_ms: float = 0.0
    request_id: str = field(default_factory=lambda: new_request_id())
    features: QueryFeatures | None = None


@dataclass(frozen=True, slots=True)
class Located:
    """An answer, and what it was made from.

    Attributes:
        answer: for one photo.
        rows: (K,) int64, rows of the matches in the place index, by cosine; at least as many as were told.
        scores: (K,) float64, their cosines.
        place_index: that they are rows of.
    """

    answer: LocalizeAnswer
    rows: NDArray[np.int64]
    scores: NDArray[np.float64]
    place_index: SearchablePlaceIndex


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is asked of one descriptor, and what it has cost until now."""

    options: LocalizeOptions
    request_id: str
    decode_ms: float = 0.0
    describe_ms: float = 0.0
    features: QueryFeatures | None = None


class Localizer:
    """Localizes photos against one place index.

    Args:
        describer: of the bundle that the index was made with.
        place_index: what to search.
        fix_settings: how the fix is made from the matches.
        limits: of encoded images.
        calibration: how far to trust fixes; the index's own if left out.
        rerank: how photos' matches are re-ranked; not at all if left out, nor where only a descriptor is given.

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
        calibration: Calibration | None = None,
        rerank: RerankSettings | None = None,
    ) -> None:
        place_index.check_bundle(describer.bundle)
        self.reranker = (
            Reranker(require_features(place_index.local_features, place_index.where), rerank) if rerank else None
        )
        self.describer = describer
        self.place_index = place_index
        self.fix_settings = fix_settings or FixSettings()
        self.limits = limits
        measured = calibration or place_index.manifest.calibration
        self.calibration = measured if measured and measured.holds_for(self.fix_settings) else None
        self._centre = centre_of(place_index) if self.calibration else None
        bundle, manifest, computes = describer.bundle, place_index.manifest, describer.description
        self.model_answer = ModelAnswer(
            name=bundle.name,
            fingerprint=bundle.fingerprint,
            precision=computes.precision,
            provider=computes.provider,
            runtime=computes.runtime,
            device=computes.device,
        )
        self.index_answer = IndexAnswer(
            name=manifest.name, version=manifest.version, size=manifest.count, type=place_index.type_name
        )

    def decode(
        self,
        data: bytes,
        options: LocalizeOptions | None = None,
        request_id: str | None = None,
        where: str | None = None,
    ) -> DecodedQuery:
        """Decode one encoded photo. Safe to call from many threads.

        Raises:
            ImageError: see `decode_image`.
        """
        started = time.perf_counter()
        image = decode_image(data, self.describer.bundle.preprocessing, self.limits, where=where)
        features = self.reranker.decode(data, self.limits, where=where) if self.reranker else None
        return DecodedQuery(
            image, options or LocalizeOptions(), _ms_since(started), request_id or new_request_id(), features
        )

    def localize(self, queries: Sequence[DecodedQuery]) -> list[LocalizeAnswer]:
        """Answer a batch of photos, in order."""
        return [located.answer for located in self.located(queries)]

    def located(self, queries: Sequence[DecodedQuery], at_least: int = 1) -> list[Located]:
        """Answer a batch of photos, in order, and say what the answers were made from.

        Args:
            queries: the photos.
            at_least: so many matches are looked for, however few are asked for.
        """
        if not queries:
            return []
        started = time.perf_counter()
        descriptors = self.describer.describe([query.image for query in queries])
        describe_ms = _ms_since(started)
        asked = [
            _Asked(query.options, query.request_id, query.decode_ms, describe_ms, query.features) for query in queries
        ]
        return self._locate(descriptors, asked, at_least)

    def locate(
        self, descriptors: Descriptors, options: Sequence[LocalizeOptions], request_ids: Sequence[str]
    ) -> list[LocalizeAnswer]:
        """Answer for photos that were described elsewhere, in order.

        Args:
            descriptors: (N, D) float32, unit rows, of the bundle that the index was made with.
            options: what to ask for each.
            request_ids: of each.

        Raises:
            ParameterError: descriptors of another length.
        """
        asked = [_Asked(*pair) for pair in zip(options, request_ids, strict=True)]
        return [located.answer for located in self._locate(descriptors, asked)] if asked else []

    def _locate(self, descriptors: Descriptors, asked: Sequence["_Asked"], at_least: int = 1) -> list[Located]:
        searched = time.perf_counter()
        # The fix always sees enough matches, however few the client wants to be told.
        k = max(self.fix_settings.matches_needed, at_least, *(one.options.top_k for one in asked))
        k = max(k, self.reranker.settings.top) if self.reranker else k
        found = self.place_index.search(descriptors, k, [one.options.geo_prior for one in asked])
        search_ms = _ms_since(searched)
        centred = self._centred(descriptors, found.rows)
        return [
            self._answer(one, found.rows[place], found.scores[place], centred[place], search_ms)
            for place, one in enumerate(asked)
        ]

    def _compared(self, asked: "_Asked", rows: NDArray[np.int64]) -> tuple[NDArray[np.int64] | None, float | None]:
        """Inliers of the best matches of a photo, and how many milliseconds that took; None and None without."""
        if self.reranker is None or asked.features is None:
            return None, None
        started = time.perf_counter()
        return self.reranker.inliers(asked.features, rows), _ms_since(started)

    def _centred(self, descriptors: Descriptors, rows: NDArray[np.int64]) -> list[NDArray[np.float64] | None]:
        """Centred cosines of the best matches of each photo; None where nothing needs them."""
        if self._centre is None:
            return [None] * len(rows)
        best = np.maximum(rows[:, : self.fix_settings.matches_needed], 0)
        matched = self.place_index.descriptors(best.ravel()).reshape(*best.shape, -1)
        return list(centred_cosines(self.place_index.whitened(descriptors), matched, self._centre))

    def localize_file(self, path: Path, options: LocalizeOptions | None = None) -> LocalizeAnswer:
        """Answer for one photo on disk.

        Raises:
            ImageError: see `read_image`.
        """
        return self.localize([self.decode(read_image_bytes(path, self.limits), options, where=str(path))])[0]

    def _answer(
        self,
        asked: "_Asked",
        rows: NDArray[np.int64],
        scores: NDArray[np.float32],
        centred: NDArray[np.float64] | None,
        search_ms: float,
    ) -> Located:
        found = rows >= 0
        inliers, rerank_ms = self._compared(asked, rows[found])
        started = time.perf_counter()
        rows, cosines = rows[found], np.clip(scores[found].astype(np.float64), -1.0, 1.0)
        minimum = asked.options.min_score
        kept = cosines >= (-np.inf if minimum is None else minimum)
        if kept.any():
            # All matches speak for the fix or against it, told or not: that is how its confidence was measured.
            status, fix = self._fix(self._rows_of_fix(rows, inliers), cosines, centred)
        else:
            status, fix = FixStatus.NO_MATCH, None
        rows, cosines = rows[kept], cosines[kept]
        index = self.place_index
        matches = self._matches(rows, cosines, asked.options.top_k, inliers)
        fix_ms = _ms_since(started)
        answer = LocalizeAnswer(
            request_id=asked.request_id,
            status=status,
            fix=_fix_answer(fix) if fix else None,
            matches=matches,
            model=self.model_answer,
            index=self.index_answer,
            timings_ms=TimingsAnswer(
                decode=asked.decode_ms,
                describe=asked.describe_ms,
                search=search_ms,
                rerank=rerank_ms,
                fix=fix_ms,
                total=asked.decode_ms + asked.describe_ms + search_ms + (rerank_ms or 0.0) + fix_ms,
            ),
        )
        return Located(answer, rows, cosines, index)

    def _matches(
        self,
        rows: NDArray[np.int64],
        cosines: NDArray[np.float64],
        top_k: int,
        inliers: NDArray[np.int64] | None,
    ) -> list[MatchAnswer]:
        """What is told of the matches: by cosine, or by inliers and then by cosine where these were counted."""
        counted = [] if inliers is None else inliers[: len(rows)].tolist()
        order = np.arange(len(rows))
        if self.reranker is not None and inliers is not None:
            order = self.reranker.order(inliers[: len(rows)], len(rows))
        order = order[:top_k]
        references = self.place_index.references(rows[order])
        return [
            _match_answer(rank, reference, float(cosines[place]), counted[place] if place < len(counted) else None)
            for rank, (reference, place) in enumerate(zip(references, order, strict=True), start=1)
        ]

    def _rows_of_fix(self, rows: NDArray[np.int64], inliers: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """The matches in the order in which they weigh in the fix: the first takes the best cosine's weight.

        A calibration was measured on fixes of matches by cosine; as long as there is one, so are these. Where there is
        none to lose, the new order makes the better fix.
        """
        if self.reranker is None or self.calibration is not None:
            return rows
        return rows[self.reranker.order(inliers, len(rows))]

    def _fix(
        self, rows: NDArray[np.int64], cosines: NDArray[np.float64], centred: NDArray[np.float64] | None
    ) -> tuple[FixStatus, Fix | None]:
        best = rows[: self.fix_settings.matches_needed]
        return make_fix(
            *self.place_index.positions(best),
            cosines[: len(best)] / self.place_index.score_stretch,
            self.fix_settings,
            None if centred is None else centred[: len(best)],
            self.calibration,
        )


def new_request_id() -> str:
    """A random request id, 128 bits in hex."""
    return secrets.token_hex(16)


def _match_answer(rank: int, reference: Reference, score: float, inliers: int | None) -> MatchAnswer:
    assert reference.position is not None, "a place index holds positions only"
    return MatchAnswer(
        rank=rank,
        reference_id=reference.id,
        lat=reference.position.lat,
        lon=reference.position.lon,
        score=score,
        heading=reference.heading_deg,
        captured_at=reference.captured_at,
        session=reference.session,
        thumbnail=_thumbnail(reference.id),
        inliers=inliers,
    )


def _thumbnail(reference_id: str) -> str:
    """Where the server has a small version of a reference photo."""
    # Browsers and proxies resolve dots and drop empty parts in a path, escaped or not.
    if any(part in ("", ".", "..") for part in reference_id.split("/")):
        return f"/references/image?id={quote(reference_id, safe='')}"
    return f"/references/{quote(reference_id, safe='/')}/image"


def _fix_answer(fix: Fix) -> FixAnswer:
    return FixAnswer(
        lat=fix.position.lat,
        lon=fix.position.lon,
        radius_m=fix.radius_m,
        confidence=fix.confidence,
        calibrated=fix.calibrated,
        covariance_enu=fix.covariance_enu,
        method=fix.method,
        support=fix.support,
    )


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1e3
