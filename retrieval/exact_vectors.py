"""Exact search by inner product over a FAISS flat index, whole or restricted to slices of rows."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from retrieval.describer import Descriptors
from retrieval.errors import MissingExtraError, PlaceIndexError
from retrieval.spatial_blocks import RowSlice

Storage = Literal["fp32", "fp16"]

# From this batch size on, flat fp32 search goes through BLAS: FAISS's own default is ten times slower on few cores
# (faiss pull requests 5022 and 5109).
_BLAS_FROM_BATCH: Final = 16


def faiss_module() -> ModuleType:
    """FAISS, with the settings that small batches need.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError(
            "FAISS is not installed", remedy="Run: pip install 'sightfix[cpu]' (or [gpu] beside CUDA)"
        ) from error
    module: ModuleType = faiss
    module.cvar.distance_compute_blas_threshold = _BLAS_FROM_BATCH
    return module


class ExactVectors:
    """The reference descriptors, searchable exactly. Thread-safe for reading.

    Args:
        index: a `faiss.IndexFlatIP`, or a `faiss.IndexScalarQuantizer` with QT_fp16 and inner product.
        storage: which of the two.
    """

    def __init__(self, index: Any, storage: Storage) -> None:
        self._faiss = faiss_module()
        self._index = index
        self.storage = storage
        # One thread: a single query gains nothing from more (it waits for memory), and beside BLAS's own threads
        # OpenMP's fight (measured: 127 against 10-65 queries/s).
        self._faiss.omp_set_num_threads(1)

    @classmethod
    def from_descriptors(cls, pieces: Iterable[Descriptors], dim: int, storage: Storage) -> "ExactVectors":
        """Make from pieces of (n, dim) float32 unit rows, in row order."""
        faiss = faiss_module()
        if storage == "fp32":
            index: Any = faiss.IndexFlatIP(dim)
        else:
            index = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        for piece in pieces:
            index.add(np.ascontiguousarray(piece, np.float32))
        return cls(index, storage)

    @classmethod
    def read(cls, path: Path, storage: Storage) -> "ExactVectors":
        """Open a file that `write` made.

        Raises:
            PlaceIndexError: FAISS cannot read it, or it holds another type of index.
        """
        faiss = faiss_module()
        wanted = faiss.IndexFlatIP if storage == "fp32" else faiss.IndexScalarQuantizer
        try:
            index = faiss.downcast_index(faiss.read_index(str(path)))
        except RuntimeError as error:
            raise PlaceIndexError(
                f"FAISS cannot read the vectors ({error})", where=str(path), remedy="Build the index again"
            ) from error
        if not isinstance(index, wanted) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise PlaceIndexError(f"the vectors are not an exact {storage} index", where=str(path))
        return cls(index, storage)

    def write(self, write: Callable[[bytes], int]) -> None:
        """Serialise through a file's write method, so that a full disk shows as the OSError it is."""
        failure: list[OSError] = []

        def guarded(data: bytes) -> int:
            try:
                return write(data)
            except OSError as error:
                failure.append(error)
                raise

        try:
            self._faiss.write_index(self._index, self._faiss.PyCallbackIOWriter(guarded, 1 << 20))
        except Exception:
            if failure:
                raise failure[0] from None
            raise

    @property
    def count(self) -> int:
        """Number of rows."""
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        """Length of a descriptor."""
        return int(self._index.d)

    def search(self, queries: Descriptors, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k best rows of each query by inner product, best first.

        Args:
            queries: (Q, D) float32.
            k: at least 1; rows beyond the count are filled with -1 and -inf.

        Returns:
            rows (Q, k) int64, scores (Q, k) float32.
        """
        rows, scores = _empty_result(len(queries), k)
        found = min(k, self.count)
        if found and len(queries):
            scores[:, :found], rows[:, :found] = self._index.search(np.ascontiguousarray(queries, np.float32), found)
        return rows, scores

    def search_slices(
        self, query: Descriptors, k: int, slices: Sequence[RowSlice]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k best rows of one query among those inside the slices.

        Args:
            query: (D,) float32.
            k: at least 1.
            slices: which rows are scanned, and which of those count.

        Returns:
            rows (k,) int64, scores (k,) float32, filled with -1 and -inf.
        """
        rows, scores = _empty_result(1, k)
        parts = [self._search_slice(query[None], k, part) for part in slices]
        if parts:
            all_rows, all_scores = (np.concatenate(column) for column in zip(*parts, strict=True))
            best = np.lexsort((all_rows, -all_scores))[:k]
            rows[0, : len(best)], scores[0, : len(best)] = all_rows[best], all_scores[best]
        return rows[0], scores[0]

    def _search_slice(
        self, query: Descriptors, k: int, part: RowSlice
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k best rows inside one slice (fewer if it has fewer).

        A range selector makes FAISS scan the slice alone. Rows of the slice that are not inside are dropped from what
        it returns, and more are fetched until k remain: the k best of those inside are among them.
        """
        size = part.stop - part.start
        selector = self._faiss.SearchParameters(sel=self._faiss.IDSelectorRange(part.start, part.stop))
        fetch = min(size, 2 * k + 16)
        while True:
            scores, rows = self._index.search(query, fetch, params=selector)
            # A GPU index may ignore selectors without a word: never trust a row that was not asked for.
            asked = (rows[0] >= part.start) & (rows[0] < part.stop)
            rows, scores = rows[0][asked], scores[0][asked]
            inside = part.inside[rows - part.start]
            if fetch == size or int(inside.sum()) >= k:
                return rows[inside][:k], scores[inside][:k]
            fetch = min(size, 4 * fetch)

    def descriptors(self, rows: NDArray[np.int64]) -> Descriptors:
        """The stored descriptors of some rows: (len(rows), D) float32."""
        found: Descriptors = self._index.reconstruct_batch(np.ascontiguousarray(rows, np.int64))
        return found


def _empty_result(queries: int, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    return np.full((queries, k), -1, np.int64), np.full((queries, k), -np.inf, np.float32)
