"""From matches to one position: the fix, with a radius and an honest status.

With a calibration, `radius_m` and `confidence` come from measured errors, and a photo that looks like nothing in the
index is NO_MATCH. Without one they come from how the matches lie, and say so.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from retrieval.agreement import FIX_METHODS, GUESSED_RADIUS_M, Agreement, FixMethod, FixSettings, agree
from retrieval.calibration import Calibration
from retrieval.evidence import evidence_of
from retrieval.geo import Float64Array, Position

__all__ = ["FIX_METHODS", "Fix", "FixMethod", "FixSettings", "FixStatus", "make_fix"]

# A circular normal distribution of variance s² per axis holds 68 % within this many s.
_HOLDS_68: Final = float(np.sqrt(-2.0 * np.log(0.32)))
# Positions are told to a decimetre: held-out references that stand on the very same spot measure nothing finer.
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
    lat: Float64Array,
    lon: Float64Array,
    scores: Float64Array,
    settings: FixSettings,
    centred: Float64Array | None = None,
    calibration: Calibration | None = None,
) -> tuple[FixStatus, Fix | None]:
    """Estimate one position from matches.

    Args:
        lat, lon: (k,) degrees of the matched references, best match first.
        scores: (k,) cosine, descending.
        settings: how.
        centred: (k,) centred cosine of each (see `retrieval.evidence`); needed with a calibration.
        calibration: of the index; None, or one measured with other settings, gives a fix that is not calibrated.

    Returns:
        the status and the fix; NO_MATCH and None when there are no matches, or when none is like the photo.
    """
    if len(scores) == 0:
        return FixStatus.NO_MATCH, None
    trusted = calibration is not None and calibration.holds_for(settings)
    if trusted and centred is not None and calibration is not None:
        return _calibrated_fix(lat, lon, scores, settings, centred, calibration)
    found = agree(lat, lon, scores, settings)
    covariance = _covariance(found, settings)
    fix = _fix(found, settings, _radius_m(covariance, found), found.share, covariance, calibrated=False)
    return (FixStatus.LOCATED if found.share > settings.min_support_share else FixStatus.AMBIGUOUS), fix


def _calibrated_fix(
    lat: Float64Array,
    lon: Float64Array,
    scores: Float64Array,
    settings: FixSettings,
    centred: Float64Array,
    calibration: Calibration,
) -> tuple[FixStatus, Fix | None]:
    least = calibration.min_familiarity if settings.min_familiarity is None else settings.min_familiarity
    if centred[: settings.matches_needed].max() < least:
        return FixStatus.NO_MATCH, None
    found = agree(lat, lon, scores, settings)
    measured = calibration.of_method(settings)
    confidence = measured.confidence(evidence_of(found, lat, lon, centred, settings))
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
