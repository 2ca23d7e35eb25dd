"""Calibration: what an index's own references, held out and localized, say about confidence, radius and NO_MATCH."""

from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from retrieval.errors import ParameterError
from retrieval.geo import Float64Array, Position
from retrieval.localize.evidence import (
    EVIDENCE_NAMES,
    FIX_METHODS,
    GUESSED_RADIUS_M,
    Agreement,
    Evidence,
    FixMethod,
    FixSettings,
    agree,
    evidence_of,
)

HeldOut = Literal["sessions", "time blocks", "photos"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RadiusKnot(_Frozen):
    """At this confidence, 68 % of the held-out truths lay within this radius."""

    confidence: float = Field(ge=0.0, le=1.0)
    radius_m: float = Field(gt=0.0)


class MethodCalibration(_Frozen):
    """How far to trust the fixes of one method.

    Attributes:
        intercept, weights: of the logistic regression from evidence (`EVIDENCE_NAMES`) to the probability that the
            truth lies within 25 m. No weight is negative: more evidence never means less confidence.
        radius: knots of the radius over the confidence, ascending in confidence, never ascending in radius.
    """

    intercept: float
    weights: tuple[float, ...]
    radius: tuple[RadiusKnot, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> "MethodCalibration":
        if len(self.weights) != len(EVIDENCE_NAMES) or min(self.weights) < 0.0:
            raise ValueError(f"weights {self.weights} are not {len(EVIDENCE_NAMES)} numbers of 0 or more")
        if not np.isfinite([self.intercept, *self.weights]).all():
            raise ValueError("intercept and weights must be finite")
        steps = [(knot.confidence, -knot.radius_m) for knot in self.radius]
        if any(a > b or c > d for (a, c), (b, d) in pairwise(steps)):
            raise ValueError("radius knots must ascend in confidence and not in radius")
        return self

    def confidence(self, evidence: Evidence) -> float:
        """The probability that the truth lies within 25 m of the fix, in [0, 1]."""
        return float(self.confidences(evidence.values[None])[0])

    def confidences(self, evidence: Float64Array) -> Float64Array:
        """The same for many: (N, 3) float64 evidence → (N,) float64."""
        return logistic(self.intercept + evidence @ np.array(self.weights))

    def radius_m(self, confidence: float) -> float:
        """The radius that holds the truth 68 % of the time, metres."""
        return float(self.radii_m(np.array([confidence]))[0])

    def radii_m(self, confidences: Float64Array) -> Float64Array:
        """The same for many: (N,) float64 → (N,) float64. Between two knots its logarithm is linear."""
        at = [knot.confidence for knot in self.radius]
        return np.asarray(np.exp(np.interp(confidences, at, [np.log(knot.radius_m) for knot in self.radius])))


class Calibration(_Frozen):
    """What was measured on references that were held out.

    Attributes:
        format_version: of this model.
        held_out: what was localized. Two times references of the index, held out with their whole session, or with
            everything taken around the same time where they name no sessions that overlap. Or photos that it does not
            hold, given for this purpose.
        queries: how many references or photos were localized.
        groups: how many sessions or blocks of time they come from.
        within_m: the distance that confidence speaks of, metres.
        right_share: of these queries, how many fixes of the default method lay within it.
        min_familiarity: photos whose best centred cosine is below are NO_MATCH.
        rejected_share: of the held-out queries whose place remained in the index, how many are below.
        away_m: everything within this distance of a query was held out too, to stand for photos of another place.
        away_queries: how many queries that was done with.
        away_rejected_share: of these, how many are below `min_familiarity`.
        max_matches, cluster_radius_m, kernel_m, score_scale, evidence_matches: the `FixSettings` it holds for.
        methods: how far to trust each method.
    """

    format_version: Literal[1] = 1
    held_out: HeldOut
    queries: int = Field(ge=1)
    groups: int = Field(ge=1)
    within_m: float = Field(gt=0.0)
    right_share: float = Field(ge=0.0, le=1.0)
    min_familiarity: float = Field(ge=-1.0, le=1.0)
    rejected_share: float = Field(ge=0.0, le=1.0)
    away_m: float = Field(gt=0.0)
    away_queries: int = Field(ge=0)
    away_rejected_share: float | None = Field(default=None, ge=0.0, le=1.0)
    max_matches: int = Field(ge=1)
    cluster_radius_m: float = Field(gt=0.0)
    kernel_m: float = Field(gt=0.0)
    score_scale: float = Field(gt=0.0)
    evidence_matches: int = Field(ge=1)
    methods: dict[FixMethod, MethodCalibration]

    def holds_for(self, settings: FixSettings) -> bool:
        """Whether it was measured with fixes made like this."""
        return settings.method in self.methods and all(
            getattr(self, name) == getattr(settings, name)
            for name in ("max_matches", "cluster_radius_m", "kernel_m", "score_scale", "evidence_matches")
        )

    def of_method(self, settings: FixSettings) -> MethodCalibration:
        """How far to trust fixes made like this.

        Raises:
            ParameterError: it was measured with other settings.
        """
        if not self.holds_for(settings):
            raise ParameterError(
                f"the calibration was not measured with {settings}", remedy="Take the settings it was measured with"
            )
        return self.methods[settings.method]


def logistic(values: Float64Array) -> Float64Array:
    """1 / (1 + exp(-x)) without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(np.asarray(values, np.float64) / 2.0)))


# From matches to one position: the fix, with a radius and an honest status.
#
# With a calibration, `radius_m` and `confidence` come from measured errors, and a photo that looks like nothing in the
# index is NO_MATCH. Without one they come from how the matches lie, and say so.

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
        centred: (k,) centred cosine of each (see `retrieval.localize.evidence`); needed with a calibration.
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
