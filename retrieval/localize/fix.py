"""From the matches of a photo to one position: the fix, with a radius, a confidence and a status.

With a calibration, radius and confidence come from measured errors, and a photo that looks like nothing in the index is
NO_MATCH. Without one they come from how the matches lie, and the fix says so.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.geo import Float64Array, Position
from retrieval.localize.calibration import Calibration
from retrieval.localize.evidence import (
    GUESSED_RADIUS_M,
    Agreement,
    Evidence,
    FixMethod,
    FixSettings,
    Float32Array,
    StoredRows,
    agree,
    centre_of,
    centred_cosines,
    evidence_of,
)

# A circular normal distribution of variance s² per axis holds 68 % within this many s.
_HOLDS_68: Final = float(np.sqrt(-2.0 * np.log(0.32)))

# Positions are given to a decimetre: held-out references that stand on the very same spot measure nothing finer.
_LEAST_MEASURED_M: Final = 0.1


class FixStatus(StrEnum):
    """What the matches allow to say."""

    LOCATED = "LOCATED"
    AMBIGUOUS = "AMBIGUOUS"
    NO_MATCH = "NO_MATCH"


@dataclass(frozen=True, slots=True)
class Fix:
    """A position estimate.

    Attributes:
        position: WGS84 degrees.
        radius_m: the truth is meant to lie within it 68 % of the time.
        confidence: probability that the truth lies within 25 m of the position; a guess while `calibrated` is False.
        calibrated: whether radius and confidence were fitted to measured errors.
        covariance_enu: ((east², east·north), (north·east, north²)) in m²; its shape is that of the agreeing matches,
            its size that of the radius where that was measured.
        method: how it was made.
        support: how many matches agree on it.
    """

    position: Position
    radius_m: float
    confidence: float
    calibrated: bool
    covariance_enu: tuple[tuple[float, float], tuple[float, float]]
    method: FixMethod
    support: int


class MatchedIndex(StoredRows, Protocol):
    """What is read of a place index to make fixes: `SearchablePlaceIndex` is one."""

    @property
    def score_stretch(self) -> float:
        """By how much its scores lie further apart than the usual ones; see `USUAL_SPREAD`."""

    def positions(self, rows: NDArray[np.int64]) -> tuple[Float64Array, Float64Array]:
        """Latitudes and longitudes of some rows: (len(rows),) degrees each."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """The matches of one photo, by score, best first.

    Attributes:
        rows: (K,) int64, of the place index.
        scores: (K,) float64, cosines of the descriptors as the index stores them, in [-1, 1]; what answers report.
        cosines: (K,) float64, the same in units of the usual spread; what `score_scale` refers to.
        inliers: (M,) int64 of the first M, where these were compared with the photo point by point; else None.
        order: (K,) int64, places in the other columns, best first: another order where matches were re-ranked.
    """

    rows: NDArray[np.int64]
    scores: Float64Array
    cosines: Float64Array
    inliers: NDArray[np.int64] | None
    order: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def at_least(self, min_score: float | None) -> Self:
        """Only the matches of at least this score; None keeps all."""
        if min_score is None:
            return self
        count = int((self.scores >= min_score).sum())
        inliers = None if self.inliers is None else self.inliers[:count]
        order = self.order[self.order < count]
        return type(self)(self.rows[:count], self.scores[:count], self.cosines[:count], inliers, order)


class FixMaker:
    """Turns the matches of photos into fixes. Server, command line, evaluation and calibration all use this one.

    Args:
        index: that is searched.
        settings: how.
        calibration: how far to trust fixes; not used where it was measured with other settings.
    """

    def __init__(
        self,
        index: MatchedIndex,
        settings: FixSettings,
        calibration: Calibration | None = None,
    ) -> None:
        self.settings = settings
        self.calibration = calibration if calibration is not None and calibration.holds_for(settings) else None
        self._index = index
        self._centre = centre_of(index) if self.calibration is not None else None

    def ranking(
        self,
        rows: NDArray[np.int64],
        scores: NDArray[np.floating],
        inliers: NDArray[np.int64] | None = None,
        order: NDArray[np.int64] | None = None,
    ) -> Ranking:
        """The matches that a search found for one photo.

        Args:
            rows, scores: (K,), best first, -1 and -inf where there are fewer; see `SearchResult`.
            inliers, order: see `Ranking`.
        """
        count = int((rows >= 0).sum())
        cosines = np.clip(scores[:count].astype(np.float64), -1.0, 1.0)
        order = np.arange(count) if order is None else order
        return Ranking(rows[:count], cosines, cosines / self._index.score_stretch, inliers, order)

    def centred(self, descriptors: Float32Array, rows: NDArray[np.int64]) -> list[Float64Array | None]:
        """Centred cosines of the best matches of some photos, None where no calibration needs them.

        Args:
            descriptors: (Q, d) float32 of the photos, as the index stores them.
            rows: (Q, K) int64, best first.

        Returns:
            Q times (min(K, `matches_needed`),) float64.
        """
        if self._centre is None:
            return [None] * len(rows)
        best = np.maximum(rows[:, : self.settings.matches_needed], 0)
        matched = self._index.descriptors(best.ravel()).reshape(*best.shape, -1)
        return list(centred_cosines(descriptors, matched, self._centre))

    def familiarity(self, ranking: Ranking, centred: Float64Array | None) -> float:
        """How much a photo looks like what it is compared with: its best score, -1 where there are no matches.

        Calibrations written before say so of the best centred cosine. Centring takes away what all of the index share,
        and with it most of what tells a photo of something else.

        Args:
            ranking: of the photo.
            centred: (k,) centred cosines of its first k matches; needed with a calibration.
        """
        if self.calibration is None or self.calibration.familiarity == "score":
            return float(ranking.scores.max(initial=-1.0))
        assert centred is not None, "this calibration needs centred cosines"
        return float(centred[: min(len(ranking), self.settings.matches_needed)].max(initial=-1.0))

    def weigh(self, ranking: Ranking, centred: Float64Array) -> tuple[Agreement, Evidence]:
        """The place that matches agree on, and the evidence for it.

        Args:
            ranking: of at least one match.
            centred: (k,) centred cosines of its first k matches.
        """
        best = ranking.rows[: self.settings.matches_needed]
        lat, lon = self._index.positions(best)
        found = agree(lat, lon, ranking.cosines, self.settings)
        return found, evidence_of(found, lat, lon, centred[: len(best)], self.settings)

    def fix(
        self, ranking: Ranking, centred: Float64Array | None = None, min_score: float | None = None
    ) -> tuple[FixStatus, Fix | None]:
        """Estimate one position. All matches count, whatever their score, as they did for the calibration.

        Args:
            ranking: of the photo.
            centred: (k,) centred cosines of its first k matches; needed with a calibration.
            min_score: NO_MATCH where no score reaches it; None for none.

        Returns:
            the status and the fix; NO_MATCH and None when there are no matches, or when none is like the photo.
        """
        if not len(ranking.at_least(min_score)):
            return FixStatus.NO_MATCH, None
        if self.calibration is None:
            return self._estimated(ranking)
        assert centred is not None, "a calibrated fix needs centred cosines"
        return self._calibrated(ranking, centred, self.calibration)

    def _estimated(self, ranking: Ranking) -> tuple[FixStatus, Fix | None]:
        # Re-ranked, the first match takes the weight of the best cosine, and so on. A calibration was measured on
        # matches by score: there that order stays.
        best = ranking.rows[ranking.order][: self.settings.max_matches]
        found = agree(*self._index.positions(best), ranking.cosines, self.settings)
        covariance = _covariance(found, self.settings)
        fix = _fix(found, self.settings, _radius_m(covariance, found), found.share, covariance, calibrated=False)
        located = found.share > self.settings.min_support_share
        return (FixStatus.LOCATED if located else FixStatus.AMBIGUOUS), fix

    def _calibrated(
        self, ranking: Ranking, centred: Float64Array, calibration: Calibration
    ) -> tuple[FixStatus, Fix | None]:
        settings = self.settings
        least = calibration.min_familiarity if settings.min_familiarity is None else settings.min_familiarity
        if self.familiarity(ranking, centred) < least:
            return FixStatus.NO_MATCH, None
        found, evidence = self.weigh(ranking, centred)
        measured = calibration.of_method(settings)
        confidence = measured.confidence(evidence)
        radius_m = max(measured.radius_m(confidence), settings.min_radius_m or _LEAST_MEASURED_M)
        covariance = _covariance(found, settings)
        covariance *= 2.0 * (radius_m / _HOLDS_68) ** 2 / np.trace(covariance)
        fix = _fix(found, settings, radius_m, confidence, covariance, calibrated=True)
        return (FixStatus.LOCATED if confidence >= settings.min_confidence else FixStatus.AMBIGUOUS), fix


def _fix(
    found: Agreement,
    settings: FixSettings,
    radius_m: float,
    confidence: float,
    covariance: Float64Array,
    *,
    calibrated: bool,
) -> Fix:
    (east, mixed), (mixed_again, north) = covariance.tolist()
    return Fix(
        position=found.position,
        radius_m=radius_m,
        confidence=confidence,
        calibrated=calibrated,
        covariance_enu=((east, mixed), (mixed_again, north)),
        method=settings.method,
        support=int(found.members.sum()),
    )


def _covariance(found: Agreement, settings: FixSettings) -> Float64Array:
    weights = found.weights[found.members] / found.weights[found.members].sum()
    spread = (weights[:, None] * found.deviations_m).T @ found.deviations_m
    least = GUESSED_RADIUS_M if settings.min_radius_m is None else settings.min_radius_m
    return np.asarray(spread + np.eye(2) * least**2 / 2)


def _radius_m(covariance: Float64Array, found: Agreement) -> float:
    """The radius that holds 68 % of the weight of all matches, and at least one that the cluster's own spread fills."""
    spread = float(np.sqrt(np.trace(covariance) / 2.0) * _HOLDS_68)
    order = np.argsort(found.distances_m)
    holds = np.cumsum(found.weights[order]) >= 0.68
    return max(spread, float(found.distances_m[order][np.argmax(holds)]))
