"""From matches to one position: the fix, with a radius and an honest status.

Not calibrated yet: `radius_m` and `confidence` come from how the matches lie, not from measured errors, and say so.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

import numpy as np

from retrieval.geo import Float64Array, Position, from_local_metres, haversine_m, to_local_metres

FixMethod = Literal["top1", "weighted_cluster"]
FIX_METHODS: Final[tuple[FixMethod, ...]] = ("top1", "weighted_cluster")


class FixStatus(StrEnum):
    """What the matches allow to say."""

    LOCATED = "LOCATED"
    AMBIGUOUS = "AMBIGUOUS"
    NO_MATCH = "NO_MATCH"


@dataclass(frozen=True, slots=True)
class FixSettings:
    """How a fix is made.

    Attributes:
        method: `top1` is the best match's position; `weighted_cluster` the score-weighted mean of the matches around
            the place that most score-weight agrees on.
        max_matches: how many of the best matches take part.
        cluster_radius_m: matches within this distance of each other speak for the same place.
        score_scale: a match whose cosine is this much below the best counts 1/e as much.
        min_support_share: unless the matches at the fix hold more than this share of the weight, it is AMBIGUOUS.
        min_radius_m: the radius never claims less: photos' own GPS is not better.
    """

    method: FixMethod = "weighted_cluster"
    max_matches: int = 10
    cluster_radius_m: float = 25.0
    score_scale: float = 0.02
    min_support_share: float = 0.5
    min_radius_m: float = 5.0


@dataclass(frozen=True, slots=True)
class Fix:
    """A position estimate.

    Attributes:
        position: WGS84 degrees.
        radius_m: the truth is meant to lie within it 68 % of the time.
        confidence: probability that the truth lies within 25 m of the position; a guess while `calibrated` is False.
        calibrated: whether radius and confidence were fitted to measured errors.
        covariance_enu: ((east², east·north), (north·east, north²)) in m².
        method: how it was made.
        support: how many matches speak for this place.
    """

    position: Position
    radius_m: float
    confidence: float
    calibrated: bool
    covariance_enu: tuple[tuple[float, float], tuple[float, float]]
    method: FixMethod
    support: int


def make_fix(
    lat: Float64Array, lon: Float64Array, scores: Float64Array, settings: FixSettings
) -> tuple[FixStatus, Fix | None]:
    """Estimate one position from matches.

    Args:
        lat, lon: (k,) degrees of the matched references, best match first.
        scores: (k,) cosine, descending.
        settings: how.

    Returns:
        the status and the fix; NO_MATCH and None when there are no matches.
    """
    k = min(len(scores), settings.max_matches)
    if k == 0:
        return FixStatus.NO_MATCH, None
    lat, lon = lat[:k], lon[:k]
    weights = np.exp((scores[:k] - scores[0]) / settings.score_scale)
    weights = weights / weights.sum()
    distances = haversine_m(lat[:, None], lon[:, None], lat[None], lon[None])
    near = distances <= settings.cluster_radius_m
    # Rounded: equal shares must compare as equal, and the whole weight must not exceed 1.
    shares = (near @ weights).round(9)
    # argmax takes the first of equals, which is the better match.
    seed = 0 if settings.method == "top1" else int(np.argmax(shares))
    members = near[seed]
    centre = Position(float(lat[seed]), float(lon[seed]))
    east_north = to_local_metres(centre, lat[members], lon[members])
    member_weights = weights[members] / weights[members].sum()
    offset = np.zeros(2) if settings.method == "top1" else member_weights @ east_north
    deviations = east_north - offset
    covariance = (member_weights[:, None] * deviations).T @ deviations + np.eye(2) * settings.min_radius_m**2 / 2
    share = float(shares[seed])
    fix = Fix(
        position=centre if settings.method == "top1" else from_local_metres(centre, float(offset[0]), float(offset[1])),
        radius_m=_radius_m(covariance, distances[seed], weights),
        confidence=share,
        calibrated=False,
        covariance_enu=(
            (float(covariance[0, 0]), float(covariance[0, 1])),
            (float(covariance[1, 0]), float(covariance[1, 1])),
        ),
        method=settings.method,
        support=int(members.sum()),
    )
    return (FixStatus.LOCATED if share > settings.min_support_share else FixStatus.AMBIGUOUS), fix


def _radius_m(covariance: Float64Array, distances: Float64Array, weights: Float64Array) -> float:
    """The radius that holds 68 % of the weight of all matches, and at least one that the cluster's own spread fills.

    A circular normal distribution of variance s² per axis holds 68 % within s·√(-2 ln 0.32).
    """
    spread = float(np.sqrt(np.trace(covariance) / 2.0) * np.sqrt(-2.0 * np.log(0.32)))
    order = np.argsort(distances)
    holds = np.cumsum(weights[order]) >= 0.68
    return max(spread, float(distances[order][np.argmax(holds)]))
