"""A bundle that loads in a moment, and photos for it; tests of a GPU are skipped without one."""

import numpy as np
import pytest

from retrieval.bundle import Bundle
from retrieval.engines.cuda import first_gpu
from retrieval.errors import ProviderUnavailableError
from tests.places import pattern
from tests.retrieval.engines.small_graphs import write_small_bundle


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `gpu` on a machine without one."""
    if item.get_closest_marker("gpu") is not None:
        try:
            first_gpu()
        except ProviderUnavailableError as error:
            pytest.skip(str(error))


@pytest.fixture(scope="session")
def small(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One convolution, in fp32 and in int8."""
    return write_small_bundle(bundle, tmp_path_factory.mktemp("small") / "bundle")


@pytest.fixture(scope="session")
def photos(bundle: Bundle) -> np.ndarray:
    """(7, H, W, 3) uint8."""
    size = (bundle.preprocessing.width, bundle.preprocessing.height)
    return np.stack([np.asarray(pattern(seed, size)) for seed in range(7)])
