"""Which rows of many stand for all: spread evenly, or drawn at random the same way every time."""

import numpy as np
from numpy.typing import NDArray


def evenly_spaced(count: int, most: int) -> NDArray[np.int64]:
    """(n,) rising row numbers of `count` rows, first and last among them; n is the smaller of `count` and `most`."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def drawn(count: int, most: int, seed: int = 0) -> NDArray[np.int64]:
    """(n,) rising row numbers of `count` rows, drawn without replacement, n the smaller of `count` and `most`."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))
