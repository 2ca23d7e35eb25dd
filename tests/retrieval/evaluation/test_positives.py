import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.evaluation import Positions, count_positives
from retrieval.evaluation import positions as positives_module
from retrieval.evaluation.positions import field_ground, true_ground
from retrieval.geo import haversine_m
from tests.hypothesis_profiles import examples
from tests.retrieval.evaluation.plane import plane


def slow_counts(queries: Positions, database: Positions, radii: list[float]) -> np.ndarray:
    distance = haversine_m(queries.lat[:, None], queries.lon[:, None], database.lat[None], database.lon[None])
    return np.array([(distance <= radius).sum(axis=1) for radius in radii])


@pytest.mark.parametrize(
    ("lat", "lon", "spread"),
    [
        (31.26, 34.8, 0.004),
        (0.0, 179.9999, 0.003),
        (89.9995, 0.0, 0.0005),
        (-89.999, 10.0, 0.001),
        (48.0, 2.0, 0.0),
        (0.0, 0.0, 60.0),
    ],
)
@pytest.mark.parametrize("radii", [[25.0], [10.0, 25.0, 300.0], [1e-3, 1e5], [3e6, 2.1e7]])
def test_counts_agree_with_every_pair(lat: float, lon: float, spread: float, radii: list[float]) -> None:
    random = np.random.default_rng(7)

    def scatter(count: int) -> Positions:
        lats = np.clip(lat + spread * random.uniform(-1, 1, count), -90, 90)
        stretch = 1 / max(np.cos(np.radians(lat)), 1e-3)
        lons = lon + spread * stretch * random.uniform(-1, 1, count)
        return Positions.from_degrees(lats, (lons + 180) % 360 - 180)

    database, queries = scatter(400), scatter(150)
    expected = slow_counts(queries, database, radii)
    np.testing.assert_array_equal(count_positives(true_ground(queries, database), radii), expected)


def test_counts_on_a_line_by_hand() -> None:
    """Database every 10 m from 0 to 90: within 25 m of 0 lie 0, 10, 20; of 50 lie 30..70; of 115 lie 90 (border)."""
    database = plane(np.stack([np.arange(10) * 10.0, np.zeros(10)], axis=1))
    queries = plane([[0.0, 0.0], [50.0, 0.0], [115.0, 0.0], [115.1, 0.0], [1e9, -1e9]])
    counted = count_positives(field_ground(queries, database), [25.0, 10.0])
    assert counted.tolist() == [[3, 5, 1, 0, 0], [2, 3, 0, 0, 0]]


def test_small_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    database, queries = (plane(random.uniform(0, 200, (n, 2))) for n in (300, 101))
    ground = true_ground(queries, database)
    whole = count_positives(ground, [25.0])
    monkeypatch.setattr(positives_module, "_PAIRS_AT_ONCE", 7)
    monkeypatch.setattr(positives_module, "_COUNTED_AT_ONCE", 10)
    seen: list[int] = []
    np.testing.assert_array_equal(count_positives(ground, [25.0], seen.append), whole)
    assert seen == [10] * 10 + [1]
    assert whole.sum() > 1000


@settings(max_examples=examples(60))
@given(
    points=st.lists(st.tuples(st.integers(-40, 40), st.integers(-40, 40)), min_size=1, max_size=40),
    radius=st.sampled_from([1.0, 5.0, 13.0, 25.0, 1000.0]),
    scale=st.sampled_from([1.0, 5.0, 1e6]),
)
def test_integer_lattices_agree_with_every_pair(points: list[int], radius: float, scale: float) -> None:
    """Integers are exact in float64, so the border is exact too."""
    metres = np.array(points, np.float64) * scale
    every = ((metres[:, None] - metres[None]) ** 2).sum(axis=2) <= radius**2
    positions = plane(metres)
    assert count_positives(field_ground(positions, positions), [radius])[0].tolist() == every.sum(axis=1).tolist()


def test_a_million_images_stay_within_memory() -> None:
    """All pairs of 2 000 x 1 000 000 would take 16 GB; the grid takes the points and a block of candidates."""
    import tracemalloc

    random = np.random.default_rng(0)
    database = plane(random.uniform(0, 20_000, (1_000_000, 2)))
    queries = plane(random.uniform(0, 20_000, (2_000, 2)))
    ground = true_ground(queries, database)
    tracemalloc.start()
    counted = count_positives(ground, [25.0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400e6
    assert counted.mean() == pytest.approx(np.pi * 25**2 * 1e6 / 20_000**2, rel=0.05)
