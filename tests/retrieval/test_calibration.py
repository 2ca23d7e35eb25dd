import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from retrieval.errors import ParameterError
from retrieval.geo import Position, from_local_metres
from retrieval.localize.calibration import Calibration, MethodCalibration, RadiusKnot, logistic
from retrieval.localize.evidence import FIX_METHODS, Evidence, FixSettings
from retrieval.localize.fix import FixStatus
from tests.retrieval.fixing import make_fix

KNOTS = (RadiusKnot(confidence=0.2, radius_m=100.0), RadiusKnot(confidence=0.8, radius_m=10.0))
METHOD = MethodCalibration(intercept=-3.0, weights=(4.0, 10.0, 1.0), radius=KNOTS)


def calibration(**changes: object) -> Calibration:
    settings = FixSettings()
    known = {name: getattr(settings, name) for name in
             ("max_matches", "cluster_radius_m", "kernel_m", "score_scale", "evidence_matches")}  # fmt: skip
    return Calibration(
        **{
            "held_out": "sessions", "queries": 500, "groups": 4, "within_m": 25.0, "right_share": 0.6,
            "min_familiarity": 0.3, "rejected_share": 0.07, "away_m": 100.0, "away_queries": 500,
            "away_rejected_share": 0.5, "methods": dict.fromkeys(FIX_METHODS, METHOD), **known, **changes,
        }
    )  # fmt: skip


def matches() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    places = [from_local_metres(Position(48.0, 11.0), east, 0.0) for east in (0.0, 4.0, 600.0)]
    return np.array([p.lat for p in places]), np.array([p.lon for p in places]), np.array([0.80, 0.79, 0.75])


def test_confidence_by_hand() -> None:
    evidence = Evidence(score=0.4, margin=0.1, share=0.8)
    said = -3.0 + 1.6 + 1.0 + 0.8
    assert METHOD.confidence(evidence) == pytest.approx(1.0 / (1.0 + np.exp(-said)))
    assert logistic(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 0.5, 1.0]


def test_the_radius_between_knots_is_geometric_and_constant_outside() -> None:
    assert METHOD.radius_m(0.5) == pytest.approx(np.sqrt(1000.0))
    assert METHOD.radius_m(0.0) == METHOD.radius_m(0.2) == pytest.approx(100.0)
    assert METHOD.radius_m(1.0) == pytest.approx(10.0)


@given(st.lists(st.floats(-1, 2), min_size=6, max_size=6))
def test_more_evidence_never_means_less_confidence_nor_a_larger_radius(values: list[float]) -> None:
    less, more = np.sort(np.reshape(values, (2, 3)), axis=0)
    low, high = METHOD.confidences(np.array([less, more]))
    assert low <= high
    assert METHOD.radius_m(low) >= METHOD.radius_m(high) - 1e-9


def test_a_calibrated_fix_by_hand() -> None:
    lat, lon, scores = matches()
    centred = np.array([0.6, 0.5, 0.4])
    status, fix = make_fix(lat, lon, scores, FixSettings(), centred, calibration())
    assert fix is not None
    share = np.exp([0.0, -0.5]).sum() / np.exp([0.0, -0.5, -2.5]).sum()
    expected = 1.0 / (1.0 + np.exp(-(-3.0 + 4.0 * 0.6 + 10.0 * 0.2 + share)))
    assert fix.calibrated
    assert fix.confidence == pytest.approx(expected, abs=1e-6)
    assert fix.radius_m == pytest.approx(METHOD.radius_m(fix.confidence))
    assert status is FixStatus.LOCATED
    # The covariance is as large as the radius says: a circle of 68 %.
    assert np.trace(fix.covariance_enu) == pytest.approx(2.0 * fix.radius_m**2 / (-2.0 * np.log(0.32)))
    assert fix.covariance_enu[0][0] > fix.covariance_enu[1][1]


def test_statuses_follow_the_calibration_and_can_be_overridden() -> None:
    unsure, strange = np.array([0.35, 0.34, 0.34]), np.array([0.29, 0.2, 0.1])
    found = matches()

    def status(centred: np.ndarray, **settings: float) -> FixStatus:
        return make_fix(*found, FixSettings(**settings), centred, calibration())[0]

    assert status(unsure) is FixStatus.AMBIGUOUS
    assert status(unsure, min_confidence=0.1) is FixStatus.LOCATED
    assert status(unsure, min_familiarity=0.36) is FixStatus.NO_MATCH
    assert make_fix(*found, FixSettings(), strange, calibration()) == (FixStatus.NO_MATCH, None)
    assert status(strange, min_familiarity=-1.0) is not FixStatus.NO_MATCH
    assert status(strange, min_familiarity=0.29) is not FixStatus.NO_MATCH


def test_the_least_radius_holds_for_calibrated_fixes_too() -> None:
    _, fix = make_fix(*matches(), FixSettings(min_radius_m=60.0), np.array([0.9, 0.9, 0.1]), calibration())
    assert fix is not None
    assert fix.radius_m == 60.0


def test_a_measured_radius_may_be_smaller_than_a_guessed_one() -> None:
    """The last knot is at 2 m: what was measured holds the references' own errors already."""
    exact = METHOD.model_copy(update={"radius": (RadiusKnot(confidence=0.0, radius_m=2.0),)})
    small = calibration(methods=dict.fromkeys(FIX_METHODS, exact))
    _, fix = make_fix(*matches(), FixSettings(), np.array([0.9, 0.9, 0.1]), small)
    assert fix is not None
    assert fix.radius_m == pytest.approx(2.0)
    assert np.trace(fix.covariance_enu) == pytest.approx(2.0 * 2.0**2 / (-2.0 * np.log(0.32)))
    _, guessed = make_fix(*matches(), FixSettings())
    assert guessed is not None
    assert guessed.radius_m >= 5.0


@pytest.mark.parametrize("changed", [{"score_scale": 0.05}, {"max_matches": 5}, {"evidence_matches": 30}])
def test_other_settings_than_measured_give_no_calibrated_fix(changed: dict[str, float]) -> None:
    other = FixSettings(**changed)  # type: ignore[arg-type]
    centred = np.array([0.1, 0.1, 0.1])
    assert not calibration().holds_for(other)
    assert make_fix(*matches(), other, centred, calibration()) == make_fix(*matches(), other)
    with pytest.raises(ParameterError, match="was not measured with"):
        calibration().of_method(other)
    assert calibration().holds_for(FixSettings(min_confidence=0.9, min_radius_m=1.0, min_familiarity=0.0))


def test_it_goes_to_json_and_back_and_refuses_nonsense() -> None:
    known = calibration()
    assert Calibration.model_validate_json(known.model_dump_json()) == known
    with pytest.raises(ValidationError, match="0 or more"):
        MethodCalibration(intercept=0.0, weights=(1.0, -0.1, 0.0), radius=KNOTS)
    with pytest.raises(ValidationError, match="0 or more"):
        MethodCalibration(intercept=0.0, weights=(1.0, 0.1), radius=KNOTS)
    with pytest.raises(ValidationError, match="ascend in confidence"):
        MethodCalibration(intercept=0.0, weights=(1.0, 0.1, 0.0), radius=KNOTS[::-1])
    with pytest.raises(ValidationError, match="finite"):
        MethodCalibration(intercept=np.inf, weights=(1.0, 0.1, 0.0), radius=KNOTS)
    with pytest.raises(ValidationError):
        calibration(unknown=1)
    with pytest.raises(ValidationError):
        calibration(format_version=2)
