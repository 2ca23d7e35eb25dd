import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.errors import ParameterError
from retrieval.geo import (
    EARTH_RADIUS_M,
    HALF_CIRCUMFERENCE_M,
    GeoPrior,
    Position,
    bearing_deg,
    from_local_metres,
    haversine_m,
    hilbert_key,
    to_local_metres,
    unit_vectors,
    utm_to_wgs84,
    wgs84_to_utm,
)
from tests.retrieval.refusal import refused

DEGREE_M = EARTH_RADIUS_M * math.pi / 180.0

latitudes = st.floats(-90.0, 90.0)
longitudes = st.floats(-180.0, 180.0)


def test_one_degree_of_latitude_is_111195_metres_everywhere() -> None:
    assert pytest.approx(111_195.08, abs=0.01) == DEGREE_M
    lats = np.arange(-90.0, 90.0)
    np.testing.assert_allclose(haversine_m(lats, 11.0, lats + 1.0, 11.0), DEGREE_M, rtol=1e-12)


def test_one_degree_of_longitude_at_60_north_is_half_of_one_at_the_equator() -> None:
    # A chord of the parallel, not an arc of it: 2 asin(cos 60° sin 0.5°).
    expected = 2 * EARTH_RADIUS_M * math.asin(0.5 * math.sin(math.radians(0.5)))
    assert haversine_m(60.0, 10.0, 60.0, 11.0) == pytest.approx(expected, rel=1e-12)
    assert haversine_m(60.0, 10.0, 60.0, 11.0) == pytest.approx(DEGREE_M / 2, rel=1e-4)


@pytest.mark.parametrize("ends", [(0, 0, 0, 180), (90, 0, -90, 77), (30, 40, -30, -140), (0, -90, 0, 90)])
def test_antipodes_are_half_a_circumference_apart(ends: tuple[float, float, float, float]) -> None:
    assert haversine_m(*ends) == pytest.approx(HALF_CIRCUMFERENCE_M, rel=1e-9)


def test_distance_across_the_antimeridian_is_short() -> None:
    assert haversine_m(0.0, 179.5, 0.0, -179.5) == pytest.approx(DEGREE_M, rel=1e-12)
    assert haversine_m(0.0, 180.0, 0.0, -180.0) == pytest.approx(0.0, abs=1e-6)


def test_longitude_means_nothing_at_a_pole() -> None:
    assert haversine_m(90.0, 12.0, 90.0, -170.0) == pytest.approx(0.0, abs=1e-6)
    assert haversine_m(-90.0, 12.0, -89.0, -170.0) == pytest.approx(DEGREE_M, rel=1e-12)


def test_distance_broadcasts_like_numpy() -> None:
    lat = np.array([0.0, 1.0, 3.0])
    table = haversine_m(lat[:, None], 0.0, lat[None], 0.0)
    np.testing.assert_allclose(table, np.abs(lat[:, None] - lat[None]) * DEGREE_M, rtol=1e-9)


@given(latitudes, longitudes, latitudes, longitudes)
def test_distance_is_symmetric_and_at_most_half_a_circumference(
    lat1: float, lon1: float, lat2: float, lon2: float
) -> None:
    there, back = haversine_m(lat1, lon1, lat2, lon2), haversine_m(lat2, lon2, lat1, lon1)
    assert there == pytest.approx(float(back), abs=1e-6)
    assert 0.0 <= there <= HALF_CIRCUMFERENCE_M
    # Half the chord through the Earth, the other textbook way.
    chord = np.linalg.norm(unit_vectors(lat1, lon1) - unit_vectors(lat2, lon2))
    assert there == pytest.approx(2 * EARTH_RADIUS_M * math.asin(min(1.0, chord / 2)), abs=0.5)


@pytest.mark.parametrize(
    ("lat", "lon", "bearing"), [(1, 0, 0.0), (0, 1, 90.0), (-1, 0, 180.0), (0, -1, 270.0), (90, 55, 0.0)]
)
def test_bearing_from_the_equator_to_the_four_quarters(lat: float, lon: float, bearing: float) -> None:
    assert bearing_deg(0.0, 0.0, lat, lon) == pytest.approx(bearing, abs=1e-9)


def test_bearing_crosses_the_antimeridian_eastwards() -> None:
    assert bearing_deg(0.0, 179.0, 0.0, -179.0) == pytest.approx(90.0)


def test_a_bearing_a_hair_west_of_north_is_0_and_not_360() -> None:
    assert bearing_deg(0.0, 0.0, 1.0, -1e-18) == 0.0
    assert (bearing_deg(0.0, 0.0, [1.0, 1.0], [-1e-18, -1e-3]) < 360.0).all()


@given(latitudes, longitudes, latitudes, longitudes)
def test_bearing_lies_in_0_to_360(lat1: float, lon1: float, lat2: float, lon2: float) -> None:
    assert 0.0 <= bearing_deg(lat1, lon1, lat2, lon2) < 360.0


