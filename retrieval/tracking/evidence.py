"""What one frame says about places: its matches as a likelihood.

A recogniser's scores are no likelihood, but they can be made its posterior p(place | frame) under a uniform prior: a
softmax over the scores. Bayes' rule then gives the likelihood up to a constant, p(frame | place) ∝ p(place | frame) /
p(place) (the scaled likelihood of Bourlard & Morgan, Connectionist Speech Recognition, 1994). Places that no match
speak for keep a floor, as the measurement models of Probabilistic Robotics do (Thrun, Burgard & Fox 2005, section
6.4).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ParameterError
from retrieval.geo import Float64Array
from retrieval.tracking.places import Int64Array, PlaceMap
from retrieval.tracking.settings import TrackSettings


@dataclass(frozen=True, slots=True)
class Evidence:
    """How far a frame's matches speak for places.

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
        cls,
        rows: NDArray[np.int64],
        scores: NDArray[np.floating],
        places: PlaceMap,
        settings: TrackSettings,
    ) -> "Evidence":
        """The evidence of one frame.

        Each match's share of the softmax counts at its own place in full, and at places around as a normal
        distribution of `match_std_m` falls off: a frame taken between two places looks like both.

        Args:
            rows: (K,) rows of references, in any order; -1 is no match, as in `SearchResult`.
            scores: (K,) cosines.

        Raises:
            ParameterError: shapes that do not fit, no such row, a score that is not a number.
        """
        rows, cosines = _checked(rows, scores, len(places.place_of))
        if len(rows) == 0:
            return cls(np.empty(0, np.int64), np.empty(0), 0)
        best = np.argsort(-cosines, kind="stable")[: settings.max_matches]
        weights = np.exp((cosines[best] - cosines[best[0]]) / settings.score_scale)
        matched, whose = np.unique(places.place_of[rows[best]].astype(np.int64), return_inverse=True)
        shares = np.bincount(whose.ravel(), weights / weights.sum())
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
    """The matches as numbers that can be trusted, without the empty slots."""
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
