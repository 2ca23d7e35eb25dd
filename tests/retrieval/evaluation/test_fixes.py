import numpy as np
import pytest

from retrieval.errors import ParameterError
from retrieval.evaluation import Positions, fixes_of_matches
from retrieval.localize.fix import FixSettings, FixStatus, make_fix

LAT = np.array([48.0, 48.0001, 48.5, 48.0002])
LON = np.array([11.0, 11.0001, 11.5, 11.0002])


def test_each_query_gets_the_fix_of_its_own_matches() -> None:
    rows = np.array([[1, 0, 2], [2, 3, -1], [-1, -1, -1]])
    scores = np.array([[0.9, 0.88, 0.5], [0.7, 0.7, -np.inf], [-np.inf] * 3], np.float32)
    fixes = fixes_of_matches(Positions.from_degrees(LAT, LON), rows, scores)
    for query, count in enumerate([3, 2]):
        matched = rows[query, :count]
        status, fix = make_fix(LAT[matched], LON[matched], scores[query, :count].astype(np.float64), FixSettings())
        assert fix is not None
        assert (fixes.lat[query], fixes.lon[query]) == (fix.position.lat, fix.position.lon)
        assert fixes.confidence is not None
        assert fixes.radius_m is not None
        assert (fixes.confidence[query], fixes.radius_m[query]) == (fix.confidence, fix.radius_m)
        assert fixes.located is not None
        assert fixes.located[query] == (status is FixStatus.LOCATED)
        assert fixes.calibrated == fix.calibrated
    assert fixes.answered.tolist() == [True, True, False]
    assert fixes.located.tolist() == [True, False, False]


def test_the_method_can_be_chosen() -> None:
    rows, scores = np.array([[0, 1]]), np.array([[0.9, 0.9]], np.float32)
    top = fixes_of_matches(Positions.from_degrees(LAT, LON), rows, scores, FixSettings(method="top1"))
    assert top.lat[0] == LAT[0]
    mean = fixes_of_matches(Positions.from_degrees(LAT, LON), rows, scores, FixSettings(method="weighted_cluster"))
    assert mean.lat[0] == pytest.approx(48.00005, abs=1e-9)


def test_progress_counts_every_query_once() -> None:
    seen: list[int] = []
    rows, scores = np.zeros((600, 1), np.int64), np.ones((600, 1), np.float32)
    fixes_of_matches(Positions.from_degrees(LAT, LON), rows, scores, on_progress=seen.append)
    assert seen == [256, 256, 88]


def test_a_plane_has_no_fix() -> None:
    with pytest.raises(ParameterError, match="plane metres only"):
        fixes_of_matches(Positions.from_plane([[0.0, 0.0]]), np.array([[0]]), np.ones((1, 1), np.float32))
