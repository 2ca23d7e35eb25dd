"""How far answers are from the truth."""

import numpy as np

from retrieval.errors import ParameterError
from retrieval.evaluation.bootstrap import Bootstrap
from retrieval.evaluation.fixes import Fixes
from retrieval.evaluation.positions import Ground, Int64Array, Positions
from retrieval.evaluation.report import Answer, Estimate, PositionErrorReport
from retrieval.geo import Float64Array, haversine_m

# The distance that the confidence of a fix speaks of, and the field's usual radius.
WITHIN_M = 25.0


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
