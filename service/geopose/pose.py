"""From an answer to a pose: the fix, the heights and the directions of view of the references that speak for it."""

import math
from typing import Final

import numpy as np

from retrieval.answer import FixAnswer, LocalizeAnswer, MatchAnswer
from retrieval.fix import FixSettings
from retrieval.geo import haversine_m
from retrieval.searchable_index import SearchablePlaceIndex
from service.geopose.protocol import GeoPose, GeoPoseAccuracy, GeoPosePosition, GeoPoseQuaternion

# Photos of one thing differ by up to half a field of view in where they look: an assumption, not a measurement.
_MIN_ORIENTATION_DEG: Final = 30.0
_UNKNOWN_DEG: Final = 180.0
# Below this mean resultant length the directions agree too little to have a mean: they spread over 67 degrees.
_MIN_RESULTANT: Final = 0.5


def pose_of(
    answer: LocalizeAnswer, index: SearchablePlaceIndex | None, settings: FixSettings
) -> tuple[GeoPose, GeoPoseAccuracy]:
    """The pose of the camera.

    The heading is the mean of those of the matches at the fix, weighted like the fix itself. Pitch and roll are taken
    as 0. Without headings, or when they disagree, the quaternion is identity and its accuracy 180 degrees.

    Args:
        answer: with a fix.
        index: that answered; None leaves the height at 0.
        settings: how the fix was made.
    """
    fix = answer.fix
    assert fix is not None, "only for answers with a fix"
    supporting, weights = _supporting(fix, answer.matches, settings)
    quaternion, orientation_deg = _orientation(supporting, weights)
    height_m = _height_m(supporting, weights, index)
    pose = GeoPose(position=GeoPosePosition(lat=fix.lat, lon=fix.lon, h=height_m), quaternion=quaternion)
    return pose, GeoPoseAccuracy(position=fix.radius_m, orientation=orientation_deg)


def _supporting(
    fix: FixAnswer, matches: list[MatchAnswer], settings: FixSettings
) -> tuple[list[MatchAnswer], np.ndarray]:
    near = [
        match for match in matches if haversine_m(fix.lat, fix.lon, match.lat, match.lon) <= settings.cluster_radius_m
    ]
    scores = np.array([match.score for match in near])
    return near, np.exp((scores - scores.max(initial=-1.0)) / settings.score_scale)


def _orientation(matches: list[MatchAnswer], weights: np.ndarray) -> tuple[GeoPoseQuaternion, float]:
    headings = np.array([math.nan if match.heading is None else match.heading for match in matches])
    stated = np.isfinite(headings)
    identity = GeoPoseQuaternion(x=0.0, y=0.0, z=0.0, w=1.0)
    if not stated.any():
        return identity, _UNKNOWN_DEG
    # Counter-clockwise from east, as mathematics and ENU have it; headings are clockwise from north.
    yaws = np.radians(90.0 - headings[stated])
    mean = complex(np.average(np.exp(1j * yaws), weights=weights[stated]))
    resultant = min(abs(mean), 1.0)
    if resultant < _MIN_RESULTANT:
        return identity, _UNKNOWN_DEG
    yaw = math.atan2(mean.imag, mean.real)
    spread_deg = math.degrees(math.sqrt(-2.0 * math.log(resultant)))
    quaternion = GeoPoseQuaternion(x=0.0, y=0.0, z=math.sin(yaw / 2.0), w=math.cos(yaw / 2.0))
    return quaternion, max(spread_deg, _MIN_ORIENTATION_DEG)


def _height_m(matches: list[MatchAnswer], weights: np.ndarray, index: SearchablePlaceIndex | None) -> float:
    """The mean altitude of the references, as they state it; 0 where none does."""
    if index is None or not matches:
        return 0.0
    weight_of = {match.reference_id: weight for match, weight in zip(matches, weights, strict=True)}
    # By positions: ids are text, and looking each up takes longer than the search did.
    there = index.rows_at([(match.lat, match.lon) for match in matches])
    found = [
        (reference.altitude_m, weight_of[reference.id])
        for reference in index.references(there)
        if reference.altitude_m is not None and reference.id in weight_of
    ]
    if not found:
        return 0.0
    altitudes, at_weights = zip(*found, strict=True)
    return float(np.average(altitudes, weights=at_weights))
