"""A track: the frames of one moving camera, weighed one after the other, and the position that they give."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from retrieval.errors import ParameterError
from retrieval.geo import EARTH_RADIUS_M, Float64Array, Position
from retrieval.localize.fix import FixStatus
from retrieval.tracking.belief import Belief, Motion, MotionKernel, Observation, carry, observe, predict
from retrieval.tracking.places import PlaceMap
from retrieval.tracking.settings import Odometry, TrackSettings

if TYPE_CHECKING:
    from retrieval.index.searchable import SearchablePlaceIndex

# Confidence is the probability to be this near, as in `retrieval.localize.fix`.
_NEAR_M: Final = 25.0

# The photos' own GPS is not better, as in `FixSettings.min_radius_m`.
_GPS_RADIUS_M: Final = 5.0

_CANDIDATES: Final = 32

# How much the frames of a camera that stands count beside those of one that moves. Not 0: it may have been carried.
_STANDING: Final = 0.1

References: TypeAlias = "PlaceMap | SearchablePlaceIndex | tuple[ArrayLike, ArrayLike]"


@dataclass(frozen=True, slots=True)
class TrackedFix:
    """Where a track believes its camera to be.

    Attributes:
        status: LOCATED where more than half the belief is at the position, NO_MATCH where there is none at all.
        position: WGS84 degrees; None with NO_MATCH.
        covariance_enu: ((east², east·north), (north·east, north²)) in m², of the belief around the position.
        radius_m: what holds 68 % of the whole belief; where the track is lost, that is the whole map.
        confidence: the belief within 25 m of the position, in [0, 1]. Not calibrated.
        frames: how many the track has taken in.
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
        frames: taken in until now.
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


