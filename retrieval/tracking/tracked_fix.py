"""From a belief to one position."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from retrieval.fix import FixStatus
from retrieval.geo import EARTH_RADIUS_M, Float64Array, Position
from retrieval.tracking.belief import Belief
from retrieval.tracking.places import PlaceMap

# What confidence is the probability of, as in `retrieval.fix`.
_NEAR_M: Final = 25.0
# The photos' own GPS is not better, as in `FixSettings.min_radius_m`.
_GPS_RADIUS_M: Final = 5.0
_CANDIDATES: Final = 32


@dataclass(frozen=True, slots=True)
class TrackedFix:
    """Where a track believes its camera to be.

    Attributes:
        status: LOCATED where more than half the belief is at the position, NO_MATCH where there is none at all.
        position: WGS84 degrees; None with NO_MATCH.
        covariance_enu: ((east², east·north), (north·east, north²)) in m², of the belief around the position.
        radius_m: what holds 68 % of the whole belief; where the track is lost, that is the whole map.
        confidence: the belief within 25 m of the position, in [0, 1]. Not calibrated.
        frames: how many the track has seen.
        lost: whether most of the belief is anywhere: no place is held.
    """

    status: FixStatus
    position: Position | None
    covariance_enu: tuple[tuple[float, float], tuple[float, float]] | None
    radius_m: float | None
    confidence: float
    frames: int
    lost: bool


def fix_of(
    belief: Belief, places: PlaceMap, frames: int, shift_enu: Float64Array, shift_covariance: Float64Array
) -> TrackedFix:
    """The fix of a belief: the mean of the places around the one that most belief lies around.

    Args:
        belief: over places.
        places: the map.
        frames: seen until now.
        shift_enu: (2,) metres that the camera has moved since the places were believed.
        shift_covariance: (2, 2) m², of that.
    """
    lost = belief.is_lost
    if len(belief.places) == 0:
        return TrackedFix(FixStatus.NO_MATCH, None, None, None, 0.0, frames, lost)
    points, weights = places.points(belief.places), belief.weights
    seed = _densest(points, weights)
    near = _metres(points - points[seed]) <= _NEAR_M
    share = weights[near] / weights[near].sum()
    east, north = (axis[0] for axis in places.axes(belief.places[seed : seed + 1]))
    mean = share @ points[near]
    way = np.stack([(points[near] - mean) @ east, (points[near] - mean) @ north], axis=1) * EARTH_RADIUS_M
    # A camera stands anywhere in its place: uniform over the spacing.
    inside_place = places.spacing_m**2 / 12.0
    covariance = (share[:, None] * way).T @ way + np.eye(2) * (inside_place + _GPS_RADIUS_M**2 / 2.0)
    covariance = covariance + shift_covariance
    moved = mean + (shift_enu[0] * east + shift_enu[1] * north) / EARTH_RADIUS_M
    distance = _metres(points - mean)
    confidence = min(1.0, float(weights[distance <= _NEAR_M].sum()))
    return TrackedFix(
        status=FixStatus.LOCATED if confidence > 0.5 else FixStatus.AMBIGUOUS,
        position=_position(moved),
        covariance_enu=(
            (float(covariance[0, 0]), float(covariance[0, 1])),
            (float(covariance[1, 0]), float(covariance[1, 1])),
        ),
        radius_m=_radius_m(covariance, distance, weights, places.farthest_m(mean)),
        confidence=confidence,
        frames=frames,
        lost=lost,
    )


def _densest(points: Float64Array, weights: Float64Array) -> int:
    """Which of the heaviest places most belief lies around."""
    heaviest = np.argsort(-weights, kind="stable")[:_CANDIDATES]
    away = _metres(points[heaviest][:, None] - points[None])
    # Rounded, so that equals are equal: argmax then takes the heavier place.
    around = ((away <= _NEAR_M) @ weights).round(9)
    return int(heaviest[np.argmax(around)])


def _metres(chords: Float64Array) -> Float64Array:
    return np.asarray(np.sqrt(np.einsum("...i,...i->...", chords, chords)) * EARTH_RADIUS_M)


def _radius_m(covariance: Float64Array, distance: Float64Array, weights: Float64Array, whole_map_m: float) -> float:
    """The radius around the position that holds 68 % of the belief, lost included; never below the spread's own."""
    spread = math.sqrt(float(np.trace(covariance)) / 2.0) * math.sqrt(-2.0 * math.log(0.32))
    order = np.argsort(distance)
    holds = np.cumsum(weights[order]) >= 0.68
    return max(spread, float(distance[order][np.argmax(holds)]) if holds.any() else whole_map_m)


def _position(point: Float64Array) -> Position:
    x, y, z = (float(value) for value in point)
    return Position(math.degrees(math.atan2(z, math.hypot(x, y))), math.degrees(math.atan2(y, x)))
