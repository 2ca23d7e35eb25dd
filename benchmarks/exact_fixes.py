"""Fixes of matches that an exact ranking found among described photos, without an index."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.describer import Descriptors
from retrieval.evaluation import Fixes, Positions
from retrieval.geo import Float64Array
from retrieval.localize.evidence import FixSettings
from retrieval.localize.fix import FixMaker


@dataclass(frozen=True)
class PlacedPhotos:
    """Photos at positions, as `FixMaker` reads them. No fix without a calibration reads a descriptor."""

    lat: Float64Array
    lon: Float64Array
    score_stretch: float = 1.0

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


def fixes_of_matches(
    database: Positions, rows: NDArray[np.int64], scores: NDArray[np.float32], settings: FixSettings | None = None
) -> Fixes:
    """The fix of every query, not calibrated.

    Args:
        database: N positions with degrees.
        rows, scores: (Q, K), best first.
        settings: how fixes are made.
    """
    assert database.lat is not None
    assert database.lon is not None
    maker = FixMaker(PlacedPhotos(database.lat, database.lon), settings or FixSettings())
    return Fixes.of([maker.fix(maker.ranking(*matches)) for matches in zip(rows, scores, strict=True)])
