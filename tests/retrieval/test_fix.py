import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.geo import Position, from_local_metres, haversine_m
from retrieval.localize.evidence import FIX_METHODS, FixSettings
from retrieval.localize.fix import Fix, FixMaker, FixStatus
from service.answer import FixAnswer, _fix_answer
from tests.hypothesis_profiles import examples
from tests.retrieval.fixing import PlacedRows, make_fix

MUNICH = Position(48.0, 11.0)
CLUSTER = FixSettings(method="weighted_cluster", score_scale=0.05)
TOP1 = FixSettings(method="top1", score_scale=0.05)
# A circular normal distribution of variance s² per axis holds 68 % within this many s.
HOLDS_68 = math.sqrt(-2.0 * math.log(0.32))


def matches(
    east_north: list[tuple[float, float]], scores: list[float], origin: Position = MUNICH
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matches that lie some metres east and north of an origin."""
    positions = [from_local_metres(origin, east, north) for east, north in east_north]
    lat, lon = np.array([p.lat for p in positions]), np.array([p.lon for p in positions])
    return lat, lon, np.array(scores)


def located(found: tuple[FixStatus, Fix | None]) -> Fix:
    status, fix = found
    assert status is FixStatus.LOCATED
    assert fix is not None
    return fix


def metres_between(one: Position, other: Position) -> float:
    return float(haversine_m(one.lat, one.lon, other.lat, other.lon))


@pytest.mark.parametrize("settings", [CLUSTER, TOP1])
def test_no_match_is_no_fix(settings: FixSettings) -> None:
    assert make_fix(np.empty(0), np.empty(0), np.empty(0), settings) == (FixStatus.NO_MATCH, None)


@pytest.mark.parametrize("method", FIX_METHODS)
def test_one_match_is_the_fix(method: str) -> None:
    fix = located(make_fix(*matches([(0, 0)], [0.7]), FixSettings(method=method, min_radius_m=5.0)))
    assert metres_between(fix.position, MUNICH) < 1e-6
    assert (fix.support, fix.confidence, fix.calibrated, fix.method) == (1, 1.0, False, method)
    np.testing.assert_allclose(fix.covariance_enu, [[12.5, 0], [0, 12.5]], atol=1e-9)
    assert fix.radius_m == pytest.approx(math.sqrt(12.5) * HOLDS_68)


def test_the_weighted_mean_of_two_matches_by_hand() -> None:
    """A match 0.05 below the best weighs 1/e: shares 0.7311 and 0.2689, 10 m apart."""
    far = math.exp(-1) / (1 + math.exp(-1))
    fix = located(make_fix(*matches([(0, 0), (10, 0)], [0.80, 0.75]), CLUSTER))
    assert metres_between(fix.position, from_local_metres(MUNICH, 10 * far, 0)) < 1e-6
    variance = 100 * far * (1 - far)
    np.testing.assert_allclose(fix.covariance_enu, [[variance + 12.5, 0], [0, 12.5]], atol=1e-6)
    # 68 % of the weight lies at the best match itself, so the spread decides.
    assert fix.radius_m == pytest.approx(math.sqrt((variance + 25.0) / 2) * HOLDS_68)
    assert (fix.support, fix.confidence) == (2, 1.0)


def test_top1_is_the_best_match_and_counts_who_agrees() -> None:
    fix = located(make_fix(*matches([(0, 0), (10, 0), (500, 0)], [0.80, 0.75, 0.60]), TOP1))
    assert metres_between(fix.position, MUNICH) < 1e-6
    weights = np.exp([0.0, -1.0, -4.0])
    assert fix.support == 2
    assert fix.confidence == pytest.approx(weights[:2].sum() / weights.sum(), abs=1e-8)
    far = weights[1] / weights[:2].sum()
    assert fix.covariance_enu[0][0] == pytest.approx(100 * far + 12.5, rel=1e-6)


def test_an_agreeing_cluster_outweighs_better_outliers() -> None:
    """The best match is alone; three slightly worse ones agree 300 m away."""
    found = matches([(-300, 0), (0, 0), (6, 0), (3, 0), (900, 50)], [0.80, 0.79, 0.79, 0.79, 0.78])
    fix = located(make_fix(*found, CLUSTER))
    assert metres_between(fix.position, from_local_metres(MUNICH, 3, 0)) < 0.01
    assert fix.support == 3
    status, top1 = make_fix(*found, TOP1)
    assert status is FixStatus.AMBIGUOUS
    assert top1 is not None
    assert metres_between(top1.position, from_local_metres(MUNICH, -300, 0)) < 1e-6
    assert top1.support == 1


def test_scores_that_lie_ten_times_as_far_apart_weigh_as_the_usual_ones() -> None:
    lat, lon, _ = matches([(0, 0), (10, 0)], [0.0, 0.0])
    stretched, plain = (FixMaker(PlacedRows(lat, lon, stretch), CLUSTER) for stretch in (10.0, 1.0))
    rows = np.arange(2)
    fix = located(stretched.fix(stretched.ranking(rows, np.array([0.8, 0.3]))))
    expected = located(plain.fix(plain.ranking(rows, np.array([0.08, 0.03]))))
    assert metres_between(fix.position, expected.position) < 1e-6
    np.testing.assert_allclose(fix.covariance_enu, expected.covariance_enu)
    assert stretched.ranking(rows, np.array([0.8, 0.3])).scores.tolist() == [0.8, 0.3]


@pytest.mark.parametrize("members", [1, 2, 3, 5])
@pytest.mark.parametrize("method", FIX_METHODS)
def test_two_places_of_equal_weight_are_ambiguous(members: int, method: str) -> None:
    places = [(0.0, 0.0)] * members + [(5000.0, 0.0)] * members
    status, fix = make_fix(*matches(places, [0.7] * 2 * members), FixSettings(method=method))
    assert status is FixStatus.AMBIGUOUS
    assert fix is not None
    assert fix.confidence == pytest.approx(0.5)
    assert fix.support == members
    # The first of equals, and a radius that admits the other place.
    assert metres_between(fix.position, MUNICH) < 1e-6
    assert fix.radius_m == pytest.approx(5000.0, rel=1e-6)


def test_a_little_more_than_half_of_the_weight_is_a_place() -> None:
    status, fix = make_fix(*matches([(0, 0), (5000, 0)], [0.701, 0.70]), CLUSTER)
    assert status is FixStatus.LOCATED
    assert fix is not None
    assert 0.5 < fix.confidence < 0.51


def test_ten_places_of_equal_weight_are_ambiguous() -> None:
    status, fix = make_fix(*matches([(1000.0 * place, 0.0) for place in range(10)], [0.7] * 10), CLUSTER)
    assert status is FixStatus.AMBIGUOUS
    assert fix is not None
    assert fix.confidence == pytest.approx(0.1)


def test_only_the_best_matches_take_part() -> None:
    places, scores = [(0.0, 0.0)] * 3 + [(800.0, 0.0)] * 50, [0.7] * 53
    fix = located(make_fix(*matches(places, scores), FixSettings(max_matches=3)))
    assert metres_between(fix.position, MUNICH) < 1e-6
    assert fix.support == 3


def test_the_cluster_radius_is_where_agreement_ends() -> None:
    found = matches([(0, 0), (20, 0)], [0.8, 0.8])
    assert located(make_fix(*found, FixSettings(cluster_radius_m=20.01))).support == 2
    status, alone = make_fix(*found, FixSettings(cluster_radius_m=19.99))
    assert status is FixStatus.AMBIGUOUS
    assert alone is not None
    assert alone.support == 1


@pytest.mark.parametrize(
    "centre", [Position(0.0, 180.0), Position(64.0, -180.0), Position(90.0, 0.0), Position(-90.0, 45.0), MUNICH]
)
def test_a_cluster_around_a_seam_or_a_pole_has_its_mean_in_the_middle(centre: Position) -> None:
    ring = [(10 * math.cos(turn), 10 * math.sin(turn)) for turn in np.arange(8) * math.pi / 4]
    fix = located(make_fix(*matches(ring, [0.8] * 8, centre), CLUSTER))
    assert metres_between(fix.position, centre) < 1e-3
    assert fix.support == 8
    np.testing.assert_allclose(fix.covariance_enu, [[62.5, 0], [0, 62.5]], atol=1e-3)


@settings(max_examples=examples(100))
@given(
    st.lists(st.tuples(st.floats(-3000, 3000), st.floats(-3000, 3000), st.floats(-1.0, 1.0)), min_size=1, max_size=20),
    st.sampled_from([MUNICH, Position(0.0, 180.0), Position(90.0, 0.0), Position(-89.999, 10.0)]),
    st.sampled_from(FIX_METHODS),
    st.floats(0.1, 100.0),
)
def test_every_fix_is_sound(
    found: list[tuple[float, float, float]], origin: Position, method: str, min_radius: float
) -> None:
    found = sorted(found, key=lambda match: -match[2])
    lat, lon, scores = matches([match[:2] for match in found], [match[2] for match in found], origin)
    status, fix = make_fix(lat, lon, scores, FixSettings(method=method, min_radius_m=min_radius))
    assert fix is not None
    assert status is (FixStatus.LOCATED if fix.confidence > 0.5 else FixStatus.AMBIGUOUS)
    covariance = np.array(fix.covariance_enu)
    assert covariance[0, 1] == pytest.approx(covariance[1, 0], rel=1e-9, abs=1e-9)
    assert np.linalg.eigvalsh(covariance).min() >= min_radius**2 / 2 * (1 - 1e-9) - 1e-6
    assert fix.radius_m >= min_radius
    assert 0.0 < fix.confidence <= 1.0
    assert 1 <= fix.support <= min(10, len(found))
    # The fix lies in the cluster it was made from, and crosses every border as an answer.
    assert haversine_m(fix.position.lat, fix.position.lon, lat[:10], lon[:10]).min() <= 25.0 + 1e-6
    assert FixAnswer.model_validate(_fix_answer(fix).model_dump()) == _fix_answer(fix)


@settings(max_examples=examples(100))
@given(st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=10))
def test_confidence_never_exceeds_1_however_weights_are_rounded(scores: list[float]) -> None:
    ordered = np.sort(scores)[::-1]
    fix = located(make_fix(np.full(len(ordered), 48.0), np.full(len(ordered), 11.0), ordered, CLUSTER))
    assert fix.confidence == 1.0
