"""Re-ranking: matches that show the same scene as the photo, point by point, then those that only look similar.

Points of two photos are paired by their descriptors, and the pairs that fit one homography are counted: the inliers.
"""

from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ParameterError, PlaceIndexError
from retrieval.images import DEFAULT_LIMITS, ImageLimits
from retrieval.verification.local_features import FeatureSettings, LocalFeatures, decode_features, opencv_module

MAX_RERANKED: Final = 100

# Fewer pairs fit some homography by chance.
_LEAST_PAIRS: Final = 6


@dataclass(frozen=True, slots=True)
class GeometrySettings:
    """How two photos are compared.

    Attributes:
        ratio: a point is paired with its nearest in descriptor space only where the second nearest is so much farther
            (Lowe's test), and where each is the other's nearest.
        tolerance_px: how far a pair may lie off the common homography and still count; MAGSAC++ (Barath et al., CVPR
            2020) takes it as the largest noise it averages over.
        max_iterations: of the search for the homography.
    """

    ratio: float = 0.85
    tolerance_px: float = 4.0
    max_iterations: int = 2000


def count_inliers(one: LocalFeatures, other: LocalFeatures, settings: GeometrySettings) -> int:
    """How many pairs of points fit one homography: a flat front, or any view from the same spot.

    Args:
        one, other: features of two photos, of the same `FeatureSettings`.
        settings: how.

    Raises:
        MissingExtraError: OpenCV is not installed.
    """
    pairs = paired(one, other, settings.ratio)
    if len(pairs) < _LEAST_PAIRS:
        return 0
    cv2 = opencv_module()
    _, inliers = cv2.findHomography(
        one.pixels[pairs[:, 0]],
        other.pixels[pairs[:, 1]],
        cv2.USAC_MAGSAC,
        settings.tolerance_px,
        maxIters=settings.max_iterations,
        confidence=0.999,
    )
    return 0 if inliers is None else int(inliers.sum())


def paired(one: LocalFeatures, other: LocalFeatures, ratio: float) -> NDArray[np.int64]:
    """Points of two photos that are similar to each other and to no other: (m, 2) int64, each point at most once."""
    if len(one) < 2 or len(other) < 2:
        return np.empty((0, 2), np.int64)
    cv2 = opencv_module()
    matcher = cv2.BFMatcher(cv2.NORM_L2)
    # Measured: as bytes OpenCV compares them eight times slower.
    ours, theirs = one.descriptors.astype(np.float32), other.descriptors.astype(np.float32)
    distinct = [
        (nearest.queryIdx, nearest.trainIdx)
        for nearest, second in matcher.knnMatch(ours, theirs, 2)
        if nearest.distance < ratio * second.distance
    ]
    if not distinct:
        return np.empty((0, 2), np.int64)
    pairs = np.array(distinct, np.int64)
    back = np.array([match.trainIdx for match in matcher.match(theirs[pairs[:, 1]], ours)], np.int64)
    return np.asarray(pairs[back == pairs[:, 0]])


class FeatureSource(Protocol):
    """Where the local features of references come from."""

    @property
    def settings(self) -> FeatureSettings:
        """That they were computed with."""

    def features(self, row: int) -> LocalFeatures:
        """Of one reference."""


@dataclass(frozen=True, slots=True)
class RerankSettings:
    """How matches are re-ranked.

    Attributes:
        top: so many of the best matches are compared with the photo, 1 to 100.
        min_inliers: a match moves up only if so many pairs of points fit. Of matches more than 60 m away from the photo
            99 % had 7 or fewer, measured on the west of a campus, which is also where 10 did best.
        geometry: how two photos are compared.

    Raises:
        ParameterError: `top` outside its range.
    """

    top: int = 20
    min_inliers: int = 10
    geometry: GeometrySettings = field(default_factory=GeometrySettings)

    def __post_init__(self) -> None:
        if not 1 <= self.top <= MAX_RERANKED:
            raise ParameterError(
                f"{self.top} matches to re-rank are outside [1, {MAX_RERANKED}]",
                remedy=f"Give 1 to {MAX_RERANKED}, or 0 for no re-ranking",
            )


@dataclass(frozen=True, slots=True)
class QueryFeatures:
    """The local features of a query, and how they were computed."""

    settings: FeatureSettings
    features: LocalFeatures


class Reranker:
    """Re-ranks the matches of one index. Safe to use from several threads.

    Args:
        source: of the references' local features.
        settings: how.

    Raises:
        MissingExtraError: OpenCV is not installed.
    """

    def __init__(self, source: FeatureSource, settings: RerankSettings) -> None:
        opencv_module()
        self.settings = settings
        self._source = source

    def decode(self, data: bytes, limits: ImageLimits = DEFAULT_LIMITS, *, where: str | None = None) -> QueryFeatures:
        """Decode an encoded photo and find the local features that a query needs.

        Raises:
            ImageError: see `decode_image`.
        """
        settings = self._source.settings
        return QueryFeatures(settings, decode_features(data, settings, limits, where=where))

    def inliers(self, query: QueryFeatures, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """How many pairs of points of the query and each of its best matches fit.

        Args:
            query: features of the photo.
            rows: (K,) int64 rows of the index, best first.

        Returns:
            (min(K, top),) int64; None where query and references are not comparable, because an index of other
            features was swapped in since the query was decoded.

        Raises:
            PlaceIndexError: the stored features are damaged.
        """
        if query.settings != self._source.settings:
            return None
        best = rows[: self.settings.top]
        counts = (
            count_inliers(query.features, self._source.features(int(row)), self.settings.geometry) for row in best
        )
        return np.fromiter(counts, np.int64, len(best))

    def order(self, inliers: NDArray[np.int64] | None, count: int) -> NDArray[np.int64]:
        """The new order of matches: those of enough inliers, most first, then all others as they were.

        Args:
            inliers: of the best matches in the order of their cosines, at most `count`; None leaves all as they were.
            count: of all matches.

        Returns:
            (count,) int64, places in the old order.
        """
        moves = np.zeros(count, np.int64)
        if inliers is not None:
            moves[: len(inliers)] = np.where(inliers >= self.settings.min_inliers, inliers, 0)
        return np.argsort(-moves, kind="stable")


def require_features(source: FeatureSource | None, where: str) -> FeatureSource:
    """The local features of an index that is to be re-ranked.

    Raises:
        PlaceIndexError: it has none (``no_local_features``).
    """
    if source is None:
        raise PlaceIndexError(
            "the place index holds no local features, which re-ranking needs",
            where=where,
            remedy="Index the photos again with --local-features, or leave out --rerank",
            code="no_local_features",
        )
    return source
