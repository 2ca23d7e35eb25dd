"""From a server's answer to a position with its covariance, and from a GPS position to a geo prior."""

import math
from dataclasses import dataclass
from typing import Any

# The distance from the centre of a round 2-D Gaussian is Rayleigh: P(r < R) = 1 - exp(-R² / 2σ²). For 68 % of the time
# R = σ · sqrt(-2 ln 0.32). (One standard deviation of each axis holds only 39 %.)
RADIUS_PER_SIGMA = math.sqrt(-2.0 * math.log(0.32))

# Nothing is known of the altitude; no filter should weigh it.
ALTITUDE_VARIANCE_M2 = 1e6


@dataclass(frozen=True)
class FixRules:
    """What counts as a fix.

    Attributes:
        ambiguous_is_fix: whether the best guess of an AMBIGUOUS answer is published as a fix.
        min_confidence: below it there is no fix.
        min_radius_m: no fix is trusted to be better than this. An uncalibrated radius says how the matches lie, not how
            wrong they may be.
    """

    ambiguous_is_fix: bool = False
    min_confidence: float = 0.0
    min_radius_m: float = 5.0


@dataclass(frozen=True)
class Position:
    """A position and the variance of its east and north, m²."""

    lat: float
    lon: float
    variance_m2: float

    @property
    def covariance(self) -> list[float]:
        """(9,) row-major covariance of east, north, up, m², as NavSatFix has it."""
        return [self.variance_m2, 0.0, 0.0, 0.0, self.variance_m2, 0.0, 0.0, 0.0, ALTITUDE_VARIANCE_M2]


def position_of(answer: dict[str, Any], rules: FixRules) -> Position | None:
    """The position that an answer of POST /localize allows to publish; None if it allows none.

    Args:
        answer: as the server sent it.
        rules: what counts as a fix.
    """
    fix = answer["fix"]
    if fix is None or (
        answer["status"] != "LOCATED" and not (rules.ambiguous_is_fix and answer["status"] == "AMBIGUOUS")
    ):
        return None
    if fix["confidence"] < rules.min_confidence:
        return None
    sigma_m = max(fix["radius_m"], rules.min_radius_m) / RADIUS_PER_SIGMA
    return Position(fix["lat"], fix["lon"], sigma_m * sigma_m)


def prior_of(lat: float, lon: float, variance_m2: float | None, least_m: float) -> str | None:
    """A geo prior around a GPS position, as /localize takes it: three standard deviations, at least `least_m`.

    Args:
        lat, lon: WGS84, degrees.
        variance_m2: the larger one of east and north; None if unknown.
        least_m: radius when it is unknown or small, metres.

    Returns:
        ``lat,lon,radius_m``; None if the position is none.
    """
    if not (math.isfinite(lat) and math.isfinite(lon) and abs(lat) <= 90.0 and abs(lon) <= 180.0):
        return None
    spread_m = 3.0 * math.sqrt(variance_m2) if variance_m2 is not None and variance_m2 > 0.0 else 0.0
    return f"{lat!r},{lon!r},{max(least_m, spread_m)!r}"
