"""The files of a version: vectors and rows along the spatial curve, and the look at them before they get a name."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.describer import Descriptors
from retrieval.errors import PlaceIndexError
from retrieval.exact_vectors import ExactVectors, Storage
from retrieval.place_index import REFERENCES_NAME, VECTORS_NAME, PlaceIndex

_COPY_ROWS: Final = 4096
_CANARIES: Final = 64


def write_vectors(
    folder: Path,
    order: NDArray[np.int64],
    dim: int,
    storage: Storage,
    take: Callable[[NDArray[np.int64]], Descriptors],
) -> None:
    """Write the vectors of a version.

    Args:
        folder: the draft's.
        order: (N,) int64, the rows as `take` counts them, along the spatial curve.
        dim: D.
        storage: fp32 or fp16. A vector that was stored as fp16 before stays the same, bit by bit.
        take: gives the descriptors of some rows, (n, D) float32.

    Raises:
        OSError: the disk refuses.
    """

    def in_order() -> Iterator[Descriptors]:
        for start in range(0, len(order), _COPY_ROWS):
            yield take(order[start : start + _COPY_ROWS])

    vectors = ExactVectors.from_descriptors(in_order(), dim, storage)
    with (folder / VECTORS_NAME).open("wb") as file:
        vectors.write(file.write)


def write_references(folder: Path, order: NDArray[np.int64], table: pa.Table) -> None:
    """Write the reference table of a version, its rows in `order`."""
    pq.write_table(table.take(pa.array(order)), folder / REFERENCES_NAME, compression="zstd")


def check_answers(folder: Path) -> None:
    """Open a draft as a server would, and ask it for some of its own references: each must score 1 with itself.

    Raises:
        PlaceIndexError: it cannot be opened, or does not find them (``canary_failed``).
    """
    index = PlaceIndex.open(folder)
    some = np.unique(np.linspace(0, index.count - 1, _CANARIES).astype(np.int64))
    descriptors = index.descriptors(some)
    found = index.search(descriptors, 1)
    own_scores = (descriptors * descriptors).sum(axis=1)
    if not np.all(found.scores[:, 0] >= own_scores - 1e-3) or not np.all(np.abs(own_scores - 1.0) < 1e-2):
        raise PlaceIndexError(
            "the written index does not find its own references; nothing was published",
            where=str(folder),
            remedy="Check the disk and the memory of this machine, then build again",
            code="canary_failed",
        )
