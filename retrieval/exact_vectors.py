"""Exact search by inner product over a FAISS flat index, over all rows or some."""

from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from retrieval.describer import Descriptors
from retrieval.errors import MissingExtraError, PlaceIndexError

Storage = Literal["fp32", "fp16"]

# From this batch size on, flat fp32 search goes through BLAS: FAISS's own default is ten times slower on few cores
# (faiss pull requests 5022 and 5109).
_BLAS_FROM_BATCH: Final = 16

# Rows inside a geo prior that are copied and scanned at once: 8192 × 1280 fp16 is 20 MB.
_SCAN_ROWS: Final = 8192


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

    @classmethod
    def from_descriptors(cls, pieces: Iterable[Descriptors], dim: int, storage: Storage) -> "ExactVectors":
        """Make from pieces of (n, dim) float32 unit rows, in row order."""
        faiss = faiss_module()
        index = _empty_index(faiss, dim, storage)
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
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise PlaceIndexError(
                f"FAISS cannot read the vectors ({error})", where=str(path), remedy="Build the index again"
            ) from error
        coded = storage == "fp32" or (isinstance(index, wanted) and index.sq.qtype == faiss.ScalarQuantizer.QT_fp16)
        if not isinstance(index, wanted) or not coded or index.metric_type != faiss.METRIC_INNER_PRODUCT:
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
            self._use_one_thread()
            scores[:, :found], rows[:, :found] = self._index.search(np.ascontiguousarray(queries, np.float32), found)
        return rows, scores

    def search_rows(
        self, query: Descriptors, k: int, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k best of some rows for one query.

        The rows' codes are copied into a small index of their own: cheaper than any of FAISS's selectors, some of which
        walk over all N rows, and a GPU index may ignore them without a word.

        Args:
            query: (D,) float32.
            k: at least 1.
            rows: (R,) int64; the copy is quick when they lie close together.

        Returns:
            rows (k,) int64, scores (k,) float32, filled with -1 and -inf.
        """
        best_rows, best_scores = _empty_result(1, k)
        self._use_one_thread()
        for start in range(0, len(rows), _SCAN_ROWS):
            some = rows[start : start + _SCAN_ROWS]
            index = self._copy_of(some)
            scores, places = index.search(query[None], min(k, len(some)))
            all_rows = np.concatenate([best_rows[0], some[places[0]]])
            all_scores = np.concatenate([best_scores[0], scores[0]])
            order = np.argsort(-all_scores, kind="stable")[:k]
            best_rows[0], best_scores[0] = all_rows[order], all_scores[order]
        return best_rows[0], best_scores[0]

    def _use_one_thread(self) -> None:
        """Search with one thread: a single query gains nothing from more (it waits for memory), and beside BLAS's own
        threads OpenMP's fight (measured: 127 against 10-65 queries/s).

        OpenMP keeps the number for each calling thread, so it is set where the search is called; that costs 0.1 µs.
        """
        self._faiss.omp_set_num_threads(1)

    def _copy_of(self, rows: NDArray[np.int64]) -> Any:
        """An index of some rows. Their codes go straight into its memory: `add_sa_codes` would copy them twice."""
        index = _empty_index(self._faiss, self.dim, self.storage)
        index.codes.resize(len(rows) * int(index.code_size))
        index.ntotal = len(rows)
        np.take(self._codes_of(self._index), rows, axis=0, out=self._codes_of(index), mode="clip")
        return index

    def _codes_of(self, index: Any) -> NDArray[np.uint8]:
        """The stored rows of a flat index as bytes, (N, bytes a row), without a copy."""
        count, size = int(index.ntotal), int(index.code_size)
        codes: NDArray[np.uint8] = self._faiss.rev_swig_ptr(index.codes.data(), count * size)
        return codes.reshape(count, size)

    def descriptors(self, rows: NDArray[np.int64]) -> Descriptors:
        """The stored descriptors of some rows: (len(rows), D) float32."""
        found: Descriptors = self._index.reconstruct_batch(np.ascontiguousarray(rows, np.int64))
        return found


def _empty_index(faiss: ModuleType, dim: int, storage: Storage) -> Any:
    if storage == "fp32":
        return faiss.IndexFlatIP(dim)
    return faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)


def _empty_result(queries: int, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    return np.full((queries, k), -1, np.int64), np.full((queries, k), -np.inf, np.float32)
