"""What a search returns."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The matches of Q queries.

    Attributes:
        rows: (Q, k) int64, best first, -1 where there are fewer than k.
        scores: (Q, k) float32, cosine, -inf where there are fewer than k.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
