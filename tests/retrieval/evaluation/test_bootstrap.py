import numpy as np
import pytest

from retrieval.errors import ParameterError
from retrieval.evaluation import Bootstrap, Positions, place_groups, session_groups
from retrieval.evaluation import bootstrap as bootstrap_module
from tests.retrieval.evaluation.plane import plane


def slow_estimates(values: np.ndarray, groups: np.ndarray, bootstrap: Bootstrap, statistic) -> np.ndarray:
    """Draw groups one resample at a time and put their values together by hand."""
    random = np.random.default_rng(bootstrap.seed)
    labels = sorted(set(groups.tolist()))
    members = [values[groups == label] for label in labels]
    estimates = []
    for _ in range(bootstrap.resamples):
        drawn = random.integers(0, len(labels), size=len(labels))
        estimates.append(statistic(np.concatenate([members[g] for g in drawn])))
    return np.asarray(estimates)


@pytest.mark.parametrize("group_count", [1, 2, 5, 40])
@pytest.mark.parametrize("level", [0.95, 0.5])
def test_means_agree_with_the_slow_version(group_count: int, level: float) -> None:
    random = np.random.default_rng(group_count)
    values = random.random((120, 3))
    groups = random.integers(0, group_count, 120) * 10 - 7
    bootstrap = Bootstrap(resamples=300, level=level, seed=5)
    found = bootstrap.mean_interval(values, groups)
    for column in range(3):
        slow = slow_estimates(values[:, column], groups, bootstrap, np.mean)
        expected = np.quantile(slow, [(1 - level) / 2, (1 + level) / 2])
        np.testing.assert_allclose(found[:, column], expected, rtol=1e-12)


@pytest.mark.parametrize("group_count", [1, 2, 5, 40])
def test_quantiles_agree_with_the_slow_version(group_count: int) -> None:
    random = np.random.default_rng(group_count)
    values = np.round(random.exponential(20.0, 90), 1)
    groups = random.integers(0, group_count, 90)
    bootstrap = Bootstrap(resamples=200, seed=1)
    found = bootstrap.quantile_interval(values, groups, [0.0, 0.5, 0.9, 1.0])
    for column, quantile in enumerate([0.0, 0.5, 0.9, 1.0]):
        slow = slow_estimates(values, groups, bootstrap, lambda drawn, q=quantile: np.quantile(drawn, q))
        np.testing.assert_allclose(found[:, column], np.quantile(slow, [0.025, 0.975]), rtol=1e-9)


def test_two_groups_by_hand() -> None:
    """Groups {1, 1} and {0}: the four equally likely draws give 1, 2/3, 2/3 and 0."""
    values, groups = np.array([[1.0], [1.0], [0.0]]), np.array([0, 0, 1])
    low, high = Bootstrap(resamples=4000, level=0.9).mean_interval(values, groups)[:, 0]
    assert (low, high) == (0.0, 1.0)
    low, high = Bootstrap(resamples=4000, level=0.4).mean_interval(values, groups)[:, 0]
    assert low == pytest.approx(2 / 3)
    assert high == pytest.approx(2 / 3)


def test_one_group_has_no_spread_and_says_so() -> None:
    values = np.array([[1.0], [0.0], [0.0]])
    assert Bootstrap(resamples=50).mean_interval(values, np.zeros(3, np.int64)).tolist() == [[1 / 3], [1 / 3]]


def test_no_query_no_interval() -> None:
    nothing = np.empty(0, np.int64)
    assert np.isnan(Bootstrap().mean_interval(np.empty((0, 2)), nothing)).all()
    assert np.isnan(Bootstrap().quantile_interval(np.empty(0), nothing, [0.5])).all()


def test_photos_of_one_group_count_once() -> None:
    """100 copies of each of 20 values: grouped, the interval is that of 20 values; single, it is ten times narrower."""
    values = np.repeat(np.arange(20) % 2, 100).astype(np.float64)[:, None]
    single = Bootstrap().mean_interval(values, np.arange(2000))
    grouped = Bootstrap().mean_interval(values, np.repeat(np.arange(20), 100))
    twenty = Bootstrap().mean_interval(values[::100], np.arange(20))
    np.testing.assert_allclose(grouped, twenty)
    assert np.ptp(grouped) / np.ptp(single) == pytest.approx(10.0, rel=0.15)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """60 groups of 5 photos that are right or wrong together, true share 0.7: 95 % intervals hold it about 95 %."""
    covered = 0
    for trial in range(300):
        random = np.random.default_rng(trial)
        values = np.repeat(random.random(60) < 0.7, 5)[:, None]
        low, high = Bootstrap(resamples=400, seed=trial).mean_interval(values, np.repeat(np.arange(60), 5))[:, 0]
        covered += low <= 0.7 <= high
    assert 0.90 <= covered / 300 <= 0.98


def test_seed_decides_and_block_size_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    values, groups = random.random((60, 1)), random.integers(0, 13, 60)
    first = Bootstrap(resamples=101, seed=4).mean_interval(values, groups)
    other = Bootstrap(resamples=101, seed=5).mean_interval(values, groups)
    monkeypatch.setattr(bootstrap_module, "_WEIGHTS_AT_ONCE", 40)
    np.testing.assert_allclose(Bootstrap(resamples=101, seed=4).mean_interval(values, groups), first, rtol=1e-12)
    assert not np.allclose(first, other)


@pytest.mark.parametrize("wrong", [{"resamples": 0}, {"level": 0.0}, {"level": 1.0}])
def test_settings_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ParameterError):
        Bootstrap(**wrong)


def test_places_in_a_plane_by_hand() -> None:
    labels = place_groups(plane([[0.0, 0.0], [24.9, 24.9], [25.0, 0.0], [-0.1, 0.0], [3.0, 2.0]]), 25.0)
    assert labels[0] == labels[1] == labels[4]
    assert len({labels[0], labels[2], labels[3]}) == 3


@pytest.mark.parametrize("lat", [0.0, 31.26, -60.0, 80.0])
def test_places_on_the_sphere_are_as_large_as_asked(lat: float) -> None:
    """Points every metre over a 1 km square: about (1000 / 25)² cells, each holding points at most 25·√2 m apart."""
    from retrieval.geo import haversine_m

    metre = 1 / 111_195.08
    north, east = (axis.ravel() for axis in np.meshgrid(np.arange(0, 1000, 10.0), np.arange(0, 1000, 10.0)))
    lats, lons = lat + north * metre, 20.0 + east * metre / np.cos(np.radians(lat))
    labels = place_groups(Positions.from_degrees(lats, lons), 100.0)
    assert 100 <= np.unique(labels).size <= 150
    for label in np.unique(labels):
        inside = labels == label
        spread = haversine_m(lats[inside][:, None], lons[inside][:, None], lats[inside][None], lons[inside][None])
        assert spread.max() <= 100.0 * np.sqrt(2) * 1.01


def test_place_size_is_checked() -> None:
    with pytest.raises(ParameterError, match="not above 0"):
        place_groups(plane([[0.0, 0.0]]), 0.0)


def test_sessions_group_and_strangers_stand_alone() -> None:
    labels = session_groups(["a", None, "b", "a", None])
    assert labels[0] == labels[3]
    assert np.unique(labels).size == 4
