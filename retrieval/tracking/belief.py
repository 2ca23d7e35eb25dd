"""The belief of a track, and the two steps of a Bayes filter over it.

The state is a reference place, or *lost*: anywhere, all P places alike. With w(p) the weight of the places held, and u
that of lost, the belief is b(p) = w(p) + u / P. One frame (Thrun, Burgard & Fox, Probabilistic Robotics, 2005, table
4.1: the discrete Bayes filter; section 4.1.4: selective updating; section 8.3.5: random poses against kidnapping) takes
it through

    predict   w'(q) = (1 - ε) Σ_p T(q | p) w(p)          u' = 1 - Σ_q w'(q)
    observe   w''(q) ∝ L(q) w'(q) + s(q) u'              u'' ∝ κ u'

with a(q) the likeness of the place (`Evidence`), κ = `miss_share` and

    L(q) = κ + ρ a(q)            ρ = min(`contrast`, (1 - κ) P / Σ a)
    s(q) = (1 - κ) a(q) / Σ a

T(q | p) = k(p, q) / Σ_q' k(p, q') · min(1, max_q' k(p, q') / `FAR`), where k is the motion kernel. What it falls short
of 1 goes to lost: no place lies where the motion would have led. ε = 1 - exp(-`jump_rate` · seconds) goes there too.

Where the contrast does not bind, ρ a(q) / P = s(q): this is Bayes' rule exactly, with lost as the uniform distribution.
Where it binds, lost still starts anew from the frame with its full weight (as sensor resetting does, Lenser & Veloso
2000), but what is held is multiplied by less: frames in a row show the same street, so their errors are not
independent, and a look-alike must not win by P to 1 for looking alike twice. A frame that is only partly news
(`freshness` f) counts as L^f, κ^f and (1 - κ^f) a / Σ a.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from retrieval.geo import Float64Array
from retrieval.tracking.evidence import Evidence
from retrieval.tracking.motion import MotionKernel
from retrieval.tracking.places import Int64Array, PlaceMap
from retrieval.tracking.settings import TrackSettings

# A motion whose likeliest target is less likely than this (2.1 σ off) loses weight.
FAR: Final = 0.1
# Weights below it are not worth their memory: together, 4,096 of them are 0.4 %.
_NEGLIGIBLE: Final = 1e-6
_LOST_FROM: Final = 0.5


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


def observe(belief: Belief, evidence: Evidence, count: int, settings: TrackSettings, freshness: float = 1.0) -> Belief:
    """Weigh a belief with a frame.

    Args:
        belief: before the frame.
        evidence: of the frame; without any, nothing changes.
        count: P, the number of places there are.
        freshness: how much of the frame is news, in [0, 1].
    """
    whole = float(evidence.likeness.sum())
    if not whole > 0.0:
        return belief
    miss = settings.miss_share
    contrast = min(settings.contrast, (1.0 - miss) * count / whole)
    places = np.union1d(belief.places, evidence.places)
    weights = np.zeros(len(places), np.float64)
    weights[np.searchsorted(places, belief.places)] = belief.weights
    likeness = evidence.at(places)
    seeds = belief.lost * (1.0 - miss**freshness) * likeness / whole
    weights = weights * (miss + contrast * likeness) ** freshness + seeds
    lost = belief.lost * miss**freshness
    total = float(weights.sum()) + lost
    return Belief(places, weights / total, lost / total)
