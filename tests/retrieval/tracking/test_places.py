import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.errors import ParameterError
from retrieval.geo import EARTH_RADIUS_M, Position, from_local_metres, haversine_m
from retrieval.tracking import PlaceMap
from tests.hypothesis_profiles import examples
from tests.retrieval.tracking.laid_out import line, references

ORIGINS = [
    Position(0.0, 11.0),
    Position(48.0, 180.0),
    Position(-48.0, -179.9999),
    Position(90.0, 0.0),
    Position(-89.9999, 77.0),
    Position(69.5, 0.0),
]


def test_photos_a_few_metres_apart_are_one_place_at_their_mean() -> None:
    lat, lon = references([(1.0, 1.0), (3.0, 1.0), (31.0, 1.0)])
    places = PlaceMap(lat, lon, 10.0)
    assert places.count == 2
    assert places.place_of.tolist() == [0, 0, 1]
    assert haversine_m(places.lat[0], places.lon[0], lat[:2].mean(), lon[:2].mean()) < 1e-6


@pytest.mark.parametrize("origin", ORIGINS, ids=str)
@settings(max_examples=examples(15))
@given(data=st.data())
def test_neighbours_are_those_of_a_full_scan(origin: Position, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    spread = data.draw(st.sampled_from([3.0, 30.0, 300.0]))
    radius = data.draw(st.floats(0.1, 100.0))
    place_m = data.draw(st.sampled_from([0.7, 5.0, 40.0]))
    lat, lon = references([tuple(point) for point in rng.normal(0, spread, (60, 2))], origin)
    places = PlaceMap(lat, lon, place_m)
    asked = rng.permutation(places.count)[:10]
    pairs = places.near(asked, radius)
    away = haversine_m(places.lat[asked][:, None], places.lon[asked][:, None], places.lat[None], places.lon[None])
    wanted = {(s, t) for s, t in zip(*np.nonzero(away <= radius), strict=True) if abs(away[s, t] - radius) > 1e-6}
    found = set(zip(pairs.source.tolist(), pairs.target.tolist(), strict=True))
    assert len(found) == len(pairs.source)
    assert wanted <= found
    assert all(away[pair] <= radius + 1e-6 for pair in found)
    np.testing.assert_allclose(pairs.distance_m, away[pairs.source, pairs.target], atol=1e-6)
    np.testing.assert_allclose(np.hypot(*pairs.east_north.T), pairs.distance_m, atol=1e-3)
    # Every place is within its own radius, whatever the cells look like.
    assert {(n, place) for n, place in enumerate(asked)} <= found


def test_places_on_both_sides_of_the_antimeridian_are_neighbours() -> None:
    east, west = from_local_metres(Position(0.0, 180.0), 6.0, 0.0), from_local_metres(Position(0.0, 180.0), -6.0, 0.0)
    places = PlaceMap([east.lat, west.lat, 0.0], [east.lon, west.lon, 180.0])
    pairs = places.near(np.arange(places.count), 13.0)
    assert len(pairs.source) == places.count**2 == 9
    assert pairs.distance_m.max() == pytest.approx(12.0)


def test_a_limit_of_pairs_leaves_out_the_last_places() -> None:
    places = PlaceMap(*line(100))
    pairs = places.near(np.arange(100), 25.0, max_pairs=50)
    assert 0 < pairs.served < 100
    assert pairs.touched <= 50
    assert set(pairs.source.tolist()) == set(range(pairs.served))


def test_spacing_is_along_the_way_not_across_the_street() -> None:
    lanes = [(10.0 * n, side) for n in range(20) for side in (0.0, 3.6)]
    assert PlaceMap(*references(lanes), 2.0).spacing_m == pytest.approx(10.0, abs=0.01)
    assert PlaceMap([1.0], [2.0], 7.0).spacing_m == 7.0


def test_the_map_is_bounded_from_everywhere() -> None:
    places = PlaceMap(*line(30))
    points = places.points(np.arange(30))
    farthest = np.linalg.norm(points - points[3], axis=1).max() * EARTH_RADIUS_M
    assert places.farthest_m(points[3]) >= farthest - 1e-6


@pytest.mark.parametrize(
    ("lat", "lon"),
    [([], []), ([1.0], [1.0, 2.0]), ([[1.0]], [[1.0]]), ([91.0], [0.0]), ([0.0], [360.0]), ([np.nan], [0.0])],
)
def test_positions_that_are_none_are_refused(lat: list[float], lon: list[float]) -> None:
    with pytest.raises(ParameterError):
        PlaceMap(lat, lon)


def test_the_row_of_a_wrong_position_is_named() -> None:
    with pytest.raises(ParameterError, match="reference 1"):
        PlaceMap([0.0, 95.0], [0.0, 0.0])
