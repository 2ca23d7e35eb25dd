"""Fixes of matches that an exact ranking found among described photos, without an index."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.describer import Descriptors
from retrieval.evaluation import Fixes, Positions
from retrieval.geo import Float64Array
from retrieval.index.vectors.exact import ExactVectors
from retrieval.localize.evidence import USUAL_SPREAD, FixSettings, score_spread
from retrieval.localize.fix import FixMaker


@dataclass(frozen=True)
class PlacedPhotos:
    """Photos at positions, as `FixMaker` reads them. No fix without a calibration reads a descriptor."""

    lat: Float64Array
    lon: Float64Array
    score_stretch: float

    @property
    def count(self) -> int:
        """Number of photos."""
        return len(self.lat)

    def positions(self, rows: NDArray[np.int64]) -> tuple[Float64Array, Float64Array]:
        """Degrees of some photos."""
        return self.lat[rows], self.lon[rows]

    def descriptors(self, rows: NDArray[np.int64]) -> Descriptors:
        """None are kept."""
        raise AssertionError("a fix without a calibration reads no descriptors")


def stretch_of(descriptors: Descriptors) -> float:
    """What an index of these would have as `score_stretch`."""
    stored = ExactVectors.from_descriptors([descriptors], descriptors.shape[1], "fp32")
    return score_spread(stored) / USUAL_SPREAD


def fixes_of_matches(
    database: Positions,
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    settings: FixSettings | None = None,
    score_stretch: float = 1.0,
) -> Fixes:
    """The fix of every query, not calibrated.

    Args:
        database: N positions with degrees.
        rows, scores: (Q, K), best first.
        settings: how fixes are made.
        score_stretch: of the database, see `stretch_of`; 1 on the campus with the shipped bundle as it is.
    """
    assert database.lat is not None
    assert database.lon is not None
    maker = FixMaker(PlacedPhotos(database.lat, database.lon, score_stretch), settings or FixSettings())
    return Fixes.of([maker.fix(maker.ranking(*matches)) for matches in zip(rows, scores, strict=True)])
