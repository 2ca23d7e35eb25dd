"""What the matches of a photo show: how much each counts, which agree on a place, and the evidence for that place.

Descriptors of one area share a direction: its light, its sky, its kind of buildings. It raises every cosine and says
nothing about where in the area a photo was taken, or whether it was taken there at all. A *centred* cosine leaves it
out: the mean descriptor of the index is subtracted from both sides first.
"""

from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval.geo import Float64Array, Position, from_local_metres, haversine_m, to_local_metres
from retrieval.index.sampling import drawn, evenly_spaced

Float32Array = NDArray[np.float32]
FixMethod = Literal["top1", "weighted_cluster", "medoid", "kernel_mode"]
FIX_METHODS: Final[tuple[FixMethod, ...]] = ("top1", "weighted_cluster", "medoid", "kernel_mode")
EVIDENCE_NAMES: Final = ("score", "margin", "share")

# The accuracy of a phone's GPS under an open sky: no radius that was not measured is smaller.
GUESSED_RADIUS_M: Final = 5.0

# `score_spread` of the index of one campus by the shipped bundle, not adapted: 849 photos 0.0727, 694 of them 0.0723.
# It is the index that `score_scale` was chosen on; of other indexes and models, scores are counted in its units.
USUAL_SPREAD: Final = 0.0725

_SPREAD_MATCHES: Final = 10
_SPREAD_ROWS: Final = 2_000
# Of photos that are all alike.
_SMALLEST_SPREAD: Final = 1e-4

# Mean shift ends after so many steps, or when a step is shorter than this.
_MEAN_SHIFTS: Final = 50
_CONVERGED_M: Final = 0.01
_CENTRE_ROWS: Final = 4096


@dataclass(frozen=True, slots=True)
class FixSettings:
    """How a fix is made.

    Attributes:
        method: `top1` is the best match's position; `weighted_cluster` the score-weighted mean of the matches around
            the place that most score-weight agrees on; `medoid` the match of that cluster that lies nearest to all
            the others; `kernel_mode` the densest point of all matches, each a normal distribution of `kernel_m`.
        max_matches: how many of the best matches take part.
        cluster_radius_m: matches within this distance of each other belong to the same place.
        kernel_m: standard deviation of a match's position in `kernel_mode`.
        score_scale: a match whose cosine is this much below the best counts 1/e as much, in an index whose scores
            have the `USUAL_SPREAD`; where they lie k times as far apart, k times as much below.
        evidence_matches: how many of the best matches confidence is computed from.
        min_support_share: without a calibration: unless the matches at the fix hold more than this share of the
            weight, it is AMBIGUOUS.
        min_confidence: with a calibration: a fix of a lower confidence is AMBIGUOUS.
        min_familiarity: with a calibration: a photo less familiar than this is NO_MATCH, see `FixMaker.familiarity`;
            None takes the calibration's own threshold, -1 answers always.
        min_radius_m: the least radius of a fix. None: without a calibration `GUESSED_RADIUS_M`; with one, whatever
            was measured, which includes the references' own errors already.
    """

    method: FixMethod = "weighted_cluster"
    max_matches: int = 10
    cluster_radius_m: float = 25.0
    kernel_m: float = 10.0
    score_scale: float = 0.02
    evidence_matches: int = 20
    min_support_share: float = 0.5
    min_confidence: float = 0.5
    min_familiarity: float | None = None
    min_radius_m: float | None = None

    @property
    def matches_needed(self) -> int:
        """How many matches a search must return."""
        return max(self.max_matches, self.evidence_matches)


@dataclass(frozen=True, slots=True)
class Agreement:
    """The place that the best matches agree on.

    Attributes:
        position: of the place.
        members: (k,) bool, which of the matches that took part belong to it.
        share: of the weight of all that took part, in (0, 1].
        weights: (k,) float64, of the matches that took part; sum 1.
        distances_m: (k,) float64, of these matches from the match that the place was found around.
        deviations_m: (members, 2) float64, metres east and north of the position.
    """

    position: Position
    members: NDArray[np.bool_]
    share: float
    weights: Float64Array
    distances_m: Float64Array
    deviations_m: Float64Array


