"""Descriptors of the photos that an epoch's choices need, and of no others."""

from collections.abc import Callable, Iterable

import numpy as np

from training.geopair.arrays import Float32Array, Int64Array
from training.geopair.errors import GeoPairError

Describe = Callable[[Int64Array], Float32Array]
"""Rows of the photo table, (n,) ascending → (n, D) float32 descriptors by the net as it is now, unit rows."""


class DescribedRows:
    """Descriptors of some rows of the table.

    Args:
        rows: (n,) ascending, distinct.
        descriptors: (n, D) float32, unit rows.
    """

    def __init__(self, rows: Int64Array, descriptors: Float32Array) -> None:
        self._rows = rows
        self._descriptors = descriptors

    def of(self, rows: Int64Array) -> Float32Array:
        """(m, D) descriptors of (m,) rows, each of which was described."""
        return self._descriptors[np.searchsorted(self._rows, rows)]


def describe_needed(describe: Describe, needed: Iterable[Int64Array]) -> DescribedRows:
    """Describe the union of some rows at once, each row once, in ascending order.

    Raises:
        GeoPairError: a descriptor is not finite (``bad_descriptors``).
        ValueError: `describe` gave an array of another shape.
    """
    rows = np.unique(np.concatenate([np.empty(0, np.int64), *needed]))
    descriptors = np.ascontiguousarray(describe(rows), np.float32)
    if descriptors.ndim != 2 or len(descriptors) != len(rows):
        raise ValueError(f"describe gave {descriptors.shape} for {len(rows)} rows")
    # A sum is finite only if all of its terms are; isfinite on the whole array would double its memory.
    if not np.isfinite(descriptors.sum(dtype=np.float64)):
        raise GeoPairError(
            f"the net gives descriptors that are not finite, among {len(rows)} photos described for mining",
            remedy="Lower optimiser.learning_rate, set training.clip_norm=1, or train in fp32",
            code="bad_descriptors",
        )
    return DescribedRows(rows, descriptors)
