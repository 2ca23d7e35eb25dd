from dataclasses import replace

import numpy as np
import pytest

from index_builder.calibration.calibrating import (
    CalibrationSettings,
    descending,
    fit_calibration,
    fit_logistic,
    fit_radius,
)
from index_builder.calibration.queries import DescribedIndex
from retrieval.errors import ParameterError
from retrieval.evaluation import exact_ranking
from retrieval.geo import haversine_m
from retrieval.localize.calibration import Calibration, logistic
from retrieval.localize.evidence import FIX_METHODS, FixSettings, centre_of, centred_cosines
from retrieval.localize.fix import FixMaker, FixStatus
from tests.index_builder.made_up_street import MADE_UP_BUNDLE, made_up_street

SETTINGS = CalibrationSettings(away_m=200.0)


@pytest.fixture(scope="module")
def known() -> DescribedIndex:
    return made_up_street(6, 80, noise=1.2, seed=1)


@pytest.fixture(scope="module")
def calibration(known: DescribedIndex) -> Calibration:
    found = fit_calibration(known, SETTINGS)
    assert found is not None
    return found


def answers(index: DescribedIndex, queries: np.ndarray, calibration: Calibration) -> list[tuple[FixStatus, object]]:
    rows, scores = exact_ranking(index.descriptors(np.arange(index.count)), queries, 20)
    centred = centred_cosines(queries, index.descriptors(rows.ravel()).reshape(*rows.shape, -1), centre_of(index))
    maker = FixMaker(index, FixSettings(), calibration)
    return [maker.fix(maker.ranking(r, s), c) for r, s, c in zip(rows, scores, centred, strict=True)]


def test_confidence_and_radius_hold_for_sessions_that_were_never_seen(
    known: DescribedIndex, calibration: Calibration
) -> None:
    """Eight new drives down the same street, each with a camera of its own."""
    new = made_up_street(8, 80, noise=1.2, seed=2)
    told = answers(known, new.descriptors(np.arange(new.count)), calibration)
    fixed = np.array([fix is not None for _, fix in told])
    fixes = [fix for _, fix in told if fix is not None]
    errors = haversine_m(
        new.lat[fixed], new.lon[fixed], [f.position.lat for f in fixes], [f.position.lon for f in fixes]
    )
    confidence = np.array([fix.confidence for fix in fixes])
    right = errors <= 25.0
    assert 0.25 < right.mean() < 0.9, "else the test says nothing"
    assert abs(confidence.mean() - right.mean()) < 0.08
    surer = confidence > np.median(confidence)
    assert right[surer].mean() > right[~surer].mean() + 0.15
    assert ((confidence - right) ** 2).mean() < right.var() - 0.02
    assert 0.58 < (errors <= [fix.radius_m for fix in fixes]).mean() < 0.8
    assert (~fixed).mean() < 0.15
    assert all(fix.calibrated for fix in fixes)


def test_photos_of_another_place_are_no_match(known: DescribedIndex, calibration: Calibration) -> None:
    """They share the common direction, which makes every plain cosine high, and nothing else."""
    random = np.random.default_rng(3)
    middle = known.descriptors(np.arange(known.count)).mean(axis=0)
    foreign = middle / np.linalg.norm(middle) + random.normal(0.0, 0.1, (200, len(middle)))
    foreign = (foreign / np.linalg.norm(foreign, axis=1, keepdims=True)).astype(np.float32)
    statuses = [status for status, _ in answers(known, foreign, calibration)]
    assert np.mean([status is FixStatus.NO_MATCH for status in statuses]) > 0.9


def test_what_it_says_of_itself(calibration: Calibration) -> None:
    assert (calibration.held_out, calibration.groups, calibration.within_m) == ("sessions", 6, 25.0)
    assert calibration.queries > 400
    assert calibration.rejected_share == pytest.approx(0.07, abs=0.01)
    assert calibration.away_rejected_share is not None
    assert calibration.away_rejected_share > 0.1
    assert set(calibration.methods) == set(FIX_METHODS)
    assert Calibration.model_validate_json(calibration.model_dump_json()) == calibration


def test_the_same_index_gives_the_same_calibration(known: DescribedIndex, calibration: Calibration) -> None:
    assert fit_calibration(known, SETTINGS) == calibration
    few = replace(SETTINGS, max_queries=150)
    one, two = fit_calibration(known, few), fit_calibration(known, few)
    assert one is not None
    assert one == two
    assert one.queries == 150
    other = fit_calibration(known, replace(few, seed=1))
    assert other is not None
    assert other.methods != one.methods