def test_local_metres_by_hand() -> None:
    origin = Position(0.0, 10.0)
    local = to_local_metres(origin, np.array([1.0, 0.0, -1.0]), np.array([10.0, 11.0, 10.0]))
    np.testing.assert_allclose(local, [[0, DEGREE_M], [DEGREE_M, 0], [0, -DEGREE_M]], atol=1e-6)


def test_local_metres_across_the_antimeridian() -> None:
    np.testing.assert_allclose(to_local_metres(Position(0.0, 179.5), [0.0], [-179.5]), [[DEGREE_M, 0]], atol=1e-6)
    moved = from_local_metres(Position(0.0, 179.5), DEGREE_M, 0.0)
    assert (moved.lat, moved.lon) == (pytest.approx(0.0, abs=1e-9), pytest.approx(-179.5))


@pytest.mark.parametrize("lat", [90.0, -90.0])
def test_local_metres_around_a_pole_keep_distances(lat: float) -> None:
    around = np.arange(-180.0, 180.0, 30.0)
    local = to_local_metres(Position(lat, 0.0), np.full(12, lat * 0.9999), around)
    np.testing.assert_allclose(np.hypot(*local.T), 0.009 * DEGREE_M, rtol=1e-9)
    # Twelve points evenly around the pole: their mean is the pole.
    np.testing.assert_allclose(local.mean(axis=0), [0.0, 0.0], atol=1e-6)


@given(
    latitudes | st.sampled_from([90.0, -90.0, 89.999999, -89.999999]),
    longitudes | st.sampled_from([180.0, -180.0, 179.999999]),
    st.floats(0.0, 20_000.0),
    st.floats(0.0, 360.0),
)
def test_local_metres_round_trip(lat: float, lon: float, distance: float, direction: float) -> None:
    origin = Position(lat, lon)
    east, north = distance * math.sin(math.radians(direction)), distance * math.cos(math.radians(direction))
    moved = from_local_metres(origin, east, north)
    assert haversine_m(lat, lon, moved.lat, moved.lon) == pytest.approx(distance, abs=1e-3)
    np.testing.assert_allclose(to_local_metres(origin, [moved.lat], [moved.lon])[0], [east, north], atol=1e-3)


@given(latitudes, longitudes)
def test_unit_vectors_have_length_1(lat: float, lon: float) -> None:
    assert np.linalg.norm(unit_vectors(lat, lon)) == pytest.approx(1.0, rel=1e-12)


def test_unit_vectors_by_hand() -> None:
    points = unit_vectors([0.0, 0.0, 90.0, 0.0], [0.0, 90.0, 33.0, 180.0])
    np.testing.assert_allclose(points, [[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0]], atol=1e-15)


# The space-filling curve


def slow_hilbert_key(x: int, y: int, side: int) -> int:
    """The textbook recursion, one cell at a time."""
    key, s = 0, side // 2
    while s:
        right, upper = int(x & s > 0), int(y & s > 0)
        key += s * s * ((3 * right) ^ upper)
        if not upper:
            if right:
                x, y = side - 1 - x, side - 1 - y
            x, y = y, x
        s //= 2
    return key


def cell_centres(order: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    side = 1 << order
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(side), np.arange(side)))
    return x, y, (y + 0.5) / side * 180.0 - 90.0, (x + 0.5) / side * 360.0 - 180.0


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_hilbert_key_is_the_slow_scalar_one(order: int) -> None:
    x, y, lat, lon = cell_centres(order)
    slow = [slow_hilbert_key(int(a), int(b), 1 << order) for a, b in zip(x, y, strict=True)]
    assert hilbert_key(lat, lon, order).tolist() == slow


@pytest.mark.parametrize("order", [1, 2, 4, 6])
def test_consecutive_hilbert_keys_are_neighbouring_cells(order: int) -> None:
    x, y, lat, lon = cell_centres(order)
    keys = hilbert_key(lat, lon, order)
    assert sorted(keys.tolist()) == list(range(4**order))
    along = np.argsort(keys)
    steps = np.abs(np.diff(x[along])) + np.abs(np.diff(y[along]))
    assert (steps == 1).all()


def test_hilbert_key_holds_at_full_order_and_at_the_corners_of_the_map() -> None:
    corners = hilbert_key([-90.0, 90.0, -90.0, 90.0, 0.0], [-180.0, -180.0, 179.99999999, 179.99999999, 0.0], 31)
    assert ((corners >= 0) & (corners < 4**31)).all()
    assert len(set(corners.tolist())) == 5
    assert hilbert_key(10.0, 180.0) == hilbert_key(10.0, -180.0)


def test_places_ten_metres_apart_have_different_keys() -> None:
    keys = hilbert_key(48.0 + np.arange(100) * 1e-4, np.full(100, 11.0))
    assert len(np.unique(keys)) == 100
    assert keys.dtype == np.int64