class Track:
    """A Bayes filter over reference places for the frames of one camera.

    Localizing by sequence, not by frame, is old in the field: Milford & Wyeth, SeqSLAM (ICRA 2012); Cummins & Newman,
    FAB-MAP (IJRR 2008), which filters over places as this does. The formulas are in `retrieval.tracking.belief`.

    Memory is bounded by `max_places`, and work by `max_places`, `max_pairs` and `max_matches`, whatever the number of
    references. Not safe to share between threads: one track, one camera.

    Args:
        references: where they are: a `PlaceMap` (share one between the tracks of an index), an index, or (lat, lon)
            arrays in degrees by row. From the latter two a map is made, which takes seconds for a million references.
        settings: how to track.

    Attributes:
        places: the map.
        belief: what is believed now.
        frames: how many were taken in.
        touched: how many places the last update read.
        was_lost: whether it was lost when the last frame came, the motion since the one before included.

    Raises:
        ParameterError: positions that are no positions, or a map of another `place_m` than the settings'.
    """

    def __init__(self, references: References, settings: TrackSettings | None = None) -> None:
        self.settings = settings or TrackSettings()
        self.places = _place_map(references, self.settings.place_m)
        self.belief = Belief.unknown()
        self.frames = 0
        self.touched = 0
        self.was_lost = True
        self._at: float | None = None
        self._pending = Motion.of(0.0, None)
        # Since the last frame that had matches; None before the first.
        self._unseen: Motion | None = None

    def update(
        self, rows: NDArray[np.int64], scores: NDArray[np.floating], at: float, odometry: Odometry | None = None
    ) -> TrackedFix:
        """Take in one frame.

        Args:
            rows: (K,) int64 rows of the frame's matches, -1 for none; K may be 0: then only time passes.
            scores: (K,) their cosines, in units of the usual spread (`Ranking.cosines`).
            at: when the frame was taken, seconds on any clock that does not go back (monotonic or Unix time).
            odometry: the motion since the last frame; not used with the first.

        Returns:
            the fix after this frame.

        Raises:
            ParameterError: a frame older than the last (``frame_out_of_order``), a time or score that is not finite, or
                rows that are none. The track is then as before.
        """
        seconds = self._seconds_to(at)
        observation = Observation.of(rows, scores, self.places, self.settings)
        step = Motion.of(seconds, odometry)
        # Nothing below fails, so a refused frame leaves the track as it was.
        belief, touched = self._moved(step) if self.frames else (self.belief, 0)
        self.was_lost = belief.is_lost
        unseen = None if self._unseen is None else _after(self._unseen, step)
        freshness = 1.0 if unseen is None else self._freshness(unseen)
        belief = observe(belief, observation, self.places.count, self.settings, freshness)
        self.belief = belief.kept(self.settings.max_places)
        # A frame without matches does not make the next one count less.
        self._unseen = Motion.of(0.0, None) if len(observation.places) else unseen
        self.touched = touched + observation.touched
        self.frames += 1
        self._at = at
        return self.fix()

    def carry_to(self, places: PlaceMap) -> None:
        """Go on over another map, such as that of the index's next version, with the same belief.

        Args:
            places: the weight of each place goes to the nearest one there, or to lost where none is near.

        Raises:
            ParameterError: a map of another `place_m`; the track is then as before.
        """
        places = _place_map(places, self.settings.place_m)
        if places is not self.places:
            self.belief = carry(self.belief, self.places, places)
            self.places = places

    def fix(self) -> TrackedFix:
        """The fix of the belief as it is."""
        mean, covariance = self._pending.mean_enu, self._pending.covariance_enu
        known = mean is not None and covariance is not None
        shift: Float64Array = mean if known and mean is not None else np.zeros(2)
        spread: Float64Array = covariance if known and covariance is not None else np.zeros((2, 2))
        return fix_of(self.belief, self.places, self.frames, shift, spread)

    def _seconds_to(self, at: float) -> float:
        if not math.isfinite(at):
            raise ParameterError(f"a frame was taken at {at}, which is no time", remedy="Give seconds")
        if self._at is None:
            return 0.0
        if at < self._at:
            raise ParameterError(
                f"a frame of {at:.3f} s comes after one of {self._at:.3f} s",
                remedy="Send frames in the order they were taken, or open a new track",
                code="frame_out_of_order",
            )
        return at - self._at

    def _moved(self, step: Motion) -> tuple[Belief, int]:
        """The belief after a step; steps that are small beside the distance of places are added up first.

        A step of half a metre between places ten metres apart would be lost in rounding each time, and the belief would
        never move (Probabilistic Robotics, section 8.2.3).
        """
        pending = _after(self._pending, step)
        doubted = self.belief.doubted(-math.expm1(-self.settings.jump_rate * step.seconds))
        if not self._is_a_step(pending):
            self._pending = pending
            return doubted, 0
        self._pending = Motion.of(0.0, None)
        spread = self.places.spacing_m**2 / 6.0
        return predict(doubted, self.places, MotionKernel(pending, spread, self.settings), self.settings)

    def _is_a_step(self, motion: Motion) -> bool:
        least = self.places.spacing_m / 2.0
        if motion.distance_m is None:
            return self.settings.speed_mps * motion.seconds >= least
        return motion.distance_m >= least or math.sqrt(motion.variance_m2) >= least

    def _freshness(self, step: Motion) -> float:
        """How much of a frame is new after such a step, in [0, 1]."""
        fresh = 1.0
        if self.settings.evidence_s > 0.0:
            fresh = min(fresh, step.seconds / self.settings.evidence_s)
        if self.settings.evidence_m > 0.0 and step.distance_m is not None:
            fresh *= min(1.0, max(step.distance_m / self.settings.evidence_m, _STANDING))
        return fresh


def _after(motion: Motion, step: Motion) -> Motion:
    """A motion and the step after it; the step alone where the motion has not begun."""
    return motion.then(step) if motion.seconds or motion.distance_m else step


def _place_map(references: References, place_m: float) -> PlaceMap:
    if isinstance(references, PlaceMap):
        if references.place_m != place_m:
            raise ParameterError(
                f"a map of places of {references.place_m:g} m does not fit a track with place_m {place_m:g}",
                remedy="Make both with the same place_m",
            )
        return references
    lat, lon = references if isinstance(references, tuple) else references.all_positions()
    return PlaceMap(lat, lon, place_m)
