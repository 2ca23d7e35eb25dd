"""The belief of a track over reference places, and the two steps of a Bayes filter over it: motion, then a frame.

The state is a reference place, or *lost*: anywhere, all P places alike. With w(p) the weight of the places held, and u
that of lost, the belief is b(p) = w(p) + u / P. One frame (Thrun, Burgard & Fox, Probabilistic Robotics, 2005, table
4.1: the discrete Bayes filter; section 4.1.4: selective updating; section 8.3.5: random poses against kidnapping) takes
it through

    predict   w'(q) = (1 - ε) Σ_p T(q | p) w(p)          u' = 1 - Σ_q w'(q)
    observe   w''(q) ∝ L(q) w'(q) + s(q) u'              u'' ∝ κ u'

with a(q) the likeness of the place (`Observation`), κ = `miss_share` and

    L(q) = κ + ρ a(q)            ρ = min(`contrast`, (1 - κ) P / Σ a)
    s(q) = (1 - κ) a(q) / Σ a

T(q | p) = k(p, q) / Σ_q' k(p, q') · min(1, max_q' k(p, q') / `FAR`), where k is the motion kernel. What it falls short
of 1 goes to lost: no place lies where the motion would have led. ε = 1 - exp(-`jump_rate` · seconds) goes there too.

Where the contrast does not bind, ρ a(q) / P = s(q): this is Bayes' rule exactly, with lost as the uniform distribution.
Where it binds, lost still starts anew from the frame with its full weight (as sensor resetting does, Lenser & Veloso
2000), but what is held is multiplied by less: frames in a row show the same street, so their errors are not
independent, and a place that looks like the true one must not win by P to 1 for matching twice. A frame that is only
partly new (`freshness` f) counts as L^f, κ^f and (1 - κ^f) a / Σ a.

The motion model is that of Probabilistic Robotics, chapter 5 (odometry as noisy measurement of displacement) and
section 8.2 (what coarse cells do to a motion model). Here the cells are places some metres apart, so every displacement
between two places is known only up to where in its place the camera stood: that variance is added to the odometry's.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ParameterError
from retrieval.geo import Float64Array
from retrieval.localize.evidence import match_weights
from retrieval.tracking.places import Int64Array, PlaceMap
from retrieval.tracking.settings import Displacement, Distance, Odometry, TrackSettings

# Beyond this many σ a displacement has no weight.
CUT_SIGMAS: Final = 4.0

# A motion whose likeliest target is less likely than this (2.1 σ off) loses weight.
FAR: Final = 0.1

# Weights below it are not worth their memory: together, 4,096 of them are 0.4 %.
_NEGLIGIBLE: Final = 1e-6

_LOST_FROM: Final = 0.5


@dataclass(frozen=True, slots=True)
class Motion:
    """What is known about the motion of some time.

    Attributes:
        seconds: how long.
        distance_m: travelled, or None where that is not known.
        variance_m2: of the distance.
        mean_enu: displacement (2,) east and north in metres, or None where no direction is known.
        covariance_enu: (2, 2) of the displacement, m².
    """

    seconds: float
    distance_m: float | None = None
    variance_m2: float = 0.0
    mean_enu: Float64Array | None = None
    covariance_enu: Float64Array | None = None

    @classmethod
    def of(cls, seconds: float, odometry: Odometry | None) -> "Motion":
        """The motion of one interval.

        Args:
            seconds: since the last frame, not negative.
            odometry: of the same interval, or None.
        """
        if odometry is None:
            return cls(seconds)
        if isinstance(odometry, Displacement):
            mean = np.array([odometry.east_m, odometry.north_m])
            variance = odometry.std_m**2
            return cls(seconds, float(np.hypot(*mean)), variance, mean, np.eye(2) * variance)
        if isinstance(odometry, Distance):
            metres, std = odometry.metres, odometry.std_m
        else:
            metres, std = odometry.mps * seconds, odometry.std_mps * seconds
        if odometry.heading_deg is None:
            return cls(seconds, abs(metres), std**2)
        heading = math.radians(odometry.heading_deg)
        along = np.array([math.sin(heading), math.cos(heading)])
        across = np.array([along[1], -along[0]])
        sideways = metres * math.radians(odometry.heading_std_deg)
        covariance = std**2 * np.outer(along, along) + sideways**2 * np.outer(across, across)
        return cls(seconds, abs(metres), std**2, metres * along, covariance)

    def then(self, later: "Motion") -> "Motion":
        """Both motions, one after the other; what only one of them knows is dropped."""
        seconds = self.seconds + later.seconds
        if self.distance_m is None or later.distance_m is None:
            return Motion(seconds)
        together = Motion(seconds, self.distance_m + later.distance_m, self.variance_m2 + later.variance_m2)
        if self.mean_enu is None or later.mean_enu is None:
            return together
        assert self.covariance_enu is not None
        assert later.covariance_enu is not None
        return replace(
            together, mean_enu=self.mean_enu + later.mean_enu, covariance_enu=self.covariance_enu + later.covariance_enu
        )


@dataclass(frozen=True, slots=True)
class MotionKernel:
    """Weights of displacements between places, 1 for the likeliest.

    Attributes:
        motion: what is known.
        spread_m2: variance per axis of where a camera stands between two places, m².
        settings: speeds, where no distance is known.
    """

    motion: Motion
    spread_m2: float
    settings: TrackSettings

    @property
    def reach_m(self) -> float:
        """No displacement beyond it has weight."""
        motion, place = self.motion, math.sqrt(self.spread_m2)
        if motion.distance_m is None:
            # The bound of speed, and the place's own size on top: its photos lie anywhere in it.
            return self.settings.max_speed_mps * motion.seconds + CUT_SIGMAS * place
        if motion.mean_enu is None or motion.covariance_enu is None:
            return motion.distance_m + CUT_SIGMAS * math.sqrt(motion.variance_m2 + self.spread_m2)
        widest = float(np.linalg.eigvalsh(motion.covariance_enu)[-1])
        return float(np.hypot(*motion.mean_enu)) + CUT_SIGMAS * math.sqrt(max(widest, 0.0) + self.spread_m2)

    def weights(self, east_north: Float64Array, distance_m: Float64Array) -> Float64Array:
        """How likely displacements are beside the likeliest.

        Args:
            east_north: (N, 2) metres from the earlier to the later place.
            distance_m: (N,) their lengths.

        Returns:
            (N,) float64 in [0, 1].
        """
        motion = self.motion
        if motion.distance_m is None:
            variance = (self.settings.speed_mps * motion.seconds) ** 2 + self.spread_m2
            return np.asarray(np.exp(-(distance_m**2) / (2.0 * variance)))
        if motion.mean_enu is None or motion.covariance_enu is None:
            variance = motion.variance_m2 + self.spread_m2
            return np.asarray(np.exp(-((distance_m - motion.distance_m) ** 2) / (2.0 * variance)))
        precision = np.linalg.inv(motion.covariance_enu + np.eye(2) * self.spread_m2)
        away = east_north - motion.mean_enu
        return np.asarray(np.exp(-0.5 * np.einsum("ni,ij,nj->n", away, precision, away)))


@dataclass(frozen=True, slots=True)
class Observation:
    """How far the matches of one frame support places.

    The softmax over their scores is taken as p(place | frame) under a uniform prior. Bayes' rule then gives the
    likelihood up to a constant, p(frame | place) ∝ p(place | frame) / p(place) (the scaled likelihood of Bourlard &
    Morgan, Connectionist Speech Recognition, 1994). Places without a match keep a floor, as the measurement models of
    Probabilistic Robotics do (section 6.4).

    Attributes:
        places: (M,) int64, ascending, all places near a match.
        likeness: (M,) float64 in [0, 1]; 1 where the whole weight of the matches is. 0 for every other place.
        touched: how many places were read.
    """

    places: Int64Array
    likeness: Float64Array
    touched: int

    @classmethod
    def of(
        cls, rows: NDArray[np.int64], scores: NDArray[np.floating], places: PlaceMap, settings: TrackSettings
    ) -> "Observation":
        """The observation of one frame.

        Each match's share of the softmax counts at its own place in full, and at places around as a normal
        distribution of `match_std_m` falls off: a frame taken between two places looks like both.

        Args:
            rows: (K,) rows of references, in any order; -1 is no match, as in `SearchResult`.
            scores: (K,) cosines in units of the usual spread, `Ranking.cosines`.

        Raises:
            ParameterError: shapes that do not fit, no such row, a score that is not a number.
        """
        rows, cosines = _checked(rows, scores, len(places.place_of))
        if len(rows) == 0:
            return cls(np.empty(0, np.int64), np.empty(0), 0)
        best = np.argsort(-cosines, kind="stable")[: settings.max_matches]
        weights = match_weights(cosines[best], settings.score_scale)
        matched, whose = np.unique(places.place_of[rows[best]].astype(np.int64), return_inverse=True)
        shares = np.bincount(whose.ravel(), weights)
        pairs = places.near(matched, 3.0 * settings.match_std_m)
        falls_off = np.exp(-(pairs.distance_m**2) / (2.0 * settings.match_std_m**2))
        found, target = np.unique(pairs.target, return_inverse=True)
        likeness = np.bincount(target.ravel(), shares[pairs.source] * falls_off).astype(np.float64)
        return cls(found, likeness, pairs.touched)

    def at(self, places: Int64Array) -> Float64Array:
        """The likeness of some places: (S,) float64, 0 for those without."""
        if len(self.places) == 0:
            return np.zeros(len(places))
        slot = np.minimum(np.searchsorted(self.places, places), len(self.places) - 1)
        return np.where(self.places[slot] == places, self.likeness[slot], 0.0)


def _checked(rows: NDArray[np.int64], scores: NDArray[np.floating], count: int) -> tuple[Int64Array, Float64Array]:
    """The matches as checked numbers, without the empty slots."""
    rows, cosines = np.asarray(rows), np.asarray(scores, np.float64)
    if rows.ndim != 1 or rows.shape != cosines.shape or (len(rows) and rows.dtype.kind not in "iu"):
        raise ParameterError(
            f"matches of a frame are rows {rows.shape} {rows.dtype} and scores {cosines.shape}",
            remedy="Give one row number and one score a match",
        )
    kept = rows >= 0
    rows, cosines = rows[kept].astype(np.int64), cosines[kept]
    if len(rows) and int(rows.max()) >= count:
        raise ParameterError(
            f"a frame matches reference {int(rows.max())} of {count}",
            remedy="Open a new track when another version of the index is served",
        )
    if not np.isfinite(cosines).all():
        raise ParameterError("a score of a frame's matches is not a finite number", remedy="Leave such matches out")
    return rows, cosines


@dataclass(frozen=True, slots=True)
class Belief:
    """A belief.

    Attributes:
        places: (A,) int64, ascending: the places that are held.
        weights: (A,) float64.
        lost: the weight of being anywhere. All weights and this add up to 1.
    """

    places: Int64Array
    weights: Float64Array
    lost: float

    @classmethod
    def unknown(cls) -> "Belief":
        """Lost, wholly."""
        return cls(np.empty(0, np.int64), np.empty(0), 1.0)

    @property
    def is_lost(self) -> bool:
        """Whether most of it is anywhere."""
        return self.lost > _LOST_FROM

    def kept(self, at_most: int) -> "Belief":
        """The heaviest places only; the others' weight goes to lost."""
        keep = self.weights > _NEGLIGIBLE
        if int(keep.sum()) > at_most:
            keep = np.zeros(len(self.weights), bool)
            keep[np.argpartition(-self.weights, at_most - 1)[:at_most]] = True
        return Belief(self.places[keep], self.weights[keep], max(0.0, 1.0 - float(self.weights[keep].sum())))

    def doubted(self, share: float) -> "Belief":
        """A share of every place's weight goes to lost."""
        return Belief(self.places, self.weights * (1.0 - share), share + (1.0 - share) * self.lost)


