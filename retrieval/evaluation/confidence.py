"""Whether confidence and radius keep their promise, and what photos of other places are told."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.evaluation.bootstrap import Bootstrap
from retrieval.evaluation.fixes import Fixes
from retrieval.evaluation.position_error import WITHIN_M, estimate
from retrieval.evaluation.positions import Int64Array
from retrieval.evaluation.report import (
    AnsweredPoint,
    ConfidenceBin,
    ConfidenceReport,
    NoMatchPoint,
    StatusReport,
)
from retrieval.geo import Float64Array

_BINS: Final = 10
_CURVE_POINTS: Final = 50
_SIMULATIONS: Final = 500

Mask = NDArray[np.bool_]


def confidence_report(
    fixes: Fixes, errors_m: Float64Array, groups: Int64Array, bootstrap: Bootstrap
) -> ConfidenceReport | None:
    """Compare stated confidence and radius with what happened, over the answered queries.

    The calibration error is that of Naeini, Cooper & Hauskrecht (AAAI 2015) with bins of equally many fixes, equal
    confidences never apart. It is never 0 for finitely many fixes: beside it stands what perfectly honest confidences
    would show, drawn 500 times.

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
        calibration_error_if_honest=_error_if_honest(stated, owner, bootstrap.seed),
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


def _error_if_honest(stated: Float64Array, owner: Int64Array, seed: int) -> float:
    random = np.random.default_rng(seed)
    present = np.unique(owner)
    errors: list[float] = []
    for _ in range(_SIMULATIONS):
        gap = stated - (random.random(len(stated)) < stated)
        errors.append(float(np.abs(np.bincount(owner, gap)[present]).sum() / len(stated)))
    return float(np.mean(errors))


def _answered_curve(stated: Float64Array, kept: Float64Array, queries: int) -> tuple[AnsweredPoint, ...]:
    """From the surest fixes to all of them; equal confidences are answered together."""
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