def match_weights(cosines: Float64Array, score_scale: float) -> Float64Array:
    """How much each match counts: a softmax of its cosine.

    Args:
        cosines: (k,) of the matches in units of the usual spread, the best first; at least one.
        score_scale: a match whose cosine is this much below the best counts 1/e as much.

    Returns:
        (k,) float64, sum 1.
    """
    weights = np.exp((cosines - cosines[0]) / score_scale)
    return np.asarray(weights / weights.sum())


def agree(lat: Float64Array, lon: Float64Array, cosines: Float64Array, settings: FixSettings) -> Agreement:
    """Find the place that the best matches agree on.

    Args:
        lat, lon: (k,) degrees of the matched references, best match first; at least one.
        cosines: (k,) in units of the usual spread, descending; see `USUAL_SPREAD`.
        settings: how.
    """
    k = min(len(cosines), settings.max_matches)
    lat, lon = lat[:k], lon[:k]
    weights = match_weights(cosines[:k], settings.score_scale)
    distances = haversine_m(lat[:, None], lon[:, None], lat[None], lon[None])
    near = distances <= settings.cluster_radius_m
    # Rounded: equal shares must compare as equal, and the whole weight must not exceed 1.
    shares = (near @ weights).round(9)
    # argmax takes the first of equals, which is the better match.
    seed = 0 if settings.method == "top1" else int(np.argmax(shares))
    if settings.method == "kernel_mode":
        seed = int(np.argmax((_normal(distances, settings.kernel_m) @ weights).round(9)))
    centre = Position(float(lat[seed]), float(lon[seed]))
    places = to_local_metres(centre, lat, lon)
    members = near[seed]
    if settings.method == "kernel_mode":
        offset = _mode(places, weights, settings.kernel_m)
        members = np.hypot(*(places - offset).T) <= settings.cluster_radius_m
    elif settings.method == "top1":
        offset = np.zeros(2)
    elif settings.method == "medoid":
        inside = np.flatnonzero(members)
        offset = places[inside[np.argmin((distances[np.ix_(inside, inside)] @ weights[inside]).round(6))]]
    else:
        offset = weights[members] @ places[members] / weights[members].sum()
    position = from_local_metres(centre, float(offset[0]), float(offset[1])) if offset.any() else centre
    return Agreement(
        position, members, min(1.0, float(weights[members].sum().round(9))), weights, distances[seed],
        places[members] - offset,
    )  # fmt: skip


def _normal(distance_m: Float64Array, std_m: float) -> Float64Array:
    return np.asarray(np.exp(-(distance_m**2) / (2.0 * std_m**2)))


def _mode(places: Float64Array, weights: Float64Array, std_m: float) -> Float64Array:
    """The mode near the origin: mean shift of Comaniciu & Meer, PAMI 2002, with a normal kernel."""
    at = np.zeros(2)
    for _ in range(_MEAN_SHIFTS):
        pull = weights * _normal(np.hypot(*(places - at).T), std_m)
        step = pull @ places / pull.sum() - at
        at = at + step
        if np.hypot(*step) < _CONVERGED_M:
            break
    return at


