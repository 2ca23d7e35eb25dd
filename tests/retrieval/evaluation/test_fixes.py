import numpy as np

from retrieval.evaluation import Fixes
from retrieval.localize.evidence import FixSettings
from retrieval.localize.fix import FixMaker, FixStatus
from tests.retrieval.fixing import PlacedRows, make_fix

LAT = np.array([48.0, 48.0001, 48.5, 48.0002])
LON = np.array([11.0, 11.0001, 11.5, 11.0002])
MAKER = FixMaker(PlacedRows(LAT, LON), FixSettings())


def test_each_query_gets_the_fix_of_its_own_matches() -> None:
    rows = np.array([[1, 0, 2], [2, 3, -1], [-1, -1, -1]])
    scores = np.array([[0.9, 0.88, 0.5], [0.7, 0.7, -np.inf], [-np.inf] * 3], np.float32)
    fixes = Fixes.of([MAKER.fix(MAKER.ranking(*each)) for each in zip(rows, scores, strict=True)])
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


def test_nothing_asked_is_no_fix() -> None:
    assert len(Fixes.of([]).lat) == 0
