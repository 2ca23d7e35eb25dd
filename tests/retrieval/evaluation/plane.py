"""Positions in a plane."""

import numpy as np
from numpy.typing import ArrayLike

from retrieval.evaluation import Positions


def plane(metres: ArrayLike) -> Positions:
    """Positions from (N, 2) metres east and north."""
    return Positions(plane_m=np.asarray(metres, np.float64).reshape(-1, 2))
