"""Principal components against the singular value decomposition, of few long rows and of many short ones."""

import numpy as np
import pytest

from retrieval.bundle.principal_components import principal_components


@pytest.mark.parametrize(("count", "length"), [(9, 30), (30, 9), (12, 12), (13, 12), (12, 13), (40, 3000), (3000, 40)])
def test_they_are_those_of_the_singular_value_decomposition(count: int, length: int) -> None:
    rng = np.random.default_rng(count)
    least = min(count, length)
    rows = (rng.normal(size=(count, least)) * np.geomspace(4, 0.5, least)) @ rng.normal(size=(least, length)) + 3.0
    rows = rows.astype(np.float32)
    found = principal_components(rows)
    double = rows.astype(np.float64)
    _, singular, directions = np.linalg.svd(double - double.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(found.centre, double.mean(axis=0), rtol=1e-5, atol=1e-5)
    # Centring takes one direction from rows that are fewer than their numbers.
    kept = min(count - 1, length)
    np.testing.assert_allclose(found.singular[:kept], singular[:kept], rtol=1e-5)
    ours = found.directions(kept)
    assert ours.shape == (length, kept)
    np.testing.assert_allclose(np.abs(np.einsum("dk,kd->k", ours, directions[:kept])), 1.0, atol=1e-4)
    assert all(column[np.abs(column).argmax()] > 0 for column in ours.T)
    assert found.explained(2) == pytest.approx((singular[:2] ** 2).sum() / (singular**2).sum(), abs=1e-6)


def test_rows_that_are_all_the_same_have_no_direction() -> None:
    for shape in ((4, 6), (6, 4)):
        found = principal_components(np.full(shape, 0.1, np.float32))
        assert not found.singular.any()
        assert found.explained(2) == 0.0
        assert found.directions(0).shape == (shape[1], 0)
