"""What the matches tell about an answer before anyone knows whether it is right: a few numbers with a meaning.

Descriptors of one place share a direction: its light, its sky, its kind of buildings. It raises every cosine and says
nothing about where in the place a photo was taken, or whether it was taken there at all. A *centred* cosine leaves it
out: the mean descriptor of the index is taken off both sides first.
"""

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval.agreement import Agreement, FixSettings
from retrieval.geo import Float64Array, haversine_m

Float32Array = NDArray[np.float32]

EVIDENCE_NAMES: Final = ("score", "margin", "share")

_CENTRE_ROWS: Final = 4096


class StoredDescriptors(Protocol):
    """What a place index tells of its descriptors."""

    @property
    def count(self) -> int:
        """Number of references."""

    def descriptors(self, rows: NDArray[np.int64]) -> Float32Array:
        """The stored descriptors of some rows: (len(rows), D) float32."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What speaks for a fix.

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
    """What speaks for an agreement, and what against it.

    Args:
        agreement: of these matches.
        lat, lon: (k,) degrees of the matches, best first; more may be given than took part in the agreement.
        centred: (k,) centred cosine of each.
        settings: how the agreement was found.
    """
    k = min(len(centred), settings.matches_needed)
    lat, lon, centred = lat[:k], lon[:k], centred[:k]
    position = agreement.position
    here = haversine_m(position.lat, position.lon, lat, lon) <= settings.cluster_radius_m
    here[: len(agreement.members)] |= agreement.members
    elsewhere = centred[~here].max() if not here.all() else centred.min()
    best = centred[here].max()
    return Evidence(score=float(best), margin=float(best - elsewhere), share=agreement.share)


def centre_rows(count: int) -> NDArray[np.int64]:
    """The rows whose mean is an index's centre: all, or 4096 evenly spaced ones."""
    return np.linspace(0, count - 1, min(count, _CENTRE_ROWS)).round().astype(np.int64)


def centre_of(index: StoredDescriptors) -> Float32Array:
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
