"""Which photos of a batch show the same place, and so must not be pushed apart.

Told by distance, not by a place number: being within 25 m of each other is not transitive, so no numbering says it; and
positions can be compared with those in a queue or in another process.
"""

import torch
from torch import Tensor

from retrieval.geo import EARTH_RADIUS_M


def same_place(positions: Tensor, others: Tensor, radius_m: float) -> Tensor:
    """Which of `others` lie within `radius_m` of which of `positions`.

    Args:
        positions: (N, 3) float64, points on the unit sphere as `retrieval.geo.unit_vectors` gives them.
        others: (M, 3) float64; a row of NaN is nowhere.
        radius_m: metres, the border included.

    Returns:
        (N, M) bool.
    """
    # The chord differs from the arc by less than a micrometre at 25 m. Differences, not |a|² + |b|² − 2ab: in that, a
    # metre on the Earth drowns in float64's rounding.
    chord = torch.cdist(positions.double(), others.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return chord * EARTH_RADIUS_M <= radius_m
