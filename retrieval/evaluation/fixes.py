"""One position fix per query, as columns."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.calibration import Calibration
from retrieval.errors import ParameterError
from retrieval.evaluation.positions import Int64Array, Positions
from retrieval.fix import FixSettings, FixStatus, make_fix
from retrieval.geo import Float64Array

_REPORT_EVERY = 256


@dataclass(frozen=True, slots=True)
class Fixes:
    """One position fix per query, with NaN where none was given.

    Attributes:
        lat, lon: (Nq,) float64 WGS84 degrees, NaN where there is no fix.
        confidence: (Nq,) float64, the stated probability that the truth lies within 25 m, or None.
        radius_m: (Nq,) float64 metres, the stated radius that holds the truth 68 % of the time, or None.
        located: (Nq,) bool, whether the status is LOCATED (not AMBIGUOUS, not NO_MATCH), or None.
        calibrated: whether confidence and radius were fitted to measured errors.
        familiarity: (Nq,) float64, the best centred cosine of each, or None.

    Raises:
        ParameterError: shapes that do not fit, or a confidence outside [0, 1] where there is a fix.
    """

    lat: Float64Array
    lon: Float64Array
    confidence: Float64Array | None = None
    radius_m: Float64Array | None = None
    located: NDArray[np.bool_] | None = None
    calibrated: bool = True
    familiarity: Float64Array | None = None

    def __post_init__(self) -> None:
        columns = {"longitude": self.lon, "confidence": self.confidence, "radius_m": self.radius_m}
        for name, column in {**columns, "located": self.located, "familiarity": self.familiarity}.items():
            if column is not None and column.shape != self.lat.shape:
                raise ParameterError(f"{name} of the fixes has shape {column.shape}, latitude has {self.lat.shape}")
        stated = self.confidence[self.answered] if self.confidence is not None else np.empty(0)
        if not ((stated >= 0.0) & (stated <= 1.0)).all():
            raise ParameterError("a fix has a confidence outside [0, 1]", remedy="Give a probability with each fix")

    @property
    def answered(self) -> NDArray[np.bool_]:
        """(Nq,) bool: which queries have a fix."""
        return np.asarray(np.isfinite(self.lat) & np.isfinite(self.lon))


def fixes_of_matches(
    database: Positions,
    rows: Int64Array,
    scores: NDArray[np.float32],
    settings: FixSettings | None = None,
    on_progress: Callable[[int], None] | None = None,
    centred: Float64Array | None = None,
    calibration: Calibration | None = None,
) -> Fixes:
    """Make the fix of every query from its matches, as the service does.

    Args:
        database: N positions with degrees.
        rows: (Nq, K) int64 database rows, best first, -1 where there is no match.
        scores: (Nq, K) float32 cosine, descending.
        settings: how a fix is made.
        on_progress: called now and then with the number of queries done since.
        centred: (Nq, ≤ K) float64 centred cosine of the first matches; needed with a calibration.
        calibration: of the index that was searched.

    Raises:
        ParameterError: the database has no degrees.
    """
    if database.lat is None or database.lon is None:
        raise ParameterError("a fix is in degrees, but the database has plane metres only")
    settings = settings or FixSettings()
    lat, lon, confidence, radius_m = columns = np.full((4, len(rows)), np.nan)
    located, calibrated = np.zeros(len(rows), bool), True
    for query in range(len(rows)):
        places = rows[query][rows[query] >= 0][: settings.matches_needed]
        cosines = np.clip(scores[query][: len(places)].astype(np.float64), -1.0, 1.0)
        around = None if centred is None else centred[query][: len(places)]
        status, fix = make_fix(database.lat[places], database.lon[places], cosines, settings, around, calibration)
        if fix is not None:
            columns[:, query] = fix.position.lat, fix.position.lon, fix.confidence, fix.radius_m
            calibrated = calibrated and fix.calibrated
        located[query] = status is FixStatus.LOCATED
        if on_progress is not None and ((query + 1) % _REPORT_EVERY == 0 or query + 1 == len(rows)):
            on_progress(query % _REPORT_EVERY + 1)
    # A calibration of other settings is not used, and NO_MATCH says nothing about either.
    calibrated = calibrated and centred is not None and calibration is not None and calibration.holds_for(settings)
    familiarity = None if centred is None else centred[:, : settings.matches_needed].max(axis=1)
    return Fixes(lat, lon, confidence, radius_m, located, calibrated, familiarity)
