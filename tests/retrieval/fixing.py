"""One fix from positions and scores, without a place index."""

import numpy as np

from retrieval.localize.calibration import Calibration
from retrieval.localize.evidence import FixSettings
from retrieval.localize.fix import Fix, FixMaker, FixStatus


class PlacedRows:
    """Rows at positions, with descriptors that are never looked at."""

    def __init__(self, lat: np.ndarray, lon: np.ndarray, score_stretch: float = 1.0) -> None:
        self.lat, self.lon = lat, lon
        self.count = len(lat)
        self.score_stretch = score_stretch

    def descriptors(self, rows: np.ndarray) -> np.ndarray:
        return np.zeros((len(rows), 1), np.float32)

    def positions(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.lat[rows], self.lon[rows]


def make_fix(
    lat: np.ndarray,
    lon: np.ndarray,
    scores: np.ndarray,
    settings: FixSettings,
    centred: np.ndarray | None = None,
    calibration: Calibration | None = None,
) -> tuple[FixStatus, Fix | None]:
    """The fix of matches at some positions, best first."""
    maker = FixMaker(PlacedRows(lat, lon), settings, calibration)
    return maker.fix(maker.ranking(np.arange(len(lat)), scores), centred)
