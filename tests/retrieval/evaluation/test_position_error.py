import numpy as np
import pytest

from retrieval.errors import ParameterError
from retrieval.evaluation import Bootstrap, Fixes, Positions
from retrieval.evaluation.fixes import confidence_report, fix_errors_m, position_error_report, top_errors_m
from retrieval.evaluation.positions import true_ground
from retrieval.geo import Position, from_local_metres, haversine_m
from tests.retrieval.evaluation.plane import plane

HERE = Position(31.262, 34.801)


def moved(east: list[float]) -> Positions:
    places = [from_local_metres(HERE, metres, 0.0) for metres in east]
    return Positions.from_degrees([p.lat for p in places], [p.lon for p in places])


def test_errors_of_the_best_match_by_hand() -> None:
    ground = true_ground(moved([0.0, 0.0, 0.0]), moved([30.0, 7.0]))
    errors = top_errors_m(ground, np.array([[0, 1], [1, 0], [-1, -1]]))
    np.testing.assert_allclose(errors, [30.0, 7.0, np.nan], atol=1e-6)


def test_chord_and_arc_agree_over_the_whole_earth() -> None:
    random = np.random.default_rng(0)
    lat, lon = random.uniform(-90, 90, (2, 200)), random.uniform(-180, 180, (2, 200))
    ground = true_ground(Positions.from_degrees(lat[0], lon[0]), Positions.from_degrees(lat[1], lon[1]))
    rows = np.arange(200)
    np.testing.assert_allclose(ground.distance_m(rows, rows), haversine_m(lat[0], lon[0], lat[1], lon[1]), rtol=1e-6)


def test_fix_errors_leave_the_unanswered_out() -> None:
    fixes_at = moved([10.0, 50.0])
    fixes = Fixes(np.append(fixes_at.lat, np.nan), np.append(fixes_at.lon, np.nan))
    np.testing.assert_allclose(fix_errors_m(moved([0.0, 0.0, 0.0]), fixes), [10.0, 50.0, np.nan], atol=1e-6)


def test_report_by_hand() -> None:
    """Errors 1..9 and 100, two unanswered: median 5.5, p90 9 + 0.1 * 91 = 18.1, nine of ten within 25 m."""
    errors = np.array([*range(1, 10), 100.0, np.nan, np.nan])
    report = position_error_report("fix", errors, np.arange(12), Bootstrap())
    assert (report.answered, report.unanswered) == (10, 2)
    assert report.median_m.value == 5.5
    assert report.p90_m.value == pytest.approx(18.1)
    assert report.within_share.value == 0.9
    assert report.median_m.low < 5.5 < report.median_m.high
    assert report.within_share.low < 0.9 <= report.within_share.high == 1.0


def test_nothing_answered_is_no_number() -> None:
    report = position_error_report("top-1", np.full(3, np.nan), np.arange(3), Bootstrap())
    assert (report.answered, report.unanswered) == (0, 3)
    assert report.median_m.value is None
    assert report.within_share.low is None


def test_the_border_counts_as_within() -> None:
    report = position_error_report("top-1", np.array([25.0, 25.0001]), np.arange(2), Bootstrap())
    assert report.within_share.value == 0.5


def test_right_confidence_scores_better_than_the_base_rate_and_wrong_confidence_worse() -> None:
    random = np.random.default_rng(0)
    truth = random.random(5000)
    errors = np.where(random.random(5000) < truth, 5.0, 80.0)
    at = np.zeros(5000)
    honest = confidence_report(Fixes(at, at, truth), errors, np.arange(5000), Bootstrap(resamples=20))
    lying = confidence_report(Fixes(at, at, 1.0 - truth), errors, np.arange(5000), Bootstrap(resamples=20))
    assert honest is not None
    assert lying is not None
    assert honest.calibration_error.value < 0.03
    assert honest.calibration_error_if_honest == pytest.approx(honest.calibration_error.value, abs=0.01)
    assert honest.brier == pytest.approx(1 / 6, abs=0.01)  # E[c (1 - c)] for uniform c
    assert honest.brier_of_base_rate == pytest.approx(1 / 4, abs=0.01)
    assert lying.brier > lying.brier_of_base_rate
    assert lying.calibration_error.value > 0.4
    assert lying.calibration_error.low > 0.4
    assert [b.fixes for b in honest.bins] == [500] * 10


def test_confidence_by_hand() -> None:
    """Two fixes at 0.8, one right; two at 0.2, none right. Brier (0.04 + 0.64 + 0.04 + 0.04) / 4; one unanswered."""
    at = np.array([0.0, 0.0, 0.0, 0.0, np.nan])
    fixes = Fixes(at, at, np.array([0.8, 0.8, 0.2, 0.2, np.nan]), np.array([10.0, 10.0, 50.0, 90.0, np.nan]))
    report = confidence_report(fixes, np.array([5.0, 60.0, 70.0, 80.0, np.nan]), np.arange(5), Bootstrap())
    assert report is not None
    assert report.brier == pytest.approx(0.19)
    assert report.brier_of_base_rate == pytest.approx(0.25 * 0.75)
    assert [(b.fixes, b.mean_confidence, b.within_share) for b in report.bins] == [(2, 0.2, 0.0), (2, 0.8, 0.5)]
    assert report.calibration_error.value == pytest.approx((2 * 0.2 + 2 * 0.3) / 4)
    assert report.radius_coverage.value == 0.5


def test_no_confidence_no_report() -> None:
    at = np.zeros(2)
    assert confidence_report(Fixes(at, at), np.zeros(2), np.arange(2), Bootstrap()) is None
    nowhere = np.full(2, np.nan)
    assert confidence_report(Fixes(nowhere, nowhere, at), nowhere, np.arange(2), Bootstrap()) is None


def test_fixes_are_checked() -> None:
    at = np.zeros(2)
    with pytest.raises(ParameterError, match="outside \\[0, 1\\]"):
        Fixes(at, at, np.array([0.5, 1.5]))
    with pytest.raises(ParameterError, match="outside \\[0, 1\\]"):
        Fixes(at, at, np.array([0.5, np.nan]))
    with pytest.raises(ParameterError, match="shape"):
        Fixes(at, np.zeros(3))
    with pytest.raises(ParameterError, match="plane metres only"):
        fix_errors_m(plane([[0.0, 0.0]]), Fixes(at[:1], at[:1]))
    with pytest.raises(ParameterError, match="2 fixes for 1 queries"):
        fix_errors_m(moved([0.0]), Fixes(at, at))
