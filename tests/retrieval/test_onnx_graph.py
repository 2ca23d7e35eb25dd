"""Whitening in the graph is whitening in numpy."""

import numpy as np
import onnx
import pytest

from retrieval.bundle.exportable import run_on_cpu
from retrieval.bundle.onnx_graph import with_whitening
from retrieval.bundle.whitening import fit_whitening
from tests.retrieval.mean_colour import mean_colour_graph


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_graph_whitens_as_numpy_does(count: int, dim: int) -> None:
    images = np.random.default_rng(3).integers(0, 256, (40, 16, 32, 3), dtype=np.uint8)
    images[:, :, :, 0] //= np.arange(1, 41, dtype=np.uint8)[:, None, None]
    model = mean_colour_graph(16, 32)
    raw = run_on_cpu(model)(images)
    whitening = fit_whitening(raw, dim)
    whitened = with_whitening(model, whitening)
    ours = run_on_cpu(whitened)(images[:count])
    assert ours.shape == (count, dim)
    np.testing.assert_allclose(ours, whitening.apply(raw[:count]), atol=1e-5)
    shape = whitened.graph.output[0].type.tensor_type.shape.dim
    assert shape[0].dim_param
    assert shape[1].dim_value == dim


def test_the_graph_it_was_made_from_stays_as_it_was() -> None:
    model = mean_colour_graph(16, 32)
    before = model.SerializeToString()
    whitening = fit_whitening(np.eye(3, dtype=np.float32), 2)
    assert with_whitening(model, whitening).SerializeToString() != before
    assert model.SerializeToString() == before
    onnx.checker.check_model(model, full_check=True)


def test_a_descriptor_that_is_the_mean_gives_no_nan() -> None:
    model = mean_colour_graph(16, 32)
    image = np.full((1, 16, 32, 3), 80, np.uint8)
    mean = run_on_cpu(model)(image)[0]
    rows = np.stack([mean + offset for offset in 0.1 * np.concatenate([np.eye(3), -np.eye(3)])]).astype(np.float32)
    assert np.isfinite(run_on_cpu(with_whitening(model, fit_whitening(rows, 2)))(image)).all()
