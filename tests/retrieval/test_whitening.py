from pathlib import Path

import numpy as np
import pytest

from retrieval.bundle.whitening import fit_whitening
from retrieval.errors import ParameterError, PlaceIndexError
from retrieval.index.whitening import read_whitening, write_whitening


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


@pytest.fixture(scope="module")
def descriptors() -> np.ndarray:
    rng = np.random.default_rng(0)
    spread = np.geomspace(1, 0.02, 24)
    return unit((rng.normal(size=(500, 24)) * spread + 0.3) @ np.linalg.qr(rng.normal(size=(24, 24)))[0])


@pytest.mark.parametrize("power", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("dim", [1, 5, 24])
def test_it_is_the_singular_value_decomposition_written_slowly(descriptors, dim, power) -> None:
    double = descriptors.astype(np.float64)
    centred = double - double.mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    slow = unit(centred @ (directions[:dim].T / singular[:dim] ** power))
    whitening = fit_whitening(descriptors, dim, power)
    ours = whitening.apply(descriptors)
    # Directions have no sign of their own: all cosines between rows must agree.
    np.testing.assert_allclose(ours @ ours.T, slow @ slow.T, atol=2e-5)
    assert whitening.explained == pytest.approx((singular[:dim] ** 2).sum() / (singular**2).sum(), abs=1e-6)


def test_two_directions_worked_out_on_paper() -> None:
    # Singular values 4 and 1 along the axes: power 0.5 divides the first by 2 more than the second.
    rows = np.array([[3, 0], [-3, 0], [0, 0.75], [0, -0.75]], np.float32)
    whitening = fit_whitening(rows, 2, 0.5)
    (whitened,) = whitening.apply(np.array([[2, 1]], np.float32))
    assert abs(whitened[0] / whitened[1]) == pytest.approx(2 / 2)
    (plain,) = fit_whitening(rows, 2, 0.0).apply(np.array([[2, 1]], np.float32))
    assert abs(plain[0] / plain[1]) == pytest.approx(2)
    (whole,) = fit_whitening(rows, 2, 1.0).apply(np.array([[2, 1]], np.float32))
    assert abs(whole[0] / whole[1]) == pytest.approx(0.5)


def test_full_whitening_makes_all_variances_equal(descriptors) -> None:
    whitening = fit_whitening(descriptors, 10, 1.0)
    spread = ((descriptors - whitening.mean) @ whitening.projection).std(axis=0)
    np.testing.assert_allclose(spread, spread[0], rtol=1e-3)


def test_bias_makes_it_one_linear_layer(descriptors) -> None:
    whitening = fit_whitening(descriptors, 7)
    np.testing.assert_allclose(
        unit(descriptors @ whitening.projection + whitening.bias), whitening.apply(descriptors), atol=2e-6
    )


@pytest.mark.parametrize(
    ("dim", "power", "message"),
    [
        (0, 0.5, "0 is not a length .* Choose 1 to 24"),
        (25, 0.5, "25 is not a length"),
        (4, 1.5, "power 1.5 is outside 0 to 1"),
        (4, float("nan"), "power nan is outside"),
    ],
)
def test_values_outside_their_domain(descriptors, dim, power, message) -> None:
    with pytest.raises(ParameterError, match=message):
        fit_whitening(descriptors, dim, power)


def test_too_few_photos(descriptors) -> None:
    with pytest.raises(ParameterError, match=r"8 reference photos are too few .* 8 directions.*more than 8"):
        fit_whitening(descriptors[:8], 8)


def test_photos_that_are_all_alike(descriptors) -> None:
    with pytest.raises(ParameterError, match=r"span only 2 directions, not 5.*at most 2"):
        fit_whitening(np.repeat(descriptors[:3], 10, axis=0), 5)
    with pytest.raises(ParameterError, match="span only 0 directions"):
        fit_whitening(np.repeat(descriptors[:1], 10, axis=0), 5)


def test_a_written_whitening_is_read_again(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    whitening = fit_whitening(rows, 4)
    write_whitening(whitening, tmp_path / "w.npz")
    again = read_whitening(tmp_path / "w.npz")
    np.testing.assert_array_equal(again.apply(rows), whitening.apply(rows))
    assert (again.power, again.explained) == (whitening.power, whitening.explained)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no zip"])
def test_a_damaged_whitening_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.npz").write_bytes(content)
    with pytest.raises(PlaceIndexError, match="the whitening cannot be read"):
        read_whitening(tmp_path / "w.npz")
