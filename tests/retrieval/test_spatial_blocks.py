import math

import numpy as np
import pytest
from hypothesis import given, settings

from retrieval.geo import EARTH_RADIUS_M, GeoPrior, Position, from_local_metres, haversine_m, unit_vectors
from retrieval.index.place_index import BLOCK_ROWS, SpatialBlocks
from tests.hypothesis_profiles import examples
from tests.retrieval.scattered import Scatter, cluster, everywhere, priors, scatters, surely_inside


@settings(max_examples=examples(100))
@given(scatters, priors())
def test_rows_within_are_those_a_slow_search_finds(scatter: Scatter, prior: GeoPrior) -> None:
    lat, lon = scatter.positions()
    found = SpatialBlocks(lat, lon).rows_within(prior)
    assert found.dtype == np.int64
    assert (np.diff(found) > 0).all()
    inside, border = surely_inside(lat, lon, prior)
    assert np.array_equal(np.setdiff1d(found, border), inside)


@settings(max_examples=examples(100))
@given(scatters, priors())
def test_blocks_change_no_answer(scatter: Scatter, prior: GeoPrior) -> None:
    """The same comparison of chords row by row, without blocks: equal to the last row, borders included."""
    lat, lon = scatter.positions()
    chords = unit_vectors(lat, lon) - unit_vectors(prior.lat, prior.lon)
    reach = 2.0 * math.sin(min(prior.radius_m / EARTH_RADIUS_M, math.pi) / 2.0)
    expected = np.flatnonzero(np.einsum("rc,rc->r", chords, chords) <= reach**2)
    assert np.array_equal(SpatialBlocks(lat, lon).rows_within(prior), expected)


def test_blocks_change_no_answer_at_the_antipode() -> None:
    """There the arcsine loses half of its digits: a cap narrower than its rows would lose some."""
    rng = np.random.default_rng(0)
    for _ in range(2000):
        lat, lon = rng.uniform(-89.0, 89.0), rng.uniform(-179.0, 0.0)
        antipode = Position(-lat, lon + 180.0)
        rows = [
            from_local_metres(antipode, EARTH_RADIUS_M * arc * math.sin(turn), EARTH_RADIUS_M * arc * math.cos(turn))
            for arc, turn in zip(10.0 ** rng.uniform(-9, -6, 8), rng.uniform(0, 2 * math.pi, 8), strict=True)
        ]
        row_lat, row_lon = np.array([row.lat for row in rows]), np.array([row.lon for row in rows])
        prior = GeoPrior(lat, lon, (math.pi - 10.0 ** rng.uniform(-9, -6)) * EARTH_RADIUS_M)
        chords = unit_vectors(row_lat, row_lon) - unit_vectors(lat, lon)
        reach = 2.0 * math.sin(prior.radius_m / EARTH_RADIUS_M / 2.0)
        expected = np.flatnonzero(np.einsum("rc,rc->r", chords, chords) <= reach**2)
        assert np.array_equal(SpatialBlocks(row_lat, row_lon).rows_within(prior), expected)


def test_a_circle_by_hand() -> None:
    """References 100 m apart along the equator; 250 m around the fifth hold two on either side."""
    lon = np.array([from_local_metres(Position(0.0, 0.0), 100.0 * step, 0.0).lon for step in range(10)])
    blocks = SpatialBlocks(np.zeros(10), lon)
    assert blocks.rows_within(GeoPrior(0.0, lon[4], 250.0)).tolist() == [2, 3, 4, 5, 6]
    assert blocks.rows_within(GeoPrior(0.0, lon[4], 99.0)).tolist() == [4]
    assert blocks.rows_within(GeoPrior(0.0, lon[4], 1e-6)).tolist() == [4]


def test_the_border_belongs_to_the_circle() -> None:
    radius = float(haversine_m(0.0, 0.0, 0.0, 0.001))
    blocks = SpatialBlocks(np.zeros(1), np.array([0.001]))
    assert blocks.rows_within(GeoPrior(0.0, 0.0, radius + 1e-6)).tolist() == [0]
    assert blocks.rows_within(GeoPrior(0.0, 0.0, radius - 1e-3)).tolist() == []


@pytest.mark.parametrize("count", [1, BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 1, 3 * BLOCK_ROWS])
def test_the_largest_prior_holds_every_row_and_none_beyond(count: int) -> None:
    lat, lon = everywhere(count, seed=1).T
    assert SpatialBlocks(lat, lon).rows_within(GeoPrior(-30.0, 77.0, GeoPrior.MAX_RADIUS_M)).tolist() == list(
        range(count)
    )


def test_a_prior_far_from_everything_is_empty() -> None:
    lat, lon = cluster((48.0, 11.0), 600, 1000.0, seed=2).T
    assert SpatialBlocks(lat, lon).rows_within(GeoPrior(-48.0, -169.0, 1_000_000.0)).tolist() == []


def test_rows_at_one_place_are_all_inside_or_all_outside() -> None:
    blocks = SpatialBlocks(np.full(700, 48.0), np.full(700, 11.0))
    assert len(blocks.rows_within(GeoPrior(48.0, 11.0, 0.001))) == 700
    assert len(blocks.rows_within(GeoPrior(48.001, 11.0, 100.0))) == 0


def test_no_rows_at_all() -> None:
    assert SpatialBlocks(np.empty(0), np.empty(0)).rows_within(GeoPrior(0.0, 0.0, 1e6)).tolist() == []
