"""Fit confidence and radius to fixes whose errors are known."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.calibration import MethodCalibration, RadiusKnot, logistic
from retrieval.geo import Float64Array

# The distance that confidence speaks of, and the share that the radius holds.
WITHIN_M: Final = 25.0
RADIUS_SHARE: Final = 0.68

# Logistic regression: the weight of the prior on standardised evidence, in queries.
_RIDGE: Final = 1.0
_NEWTON_STEPS: Final = 100
# Evidence that varies less than this does not vary.
_CONSTANT: Final = 1e-9
_QUERIES_A_KNOT: Final = 40
# Where errors are 0: the logarithm wants more.
_LEAST_RADIUS_M: Final = 0.1
_MAX_KNOTS: Final = 8


@dataclass(frozen=True, slots=True)
class CalibrationSettings:
    """How a calibration is fitted.

    Attributes:
        max_queries: at most so many references are held out, or photos taken, drawn at random.
        max_pairs: queries times references; fewer queries are drawn from very large indexes.
        min_queries: with fewer there is no calibration.
        min_coverage: with less of the surroundings of the median reference known from other sessions there is none.
        min_of_a_kind: with fewer right or fewer wrong fixes there is none either.
        away_m: everything within this of a query is held out to stand for photos of another place.
        away_share: how many of the photos that confidence is meant for are such.
        rejected_share: how many photos of places in the index NO_MATCH may cost.
        seed: of what is drawn.
    """

    max_queries: int = 1000
    max_pairs: int = 2_000_000_000
    min_queries: int = 100
    min_coverage: float = 0.4
    min_of_a_kind: int = 20
    away_m: float = 100.0
    away_share: float = 0.02
    rejected_share: float = 0.07
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Trials:
    """Fixes of references that were held out, or of photos that the index does not hold.

    Attributes:
        evidence: (T, 3) float64, see `EVIDENCE_NAMES`.
        error_m: (T,) float64, of the fix.
        familiarity: (T,) float64, the best centred cosine.
    """

    evidence: Float64Array
    error_m: Float64Array
    familiarity: Float64Array


def fit_method(seen: Trials, unseen: Trials, settings: CalibrationSettings) -> MethodCalibration:
    """Fit confidence and radius of one method.

    Args:
        seen: fixes of references whose place remained in the index.
        unseen: fixes of references whose place did not remain; all are wrong.
        settings: what share the second have.
    """
    odds = settings.away_share / (1.0 - settings.away_share)
    each = odds * len(seen.error_m) / max(1, len(unseen.error_m))
    intercept, slopes = fit_logistic(
        np.concatenate([seen.evidence, unseen.evidence]),
        np.concatenate([seen.error_m <= WITHIN_M, np.zeros(len(unseen.error_m), bool)]),
        np.concatenate([np.ones(len(seen.error_m)), np.full(len(unseen.error_m), each)]),
    )
    confidence = logistic(intercept + seen.evidence @ slopes)
    return MethodCalibration(
        intercept=intercept,
        weights=tuple(float(slope) for slope in slopes),
        radius=tuple(fit_radius(confidence, seen.error_m)),
    )


def fit_logistic(evidence: Float64Array, right: NDArray[np.bool_], weight: Float64Array) -> tuple[float, Float64Array]:
    """Logistic regression whose slopes are never negative, with a normal prior on standardised slopes.

    Newton's method; a slope that comes out negative is set to 0 and the rest fitted again.

    Args:
        evidence: (T, M) float64.
        right: (T,) bool.
        weight: (T,) float64, in queries.

    Returns:
        the intercept and (M,) slopes, in the unit of the evidence.
    """
    mean = np.average(evidence, axis=0, weights=weight)
    spread = np.sqrt(np.average((evidence - mean) ** 2, axis=0, weights=weight))
    kept = spread > _CONSTANT
    spread = np.where(kept, spread, 1.0)
    while True:
        design = np.concatenate([np.ones((len(evidence), 1)), (evidence - mean) / spread * kept], axis=1)
        fitted = _newton(design, right, weight)
        negative = kept & (fitted[1:] < 0.0)
        if not negative.any():
            break
        kept = kept & ~negative
    slopes = np.where(kept, fitted[1:] / spread, 0.0)
    return float(fitted[0] - slopes @ mean), slopes


def _newton(design: Float64Array, right: NDArray[np.bool_], weight: Float64Array) -> Float64Array:
    # A trace of a prior on the intercept keeps it finite when all are right.
    ridge = np.diag([1e-6] + [_RIDGE] * (design.shape[1] - 1))
    at = np.zeros(design.shape[1])
    for _ in range(_NEWTON_STEPS):
        said = logistic(design @ at)
        slope = design.T @ (weight * (right - said)) - ridge @ at
        curvature = (design.T * (weight * said * (1.0 - said))) @ design + ridge
        step = np.linalg.solve(curvature, slope)
        at = at + step * min(1.0, 4.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-9:
            break
    return at


def fit_radius(confidence: Float64Array, error_m: Float64Array) -> list[RadiusKnot]:
    """The radius that holds 68 % of the truths, as a function of confidence that never ascends.

    Groups of equally many fixes along confidence, the quantile of each, pooled where a surer group is worse, and at
    last all radii scaled by one factor so that they hold 68 % together.

    Args:
        confidence: (T,) float64.
        error_m: (T,) float64.
    """
    order = np.argsort(confidence, kind="stable")
    groups = max(1, min(_MAX_KNOTS, len(order) // _QUERIES_A_KNOT))
    parts = np.array_split(order, groups)
    at = np.maximum.accumulate([confidence[part].mean() for part in parts])
    quantiles = [np.quantile(error_m[part], RADIUS_SHARE) for part in parts]
    smooth = descending([float(np.log(max(q, _LEAST_RADIUS_M))) for q in quantiles], [len(part) for part in parts])
    stated = np.exp(np.interp(confidence, at, smooth))
    factor = float(np.quantile(error_m / stated, RADIUS_SHARE))
    # Exponentials are rounded: what is meant to be equal must not ascend by a last digit.
    radii = np.minimum.accumulate(np.maximum(np.exp(smooth) * factor, _LEAST_RADIUS_M))
    return [RadiusKnot(confidence=float(c), radius_m=float(r)) for c, r in zip(at, radii, strict=True)]


def descending(values: Iterable[float], weights: Iterable[float]) -> list[float]:
    """The nearest never ascending sequence in least squares, by pooling adjacent violators (Ayer et al., 1955)."""
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        pools.append((value, weight, 1))
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            (a, wa, na), (b, wb, nb) = pools[-2:]
            pools[-2:] = [((a * wa + b * wb) / (wa + wb), wa + wb, na + nb)]
    return [value for value, _, size in pools for _ in range(size)]