# UTM


def test_utm_on_the_central_meridian_is_worked_out_from_the_meridian_arc() -> None:
    # The WGS84 meridian arc from the equator to 45° is 4 984 944.378 m; UTM scales it by 0.9996.
    east, north = wgs84_to_utm([0.0, 45.0], [9.0, 9.0], 32, False)
    np.testing.assert_allclose(east, 500_000.0, atol=1e-3)
    np.testing.assert_allclose(north, [0.0, 4_984_944.378 * 0.9996], atol=1e-3)


def test_utm_of_the_cn_tower() -> None:
    east, north = wgs84_to_utm(43 + 38 / 60 + 33.24 / 3600, -(79 + 23 / 60 + 13.7 / 3600), 17, False)
    assert (float(east), float(north)) == (pytest.approx(630_084, abs=1), pytest.approx(4_833_438, abs=1))


def test_southern_utm_mirrors_the_northern_with_a_false_northing() -> None:
    north_east, north_north = wgs84_to_utm(33.8568, 151.2153, 56, False)
    south_east, south_north = wgs84_to_utm(-33.8568, 151.2153, 56, True)
    assert south_east == pytest.approx(float(north_east), abs=1e-6)
    assert south_north == pytest.approx(10_000_000.0 - float(north_north), abs=1e-6)


@given(st.floats(-80.0, 84.0), longitudes)
def test_utm_round_trip(lat: float, lon: float) -> None:
    zone, south = min(60, int((lon + 180.0) // 6.0) + 1), lat < 0
    east, north = wgs84_to_utm(lat, lon, zone, south)
    assert 100_000 < east < 900_000
    assert 0 <= north <= 10_000_000
    back = utm_to_wgs84(east, north, zone, south)
    assert haversine_m(lat, lon, *back) < 1e-3


@pytest.mark.parametrize("zone", [0, 61, -1])
def test_an_unknown_utm_zone_is_refused(zone: int) -> None:
    text = f"UTM zone {zone} does not exist. Give a zone from 1 to 60."
    with refused(ParameterError, text, "validation_error"):
        utm_to_wgs84(500_000, 0, zone, False)
    with refused(ParameterError, text, "validation_error"):
        wgs84_to_utm(0, 0, zone, False)


# Domains


@pytest.mark.parametrize("lat", [95.0, -90.0001, math.nan, math.inf])
@pytest.mark.parametrize("make", [lambda lat: Position(lat, 11.0), lambda lat: GeoPrior(lat, 11.0, 100.0)])
def test_a_latitude_off_the_earth_is_refused(lat: float, make) -> None:
    with refused(ParameterError, f"latitude {lat} is outside [-90, 90]. Give WGS84 degrees.", "validation_error"):
        make(lat)


@pytest.mark.parametrize("lon", [360.0, -180.0001, math.nan, -math.inf])
@pytest.mark.parametrize("make", [lambda lon: Position(48.0, lon), lambda lon: GeoPrior(48.0, lon, 100.0)])
def test_a_longitude_off_the_earth_is_refused(lon: float, make) -> None:
    with refused(ParameterError, f"longitude {lon} is outside [-180, 360). Give WGS84 degrees.", "validation_error"):
        make(lon)


@pytest.mark.parametrize(("given_lon", "kept"), [(359.0, -1.0), (180.0, 180.0), (-180.0, -180.0), (180.5, -179.5)])
def test_longitudes_up_to_360_become_western_ones(given_lon: float, kept: float) -> None:
    assert Position(0.0, given_lon).lon == kept


@pytest.mark.parametrize("radius", [0.0, -1.0, math.nan, math.inf, 21_000_000.1])
def test_a_geo_prior_radius_outside_its_domain_is_refused(radius: float) -> None:
    text = f"geo prior radius_m {radius} is outside (0, 21000000]. Give a radius in metres, or leave the geo prior out."
    with refused(ParameterError, text, "validation_error"):
        GeoPrior(48.0, 11.0, radius)


@pytest.mark.parametrize("radius", [1e-9, 25.0, 21_000_000.0])
def test_geo_prior_radii_inside_the_domain_are_taken(radius: float) -> None:
    assert GeoPrior(48.0, 350.0, radius).radius_m == radius


def test_rows_sorted_by_hilbert_key_lie_close_to_their_neighbours() -> None:
    """Ten thousand places in a town of 1 km², 10 m from place to place: so are most steps along the curve."""
    rng = np.random.default_rng(0)
    lat, lon = 48.0 + rng.random(10_000) * 0.009, 11.0 + rng.random(10_000) * 0.0135
    along = np.argsort(hilbert_key(lat, lon))
    jumps = [haversine_m(lat[a], lon[a], lat[b], lon[b]) for a, b in pairwise(along[:500])]
    assert np.median(jumps) < 20.0