def test_sessions_without_names_are_told_apart_by_pauses() -> None:
    unnamed = fit_calibration(made_up_street(4, 60, noise=1.2, names=False), SETTINGS)
    assert unnamed is not None
    assert (unnamed.held_out, unnamed.groups) == ("time blocks", 4)
    named = fit_calibration(made_up_street(4, 60, noise=1.2), SETTINGS)
    assert named is not None
    assert named.methods == unnamed.methods


@pytest.mark.parametrize(
    "index",
    [
        made_up_street(1, 300, noise=1.2),
        made_up_street(4, 60, noise=1.2, names=False, times=False),
        made_up_street(4, 15, noise=1.2),
        made_up_street(4, 60, noise=1.2, street_m=100_000.0),
        made_up_street(4, 60, noise=0.0),
    ],
    ids=["one session", "nothing known", "too few", "nothing overlaps", "always right"],
)
def test_an_index_that_cannot_be_calibrated_is_not(index: DescribedIndex) -> None:
    assert fit_calibration(index, SETTINGS) is None


def test_a_logistic_law_is_found_again() -> None:
    random = np.random.default_rng(0)
    evidence = random.normal([0.5, 10.0], [0.1, 5.0], (20_000, 2))
    chance = logistic(-6.0 + evidence @ np.array([8.0, 0.2]))
    intercept, slopes = fit_logistic(evidence, random.random(20_000) < chance, np.ones(20_000))
    assert intercept == pytest.approx(-6.0, abs=0.3)
    np.testing.assert_allclose(slopes, [8.0, 0.2], rtol=0.06)


def test_evidence_that_speaks_against_counts_nothing() -> None:
    random = np.random.default_rng(0)
    evidence = random.normal(0.0, 1.0, (5000, 3))
    evidence[:, 2] = 4.0
    right = random.random(5000) < logistic(1.5 * evidence[:, 0] - evidence[:, 1])
    _, slopes = fit_logistic(evidence, right, np.ones(5000))
    assert slopes[0] > 1.0
    np.testing.assert_array_equal(slopes[1:], 0.0)


def test_logistic_of_few_and_separable_trials_stays_finite() -> None:
    evidence = np.array([[0.1], [0.2], [0.8], [0.9]])
    intercept, slopes = fit_logistic(evidence, np.array([False, False, True, True]), np.ones(4))
    assert np.isfinite(intercept)
    assert 0.0 < slopes[0] < 100.0


def test_weights_are_repeats() -> None:
    random = np.random.default_rng(0)
    evidence, right = random.normal(size=(60, 2)), random.random(60) < 0.5
    repeats = random.integers(1, 4, 60)
    by_weight = fit_logistic(evidence, right, repeats.astype(float))
    by_hand = fit_logistic(np.repeat(evidence, repeats, axis=0), np.repeat(right, repeats), np.ones(repeats.sum()))
    assert by_weight[0] == pytest.approx(by_hand[0])
    np.testing.assert_allclose(by_weight[1], by_hand[1])


def test_the_radius_follows_confidence_and_holds_68_percent() -> None:
    """Errors of a normal distribution whose size falls with confidence: sigma · sqrt(-2 ln 0.32)."""
    random = np.random.default_rng(0)
    confidence = random.uniform(0.0, 1.0, 8000)
    sigma = 100.0 * np.exp(-3.0 * confidence)
    errors = np.hypot(*(random.normal(size=(2, 8000)) * sigma))
    knots = fit_radius(confidence, errors)
    at = [knot.confidence for knot in knots]
    assert at == sorted(at)
    stated = np.exp(np.interp(confidence, at, np.log([knot.radius_m for knot in knots])))
    assert (errors <= stated).mean() == pytest.approx(0.68, abs=0.01)
    for low in (0.0, 0.33, 0.66):
        some = (confidence >= low) & (confidence < low + 0.33)
        assert (errors[some] <= stated[some]).mean() == pytest.approx(0.68, abs=0.05)


def test_a_surer_group_that_errs_more_is_pooled() -> None:
    assert descending([5.0, 3.0, 4.0, 1.0], [1, 1, 1, 1]) == [5.0, 3.5, 3.5, 1.0]
    assert descending([1.0, 2.0, 6.0], [1, 1, 2]) == [3.75, 3.75, 3.75]
    assert descending([], []) == []


def test_an_index_in_memory_is_checked() -> None:
    index = made_up_street(1, 3)
    with pytest.raises(ParameterError, match="3 references and 2 descriptors"):
        DescribedIndex(index.references(np.arange(3)), index.descriptors(np.arange(2)), MADE_UP_BUNDLE)
    without = [replace(reference, position=None) for reference in index.references(np.arange(3))]
    with pytest.raises(ParameterError, match="no position in degrees"):
        DescribedIndex(without, index.descriptors(np.arange(3)), MADE_UP_BUNDLE)