def carry(belief: Belief, before: PlaceMap, after: PlaceMap) -> Belief:
    """The same belief over another map: the weight of each place goes to the nearest one there.

    A place that has none within half the distance that places usually have is gone; its weight goes to lost.

    Args:
        belief: over `before`.
        before: the map until now.
        after: the map from now on.
    """
    reach_m = max(2.0 * after.place_m, min(before.spacing_m, after.spacing_m) / 2.0)
    nearest = after.nearest(before.lat[belief.places], before.lon[belief.places], reach_m)
    kept = nearest >= 0
    places, slot = np.unique(nearest[kept], return_inverse=True)
    weights = np.bincount(slot.ravel(), belief.weights[kept], minlength=len(places)).astype(np.float64)
    return Belief(places, weights, max(0.0, 1.0 - float(weights.sum())))


def predict(belief: Belief, places: PlaceMap, kernel: MotionKernel, settings: TrackSettings) -> tuple[Belief, int]:
    """Move a belief.

    Returns:
        the belief after the motion, and how many places were read.
    """
    if len(belief.places) == 0:
        return belief, 0
    if kernel.reach_m > settings.max_reach_m:
        return Belief.unknown(), 0
    # Heaviest first: where the limit of pairs bites, it bites those that matter least.
    order = np.argsort(-belief.weights, kind="stable")
    sources, weights = belief.places[order], belief.weights[order]
    pairs = places.near(sources, kernel.reach_m, settings.max_pairs)
    likely = kernel.weights(pairs.east_north, pairs.distance_m)
    total = np.bincount(pairs.source, likely, minlength=len(sources))
    best = np.zeros(len(sources))
    np.maximum.at(best, pairs.source, likely)
    leaves = weights * np.minimum(1.0, best / FAR) / np.maximum(total, 1e-300)
    targets, slot = np.unique(pairs.target, return_inverse=True)
    arrives = np.bincount(slot.ravel(), leaves[pairs.source] * likely, minlength=len(targets))
    moved = arrives.astype(np.float64)
    return Belief(targets, moved, max(0.0, 1.0 - float(moved.sum()))), pairs.touched


def observe(
    belief: Belief, observation: Observation, count: int, settings: TrackSettings, freshness: float = 1.0
) -> Belief:
    """Weigh a belief with a frame.

    Args:
        belief: before the frame.
        observation: of the frame; without any match, nothing changes.
        count: P, the number of places there are.
        freshness: how much of the frame is new, in [0, 1].
    """
    whole = float(observation.likeness.sum())
    if not whole > 0.0:
        return belief
    miss = settings.miss_share
    contrast = min(settings.contrast, (1.0 - miss) * count / whole)
    places = np.union1d(belief.places, observation.places)
    weights = np.zeros(len(places), np.float64)
    weights[np.searchsorted(places, belief.places)] = belief.weights
    likeness = observation.at(places)
    seeds = belief.lost * (1.0 - miss**freshness) * likeness / whole
    weights = weights * (miss + contrast * likeness) ** freshness + seeds
    lost = belief.lost * miss**freshness
    total = float(weights.sum()) + lost
    return Belief(places, weights / total, lost / total)
