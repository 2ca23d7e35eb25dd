"""How far to trust fixes: confidence, radius and NO_MATCH, fitted to fixes whose errors were measured."""

from itertools import pairwise
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from retrieval.errors import ParameterError
from retrieval.geo import Float64Array
from retrieval.localize.evidence import EVIDENCE_NAMES, Evidence, FixMethod, FixSettings

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


Familiarity = Literal["centred", "score"]


class Calibration(_Frozen):
    """What was measured on references that were held out.

    Attributes:
        format_version: of this model.
        held_out: what was localized. Two times references of the index, held out with their whole session, or with
            everything taken around the same time where they name no sessions that overlap. Or photos that it does not
            hold, given for this purpose.
        queries: how many references or photos were localized.
        groups: how many sessions or blocks of time they come from.
        within_m: the distance that confidence refers to, metres.
        right_share: of these queries, how many fixes of the default method lay within it.
        familiarity: what says how familiar a photo is: the score of its best match, or the best centred cosine.
        min_familiarity: photos below are NO_MATCH.
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
    familiarity: Familiarity = "centred"
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
