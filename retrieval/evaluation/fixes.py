"""Fixes of queries: how far they are from the truth, whether confidence and radius hold, and what is NO_MATCH."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ParameterError
from retrieval.evaluation.bootstrap import Bootstrap
from retrieval.evaluation.positions import Ground, Int64Array, Positions
from retrieval.evaluation.report import (
    Answer,
    AnsweredPoint,
    ConfidenceBin,
    ConfidenceReport,
    Estimate,
    NoMatchPoint,
    PositionErrorReport,
    StatusReport,
)
from retrieval.geo import Float64Array, haversine_m
from retrieval.localize.fix import Fix, FixStatus

Mask = NDArray[np.bool_]

# The distance that the confidence of a fix refers to, and the field's usual radius.
WITHIN_M: Final = 25.0

_BINS: Final = 10
_CURVE_POINTS: Final = 50
_SIMULATIONS: Final = 500


@dataclass(frozen=True, slots=True)
class Fixes:
    """One position fix per query, with NaN where none was given.

    Attributes:
        lat, lon: (Nq,) float64 WGS84 degrees, NaN where there is no fix.
        confidence: (Nq,) float64, the stated probability that the truth lies within 25 m, or None.
        radius_m: (Nq,) float64 metres, the stated radius that holds the truth 68 % of the time, or None.
        located: (Nq,) bool, whether the status is LOCATED (not AMBIGUOUS, not NO_MATCH), or None.
        calibrated: whether confidence and radius were fitted to measured errors.
        familiarity: (Nq,) float64, of each photo, see `FixMaker.familiarity`; or None.

    Raises:
        ParameterError: shapes that do not fit, or a confidence outside [0, 1] where there is a fix.
    """

    lat: Float64Array
    lon: Float64Array
    confidence: Float64Array | None = None
    radius_m: Float64Array | None = None
    located: NDArray[np.bool_] | None = None
    calibrated: bool = True
    familiarity: Float64Array | None = None

    def __post_init__(self) -> None:
        columns = {"longitude": self.lon, "confidence": self.confidence, "radius_m": self.radius_m}
        for name, column in {**columns, "located": self.located, "familiarity": self.familiarity}.items():
            if column is not None and column.shape != self.lat.shape:
                raise ParameterError(f"{name} of the fixes has shape {column.shape}, latitude has {self.lat.shape}")
        stated = self.confidence[self.answered] if self.confidence is not None else np.empty(0)
        if not ((stated >= 0.0) & (stated <= 1.0)).all():
            raise ParameterError("a fix has a confidence outside [0, 1]", remedy="Give a probability with each fix")

    @classmethod
    def of(cls, outcomes: Sequence[tuple[FixStatus, Fix | None]], familiarity: Float64Array | None = None) -> Self:
        """The fixes of photos that were localized.

        Args:
            outcomes: of `FixMaker.fix`, one for each photo.
            familiarity: (Nq,) of the photos, or None.
        """
        fixes = [fix for _, fix in outcomes]
        columns = [
            (np.nan,) * 4 if fix is None else (fix.position.lat, fix.position.lon, fix.confidence, fix.radius_m)
            for fix in fixes
        ]
        lat, lon, confidence, radius_m = np.array(columns, np.float64).reshape(-1, 4).T
        return cls(
            lat,
            lon,
            confidence,
            radius_m,
            located=np.array([status is FixStatus.LOCATED for status, _ in outcomes], bool),
            calibrated=all(fix.calibrated for fix in fixes if fix is not None),
            familiarity=familiarity,
        )

    @property
    def answered(self) -> NDArray[np.bool_]:
        """(Nq,) bool: which queries have a fix."""
        return np.asarray(np.isfinite(self.lat) & np.isfinite(self.lon))


def top_errors_m(ground: Ground, rows: Int64Array) -> Float64Array:
    """Metres from each query to its best match; NaN where there is none.

    Args:
        ground: where queries and database lie.
        rows: (Nq, K) int64 database rows, best first, -1 where there is no match.

    Returns:
        (Nq,) float64.
    """
    best = rows[:, 0]
    distance = ground.distance_m(np.arange(len(best)), best)
    return np.asarray(np.where(best >= 0, distance, np.nan))


def fix_errors_m(queries: Positions, fixes: Fixes) -> Float64Array:
    """Metres on the great circle from each query to its fix; NaN where there is none.

    Returns:
        (Nq,) float64.

    Raises:
        ParameterError: the queries have no degrees, or there are not as many fixes as queries.
    """
    if queries.lat is None or queries.lon is None:
        raise ParameterError("fixes are in degrees, but the queries have plane metres only")
    if fixes.lat.shape != queries.lat.shape:
        raise ParameterError(f"{len(fixes.lat)} fixes for {len(queries)} queries", remedy="Give one per query, or NaN")
    return haversine_m(queries.lat, queries.lon, fixes.lat, fixes.lon)


def position_error_report(
    answer: Answer, errors_m: Float64Array, groups: Int64Array, bootstrap: Bootstrap
) -> PositionErrorReport:
    """Median, 90th percentile and share within 25 m over the answered queries.

    Args:
        answer: whose errors these are.
        errors_m: (Nq,) float64 metres, NaN where unanswered.
        groups: (Nq,) int64, which group each query belongs to.
        bootstrap: how intervals are drawn.
    """
    answered = np.isfinite(errors_m)
    errors, owners = errors_m[answered], groups[answered]
    within = errors <= WITHIN_M
    quantiles = np.quantile(errors, [0.5, 0.9]) if errors.size else np.full(2, np.nan)
    spread = bootstrap.quantile_interval(errors, owners, [0.5, 0.9])
    share = within.mean() if errors.size else np.nan
    share_spread = bootstrap.mean_interval(within[:, None], owners)
    return PositionErrorReport(
        answer=answer,
        answered=int(answered.sum()),
        unanswered=int((~answered).sum()),
        median_m=estimate(quantiles[0], spread[:, 0]),
        p90_m=estimate(quantiles[1], spread[:, 1]),
        within_m=WITHIN_M,
        within_share=estimate(share, share_spread[:, 0]),
    )


def estimate(value: float, interval: Float64Array) -> Estimate:
    """An `Estimate` from a number and its (2,) interval; NaN becomes None."""
    if not np.isfinite(value):
        return Estimate(value=None, low=None, high=None)
    return Estimate(value=float(value), low=float(interval[0]), high=float(interval[1]))


def confidence_report(
    fixes: Fixes, errors_m: Float64Array, groups: Int64Array, bootstrap: Bootstrap
) -> ConfidenceReport | None:
    """Compare stated confidence and radius with what happened, over the answered queries.

    The calibration error is that of Naeini, Cooper & Hauskrecht (AAAI 2015) with bins of equally many fixes, equal
    confidences never apart. It is never 0 for finitely many fixes: the report also has what perfectly calibrated
    confidences would show, drawn 500 times.

    Args:
        fixes: with confidences.
        errors_m: (Nq,) float64 metres from `fix_errors_m`.
        groups: (Nq,) int64, which group each query belongs to.
        bootstrap: how intervals are drawn.

    Returns:
        None when no fix states a confidence.
    """
    answered = fixes.answered
    if fixes.confidence is None or not answered.any():
        return None
    stated, errors, owners = fixes.confidence[answered], errors_m[answered], groups[answered]
    kept = (errors <= WITHIN_M).astype(np.float64)
    owner = _bins_of(stated)
    bins = tuple(
        ConfidenceBin(
            fixes=int((owner == b).sum()),
            mean_confidence=float(stated[owner == b].mean()),
            within_share=float(kept[owner == b].mean()),
        )
        for b in np.unique(owner)
    )
    # Per bin the mean over all fixes of (stated − kept): the error is the sum of their sizes, in each resample too.
    gaps = np.where(owner[:, None] == np.unique(owner)[None], (stated - kept)[:, None], 0.0)
    error = float(np.abs(gaps.mean(axis=0)).sum())
    error_spread = bootstrap.percentiles(np.abs(bootstrap.means(gaps, owners)).sum(axis=1))
    coverage = None
    if fixes.radius_m is not None:
        held = errors <= fixes.radius_m[answered]
        coverage = estimate(float(held.mean()), bootstrap.mean_interval(held[:, None], owners)[:, 0])
    return ConfidenceReport(
        calibrated=fixes.calibrated,
        brier=float(((stated - kept) ** 2).mean()),
        brier_of_base_rate=float(kept.var()),
        calibration_error=estimate(error, error_spread),
        calibration_error_if_honest=_error_if_calibrated(stated, owner, bootstrap.seed),
        bins=bins,
        radius_coverage=coverage,
        answered_curve=_answered_curve(stated, kept, len(errors_m)),
    )


def status_report(of: str, fixes: Fixes, which: Mask) -> StatusReport | None:
    """How many of some photos were LOCATED, AMBIGUOUS and NO_MATCH; None for no photos or no statuses.

    Args:
        of: which photos these are.
        fixes: one for each photo.
        which: (Nq,) bool.
    """
    if fixes.located is None or not which.any():
        return None
    located, answered = fixes.located[which], fixes.answered[which]
    return StatusReport(
        of=of,
        photos=int(which.sum()),
        located_share=float(located.mean()),
        ambiguous_share=float((answered & ~located).mean()),
        no_match_share=float((~answered).mean()),
    )


def no_match_curve(fixes: Fixes, solvable: Mask, elsewhere: Fixes | None) -> tuple[NoMatchPoint, ...]:
    """What every threshold of familiarity would reject, of solvable queries and of photos from elsewhere.

    Args:
        fixes: of the queries.
        solvable: (Nq,) bool.
        elsewhere: of photos that were not taken in the area; None gives no curve.
    """
    if elsewhere is None or elsewhere.familiarity is None or fixes.familiarity is None or not solvable.any():
        return ()
    of_queries, of_others = fixes.familiarity[solvable], elsewhere.familiarity
    thresholds = np.quantile(of_queries, np.linspace(0.0, 0.5, _CURVE_POINTS + 1))
    return tuple(
        NoMatchPoint(
            familiarity=float(threshold),
            solvable_share=float((of_queries < threshold).mean()),
            elsewhere_share=float((of_others < threshold).mean()),
        )
        for threshold in thresholds
    )


def _bins_of(stated: Float64Array) -> Int64Array:
    edges = np.quantile(stated, np.linspace(0, 1, _BINS + 1)[1:-1])
    return np.asarray(np.searchsorted(np.unique(edges), stated, side="left"), np.int64)


def _error_if_calibrated(stated: Float64Array, owner: Int64Array, seed: int) -> float:
    random = np.random.default_rng(seed)
    present = np.unique(owner)
    errors: list[float] = []
    for _ in range(_SIMULATIONS):
        gap = stated - (random.random(len(stated)) < stated)
        errors.append(float(np.abs(np.bincount(owner, gap)[present]).sum() / len(stated)))
    return float(np.mean(errors))


def _answered_curve(stated: Float64Array, kept: Float64Array, queries: int) -> tuple[AnsweredPoint, ...]:
    """From the fixes of highest confidence to all of them; equal confidences are answered together."""
    order = np.argsort(-stated, kind="stable")
    share_right = np.cumsum(kept[order]) / np.arange(1, len(order) + 1)
    last_of_equals = np.flatnonzero(np.diff(stated[order], append=-1.0))
    wanted: Sequence[int] = np.unique(
        np.searchsorted(last_of_equals, np.linspace(0, len(order) - 1, _CURVE_POINTS)).clip(max=len(last_of_equals) - 1)
    ).tolist()
    return tuple(
        AnsweredPoint(
            confidence=float(stated[order][last]),
            answered_share=float((last + 1) / queries),
            within_share=float(share_right[last]),
        )
        for last in last_of_equals[wanted]
    )
