import numpy as np
import pytest

from retrieval.evaluation import Bootstrap, Fixes, Positions, Protocol, Ranked, evaluate, plain_text
from retrieval.evaluation.fixes import confidence_report, no_match_curve, status_report

NOWHERE = np.full(4, np.nan)


def stated(confidence: list[float], **more: object) -> Fixes:
    lat = np.where(np.isfinite(confidence), 48.0, np.nan)
    return Fixes(lat, lat - 37.0, np.array(confidence), **more)  # type: ignore[arg-type]


def test_the_curve_of_the_surest_by_hand() -> None:
    """Right, wrong, (right, right at equal confidence), one unanswered."""
    fixes = stated([0.9, 0.7, 0.4, 0.4, np.nan])
    report = confidence_report(fixes, np.array([1.0, 90.0, 2.0, 3.0, np.nan]), np.arange(5), Bootstrap(resamples=50))
    assert report is not None
    curve = [(point.confidence, point.answered_share, point.within_share) for point in report.answered_curve]
    assert curve == [(0.9, 0.2, 1.0), (0.7, 0.4, 0.5), (0.4, 0.8, 0.75)]


def test_the_interval_of_the_calibration_error_draws_whole_groups() -> None:
    """Two kinds of place, always right and never right, all at 0.5: with ten places the error is hardly known, with as
    many fixes at places of their own it is."""
    random = np.random.default_rng(0)
    right = np.repeat(random.permutation([True, False] * 5), 100)
    fixes = stated([0.5] * 1000)
    errors = np.where(right, 1.0, 100.0)
    together = confidence_report(fixes, errors, np.repeat(np.arange(10), 100), Bootstrap())
    alone = confidence_report(fixes, errors, np.arange(1000), Bootstrap())
    assert together is not None
    assert alone is not None
    assert together.calibration_error.value == alone.calibration_error.value == pytest.approx(0.0, abs=1e-12)
    assert together.calibration_error.high > 0.25
    assert alone.calibration_error.high < 0.05


def test_honest_confidence_is_not_expected_to_show_0() -> None:
    few = confidence_report(stated([0.5] * 50), np.zeros(50), np.arange(50), Bootstrap(resamples=10))
    assert few is not None
    # One bin: the mean absolute deviation of a mean of 50 coins, sqrt(2 / pi) * 0.5 / sqrt(50).
    assert few.calibration_error_if_honest == pytest.approx(0.0564, rel=0.1)
    assert few.calibration_error.value == 0.5


def test_statuses_add_up() -> None:
    fixes = stated([0.9, 0.2, 0.3, np.nan], located=np.array([True, False, False, False]))
    report = status_report("solvable queries", fixes, np.array([True, True, True, True]))
    assert report is not None
    assert (report.located_share, report.ambiguous_share, report.no_match_share) == (0.25, 0.5, 0.25)
    assert status_report("none", fixes, np.zeros(4, bool)) is None
    assert status_report("without statuses", stated([0.9]), np.ones(1, bool)) is None


def test_the_curve_of_no_match_by_hand() -> None:
    queries = Fixes(NOWHERE, NOWHERE, familiarity=np.array([0.5, 0.6, 0.7, 0.1]))
    elsewhere = Fixes(NOWHERE, NOWHERE, familiarity=np.array([0.2, 0.3, 0.55, 0.9]))
    curve = no_match_curve(queries, np.array([True, True, True, False]), elsewhere)
    assert (curve[0].familiarity, curve[0].solvable_share, curve[0].elsewhere_share) == (0.5, 0.0, 0.5)
    assert curve[-1].familiarity == pytest.approx(0.6)
    assert curve[-1].elsewhere_share == 0.75
    assert no_match_curve(queries, np.ones(4, bool), None) == ()
    assert no_match_curve(queries, np.zeros(4, bool), elsewhere) == ()


def test_an_evaluation_tells_what_photos_from_elsewhere_were_told() -> None:
    at = Positions.from_degrees([48.0, 48.001, 48.002], [11.0, 11.0, 11.0])
    rows = np.array([[0, 1], [1, 2], [0, 1]])
    made = Fixes(
        np.array([48.0, 48.001, np.nan]), np.array([11.0, 11.0, np.nan]), np.array([0.9, 0.4, np.nan]),
        np.array([10.0, 10.0, np.nan]), np.array([True, False, False]), True, np.array([0.8, 0.7, 0.2]),
    )  # fmt: skip
    away = Fixes(NOWHERE[:2], NOWHERE[:2], located=np.zeros(2, bool), familiarity=np.array([0.1, 0.75]))
    ranked = Ranked(at, at, rows, made, elsewhere=away)
    report = evaluate(ranked, Protocol(recall_at=(1,), bootstrap=Bootstrap(resamples=20))).report
    assert [(status.of, status.photos) for status in report.statuses] == [
        ("solvable queries", 3),
        ("photos from elsewhere", 2),
    ]
    assert report.no_match_curve
    text = plain_text(report)
    told = next(line for line in text.splitlines() if "photos from elsewhere" in line)
    assert told.split()[-4:] == ["2", "0.0", "0.0", "100.0"]
    assert "the same, were all confidences right" in text
    assert "If only the surest were answered" in text
    assert type(report).model_validate_json(report.model_dump_json()) == report
