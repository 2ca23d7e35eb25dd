"""The share of energy in the strongest locations, by hand, and over many photos."""

import warnings

import numpy as np
import pytest

from retrieval.errors import ParameterError
from tests.training.small_encoder import small_encoder, small_recipe
from training.heat_maps import condensation, energy_share, heat_maps

MAP = np.array([[[1.0, 4.0], [3.0, 2.0]]])


@pytest.mark.parametrize(
    ("top", "share"), [(0.25, 0.4), (0.5, 0.7), (0.75, 0.9), (1.0, 1.0), (0.1, 0.16), (0.375, 0.55)]
)
def test_by_hand(top: float, share: float) -> None:
    assert energy_share(MAP, top) == pytest.approx([share])


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (3, 7), (8, 8), (15, 20), (31, 41)])
@pytest.mark.parametrize("top", [0.1, 0.37])
def test_an_even_map_has_its_part_on_every_grid(grid: tuple[int, int], top: float) -> None:
    assert energy_share(np.full((1, *grid), 0.7, np.float32), top) == pytest.approx([top], rel=1e-12)


def test_one_hot_spot_holds_all() -> None:
    spot = np.zeros((1, 5, 5))
    spot[0, 2, 3] = 7.0
    assert energy_share(spot) == pytest.approx([1.0])
    spot[0, 0, 0] = 7.0
    assert energy_share(spot, 0.06) == pytest.approx([0.75])  # one and a half locations of two


def test_opposition_is_no_energy() -> None:
    assert energy_share(np.array([[[3.0, -5.0], [1.0, 0.0]]]), 0.25) == pytest.approx([0.75])


def test_maps_without_energy_and_broken_ones_have_no_share() -> None:
    maps = np.array([[[0.0, 0.0]], [[-1.0, -2.0]], [[np.nan, 1.0]], [[np.inf, 1.0]], [[1.0, 3.0]]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shares = energy_share(maps, 0.5)
    assert np.isnan(shares[:4]).all()
    assert shares[4] == pytest.approx(0.75)
    assert shares.dtype == np.float64


@pytest.mark.parametrize("scale", [1e-310, 1e-30, 1.0, 1e300])
def test_neither_scale_nor_order_matters(scale: float) -> None:
    values = np.random.default_rng(0).random((3, 6, 7))
    mixed = np.random.default_rng(1).permuted(values.reshape(3, -1), axis=1).reshape(3, 7, 6)
    np.testing.assert_allclose(energy_share(mixed * scale), energy_share(values), rtol=1e-3)


def test_more_locations_hold_more() -> None:
    values = np.random.default_rng(0).random((4, 5, 9))
    shares = np.array([energy_share(values, top) for top in np.linspace(0.05, 1.0, 20)])
    assert (np.diff(shares, axis=0) > 0).all()
    assert (shares >= np.linspace(0.05, 1.0, 20)[:, None] - 1e-12).all()
    assert energy_share(values[:0]).shape == (0,)


@pytest.mark.parametrize("top", [0.0, -0.1, 1.5, float("nan")])
def test_no_other_share_of_locations(top: float) -> None:
    with pytest.raises(ParameterError, match=r"outside \(0, 1\]"):
        energy_share(MAP, top)


def test_maps_come_in_batches() -> None:
    with pytest.raises(ValueError, match=r"\(N, h, w\)"):
        energy_share(MAP[0])


def photos(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 96, 3), dtype=np.uint8)


def test_over_many_pairs() -> None:
    encoder = small_encoder(small_recipe("network.descriptor_dim=none"))
    a, b = photos(19, 0), photos(19, 1)
    found = condensation(encoder, a, b, top=0.2)
    maps = heat_maps(encoder, a, b)
    sides = [energy_share(side, 0.2) for side in (maps.activation_a, maps.activation_b, maps.match_a, maps.match_b)]
    np.testing.assert_allclose(found.activation, (sides[0] + sides[1]) / 2, rtol=1e-5)
    np.testing.assert_allclose(found.match, (sides[2] + sides[3]) / 2, rtol=1e-5)
    again = condensation(encoder, a, b, top=0.2)
    np.testing.assert_array_equal(again.match, found.match)


def test_photos_paired_with_themselves() -> None:
    encoder = small_encoder(small_recipe())
    a = photos(3, 0)
    alone, paired = condensation(encoder, a, a), condensation(encoder, a, a.copy())
    np.testing.assert_allclose(alone.match, paired.match)
    np.testing.assert_allclose(alone.activation, energy_share(heat_maps(encoder, a, a).activation_a))
    with pytest.raises(ValueError, match="3 photos cannot be paired with 2"):
        condensation(encoder, a, a[:2])
