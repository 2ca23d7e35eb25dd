import itertools
import time

import numpy as np
import pytest

from retrieval.geo import unit_vectors
from tests.training.geopair.tables import (
    distances_m,
    geopairs,
    on_earth_m,
    plane_table,
    positives_by_hand,
    random_units,
    town,
)
from training.geopair import PhotoTable
from training.geopair.photo_table import describe_needed
from training.geopair.positives import Neighbours, Positives
from training.recipe_settings import GeoPairSettings

RULES = [
    {"heading_window_deg": window, "other_session_only": other, "same_session_fallback": fallback}
    for window, other, fallback in itertools.product((None, 40.0, 180.0), (False, True), (False, True))
]


def positives(table: PhotoTable, **settings) -> Positives:
    return Positives(table, GeoPairSettings(**settings), Neighbours(table.points))


def all_choices(of: Positives, query: int) -> set[int]:
    """Every positive of a query, by drawing with each possible chance."""
    rows = np.array([query])
    return {int(of.choose_random(rows, np.array([chance]))[0]) for chance in np.linspace(0, 0.999, 60)}


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("seed", [0, 1])
def test_positives_are_those_found_one_by_one(rules: dict, seed: int) -> None:
    table = town(seed, photos=120, side_m=150)
    by_hand = positives_by_hand(table, GeoPairSettings(**rules))
    ours = positives(table, **rules)
    rows = ours.rows_with_any()
    assert rows.tolist() == [row for row, near in enumerate(by_hand) if near]
    assert ours.rows_of(rows).tolist() == sorted(set().union(*by_hand))
    for row in rows[::7]:
        assert all_choices(ours, row) == by_hand[row]
        assert ours.rows_of(np.array([row])).tolist() == sorted(by_hand[row])


@pytest.mark.parametrize(("lat", "lon"), [(0.0, 180.0), (89.9999, 20.0), (-89.9999, -170.0), (31.2, 34.8)])
def test_the_earth_has_no_seam(lat: float, lon: float) -> None:
    rng = np.random.default_rng(3)
    spread = 3e-4
    lats = np.clip(lat + rng.uniform(-spread, spread, 60), -90, 90)
    lons = lon + rng.uniform(-spread, spread, 60) * (1e6 if abs(lat) > 80 else 1)
    lons = (lons + 180) % 360 - 180
    table = PhotoTable(unit_vectors(lats, lons), np.full(60, np.nan, np.float32), np.zeros(60, np.int32))
    by_hand = positives_by_hand(table, GeoPairSettings(), on_earth_m(lats, lons))
    ours = positives(table)
    assert any(by_hand)
    for row in ours.rows_with_any():
        assert ours.rows_of(np.array([row])).tolist() == sorted(by_hand[row])
    assert len(ours.rows_with_any()) == sum(1 for near in by_hand if near)


def test_the_border_belongs_to_the_radius() -> None:
    assert positives(plane_table([[0, 0], [10, 0], [20.001, 0]])).rows_with_any().tolist() == [0, 1]


def test_photos_at_one_position_are_positives_and_none_is_its_own() -> None:
    ours = positives(plane_table([[7, 7], [7, 7], [99, 99]]))
    assert ours.choose_random(np.array([0, 1]), np.zeros(2)).tolist() == [1, 0]
    assert ours.rows_with_any().tolist() == [0, 1]


def test_headings_go_round_and_unknown_ones_never_match() -> None:
    table = plane_table(np.zeros((4, 2)), headings=[350, 20, 40, np.nan])
    ours = positives(table, heading_window_deg=30.0)
    assert [ours.rows_of(np.array([row])).tolist() for row in range(4)] == [[1], [0, 2], [1], []]


def test_another_session_is_preferred_and_unknown_ones_are_one() -> None:
    table = plane_table([[0, 0], [1, 0], [2, 0], [50, 0], [51, 0]], sessions=[0, 0, 1, -1, -1])
    strict = positives(table, other_session_only=True)
    assert strict.rows_with_any().tolist() == [0, 1, 2]
    lenient = positives(table, other_session_only=True, same_session_fallback=True)
    assert [lenient.rows_of(np.array([row])).tolist() for row in range(5)] == [[2], [2], [0, 1], [4], [3]]


@pytest.mark.parametrize("which", ["nearest", "farthest"])
def test_choice_by_descriptor_is_the_slow_one(which: str) -> None:
    table = town(5, photos=600, side_m=400)
    settings = GeoPairSettings(other_session_only=True, same_session_fallback=True)
    by_hand = positives_by_hand(table, settings)
    ours = Positives(table, settings, Neighbours(table.points))
    queries = np.random.default_rng(0).permutation(ours.rows_with_any())
    units = random_units(len(table))
    described = describe_needed(lambda rows: units[rows], [queries, ours.rows_of(queries)])
    sign = 1 if which == "nearest" else -1
    expected = [max(sorted(by_hand[q]), key=lambda row, q=q: sign * float(units[row] @ units[q])) for q in queries]
    assert ours.choose_by_descriptor(queries, described, which).tolist() == expected


def test_random_choice_is_uniform() -> None:
    ours = positives(plane_table(np.zeros((5, 2))))
    drawn = [ours.choose_random(np.array([2]), np.array([chance]))[0] for chance in np.arange(0.0, 1.0, 0.01)]
    assert np.bincount(drawn).tolist() == [25, 25, 0, 25, 25]


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    table = town(2)
    neighbours = Neighbours(table.points)
    rows = np.random.default_rng(1).permutation(len(table))[:100]
    near = distances_m(table) <= 10
    np.fill_diagonal(near, False)
    for at_once in (1, 7, 10_000):
        monkeypatch.setattr("training.geopair.positives._PAIRS_AT_ONCE", at_once)
        found = set()
        for pairs in neighbours.pairs_within(rows, 10.0):
            assert len(pairs.at) == 1 or len(pairs.rows) <= at_once
            found |= set(zip(rows[pairs.at][pairs.owner].tolist(), pairs.rows.tolist(), strict=True))
        assert found == {(int(row), int(other)) for row in rows for other in np.flatnonzero(near[row])}


def test_a_dense_spot_is_walked_in_bounded_pieces() -> None:
    rng = np.random.default_rng(0)
    turns, radii = rng.uniform(0, 2 * np.pi, 5000), 5 * np.sqrt(rng.random(5000))
    metres = np.stack([radii * np.cos(turns), radii * np.sin(turns)], axis=1)
    table = plane_table(np.concatenate([metres, [[500, 0], [503, 0]]]))
    sizes = [len(pairs.rows) for pairs in Neighbours(table.points).pairs_within(np.arange(len(table)), 10.0)]
    assert sum(sizes) == 5000 * 4999 + 2
    assert max(sizes) <= 1_000_000
    started = time.process_time()
    composed = geopairs(table, GeoPairSettings(positive="random"), queries_per_batch=2).compose_epoch(0)
    assert len(composed.batches) >= 1
    assert time.process_time() - started < 20