class StoredRows(Protocol):
    """What is read of stored descriptors: every place index and `ExactVectors` are one."""

    @property
    def count(self) -> int:
        """Number of references."""

    def descriptors(self, rows: NDArray[np.int64]) -> Float32Array:
        """The stored descriptors of some rows: (len(rows), D) float32."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """The evidence for a fix.

    Attributes:
        score: best centred cosine of a match at the fix.
        margin: by how much that exceeds the best centred cosine of a match elsewhere; where no match lies elsewhere,
            the least of all, which is what any other place has at most.
        share: of the score weight of all matches that took part, how much lies at the fix.
    """

    score: float
    margin: float
    share: float

    @property
    def values(self) -> Float64Array:
        """(3,) float64, in the order of `EVIDENCE_NAMES`."""
        return np.array([self.score, self.margin, self.share])


def evidence_of(
    agreement: Agreement, lat: Float64Array, lon: Float64Array, centred: Float64Array, settings: FixSettings
) -> Evidence:
    """The evidence for the place that matches agree on, and against it.

    Args:
        agreement: the place.
        lat, lon: (k,) degrees of the matches, best first; more may be given than took part in the agreement.
        centred: (k,) centred cosine of each.
        settings: how it was found.
    """
    k = min(len(centred), settings.matches_needed)
    lat, lon, centred = lat[:k], lon[:k], centred[:k]
    position = agreement.position
    here = haversine_m(position.lat, position.lon, lat, lon) <= settings.cluster_radius_m
    here[: len(agreement.members)] |= agreement.members
    elsewhere = centred[~here].max() if not here.all() else centred.min()
    best = centred[here].max()
    return Evidence(score=float(best), margin=float(best - elsewhere), share=agreement.share)


def score_spread(stored: StoredRows) -> float:
    """How far apart the scores of a photo's ten best matches lie: the best less the tenth, a mean over all photos.

    Of fewer than 100 photos a tenth of them count, for the tenth best of 20 is one of the worst. Of many scores whose
    tail is exponential the k best lie 1 + 1/2 + … + 1/(k − 1) apart (Rényi, "On the theory of order statistics", 1953);
    so what k span tells what ten would.

    Args:
        stored: N rows; up to 2,000 of them, drawn at random, are each matched with the others.

    Returns:
        at least 0.0001; `USUAL_SPREAD` of fewer than 20 rows, which tell nothing.
    """
    last = min(_SPREAD_MATCHES, stored.count // 10)
    if last < 2:
        return USUAL_SPREAD
    descriptors = stored.descriptors(drawn(stored.count, _SPREAD_ROWS))
    scores = descriptors @ descriptors.T
    np.fill_diagonal(scores, -np.inf)
    best = -np.partition(-scores, last - 1, axis=1)[:, :last]
    spanned = float((best.max(axis=1) - best.min(axis=1)).mean())
    return max(spanned * _harmonic(_SPREAD_MATCHES - 1) / _harmonic(last - 1), _SMALLEST_SPREAD)


def _harmonic(count: int) -> float:
    return float((1.0 / np.arange(1, count + 1)).sum())


def centre_rows(count: int) -> NDArray[np.int64]:
    """The rows whose mean is an index's centre: all, or 4096 evenly spaced ones."""
    return evenly_spaced(count, _CENTRE_ROWS)


def centre_of(index: StoredRows) -> Float32Array:
    """The mean descriptor of an index: (D,) float32."""
    return np.asarray(index.descriptors(centre_rows(index.count)).mean(axis=0, dtype=np.float64), np.float32)


def centred_cosines(descriptors: Float32Array, matched: Float32Array, centre: Float32Array) -> Float64Array:
    """Cosines of queries and their matches around a centre.

    Args:
        descriptors: (Q, D) float32.
        matched: (Q, k, D) float32, the stored descriptors of each query's matches.
        centre: (D,) float32, or (Q, D), one for each query.

    Returns:
        (Q, k) float64 in [-1, 1].
    """
    queries = descriptors - centre
    matches = matched - np.atleast_2d(centre)[:, None]
    lengths = np.linalg.norm(queries, axis=-1)[:, None] * np.linalg.norm(matches, axis=-1)
    products = np.einsum("qd,qkd->qk", queries, matches)
    cosines = (products / np.maximum(lengths, 1e-12)).astype(np.float64)
    return np.asarray(np.clip(cosines, -1.0, 1.0))
