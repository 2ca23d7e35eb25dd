"""Exact search by inner product over a FAISS flat index, over all rows or some."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import PlaceIndexError
from retrieval.index.vectors.faiss_library import (
    BLAS_FROM_QUERIES,
    faiss_module,
    read_faiss_index,
    set_up_search,
    write_faiss_index,
)
from retrieval.machine import available_cores

if TYPE_CHECKING:
    from retrieval.describer import Descriptors

Storage = Literal["fp32", "fp16", "int8"]
STORAGES: Final[tuple[Storage, ...]] = ("fp32", "fp16", "int8")

# Rows inside a geo prior that are copied and scanned at once: 8192 × 1280 fp16 is 20 MB.
_SCAN_ROWS: Final = 8192

# Batches are compared with blocks of rows that stay in the cache; measured faster than FAISS's own blocks.
_BLOCK_ROWS: Final = 8192

# By which share of its range the steps of int8 go beyond what a sample showed, on each side.
_MARGIN: Final = 0.05

_WIDE_MARGIN: Final = 0.5
_LARGE_SAMPLE: Final = 1000

# From so many queries on it pays to turn stored rows into fp32 and use BLAS: measured at 512 and at 1280 numbers.
_BLOCKS_FROM: Final[dict[Storage, int]] = {"fp32": BLAS_FROM_QUERIES, "fp16": 12, "int8": 12}


class ExactVectors:
    """The reference descriptors, searchable exactly as they are stored. Thread-safe for reading.

    Args:
        index: a `faiss.IndexFlatIP`, or a `faiss.IndexScalarQuantizer` of inner product: QT_fp16, or QT_8bit, whose
            255 steps run from the least to the greatest value that a number of the descriptors takes.
        storage: which of them.
    """

    def __init__(self, index: Any, storage: Storage) -> None:
        self._faiss = faiss_module()
        self._index = index
        self.storage = storage

    @classmethod
    def empty(cls, dim: int, storage: Storage, sample: "Descriptors | None" = None) -> "ExactVectors":
        """No rows yet.

        Args:
            dim: D.
            storage: how rows will be stored.
            sample: (n, D) float32, descriptors by which the steps of int8 are chosen; others clip to their range.
        """
        faiss = faiss_module()
        index = _empty_index(faiss, dim, storage)
        if storage == "int8":
            assert sample is not None, "int8 needs a sample"
            # The fewer were seen, the further others may lie outside of their range.
            index.sq.rangestat_arg = _MARGIN if len(sample) >= _LARGE_SAMPLE else _WIDE_MARGIN
            index.train(np.ascontiguousarray(sample, np.float32))
        return cls(index, storage)

    @classmethod
    def from_descriptors(
        cls, pieces: Iterable["Descriptors"], dim: int, storage: Storage, sample: "Descriptors | None" = None
    ) -> "ExactVectors":
        """Make from pieces of (n, dim) float32 unit rows, in row order; `sample` as in `empty`."""
        vectors = cls.empty(dim, storage, sample)
        for piece in pieces:
            vectors.add(piece)
        return vectors

    @classmethod
    def read(cls, path: Path, storage: Storage, *, memory_map: bool = False) -> "ExactVectors":
        """Open a file that `write` made.

        Raises:
            PlaceIndexError: FAISS cannot read it, or it holds another type of index.
        """
        faiss = faiss_module()
        index = read_faiss_index(path, memory_map=memory_map)
        wanted = faiss.IndexFlatIP if storage == "fp32" else faiss.IndexScalarQuantizer
        coded = storage == "fp32" or (isinstance(index, wanted) and index.sq.qtype == _quantizer_type(faiss, storage))
        if not isinstance(index, wanted) or not coded or index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise PlaceIndexError(f"the vectors are not an exact {storage} index", where=str(path))
        return cls(index, storage)

    def empty_alike(self) -> "ExactVectors":
        """No rows, but the same steps of int8: a row that was stored here before stays the same, bit by bit."""
        return ExactVectors(self._empty_alike(), self.storage)

    def add(self, descriptors: "Descriptors") -> None:
        """Add (n, D) float32 unit rows; not while it is searched."""
        self._index.add(np.ascontiguousarray(descriptors, np.float32))

    def write(self, write: Callable[[bytes], int]) -> None:
        """Serialise through a file's write method, so that a full disk shows as the OSError it is."""
        write_faiss_index(self._index, write)

    @property
    def count(self) -> int:
        """Number of rows."""
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        """Length of a descriptor."""
        return int(self._index.d)

    @property
    def bytes_per_row(self) -> int:
        """Stored bytes of a descriptor."""
        return int(self._index.code_size)

    def search(self, queries: "Descriptors", k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k best rows of each query by inner product, best first.

        Args:
            queries: (Q, D) float32.
            k: at least 1; rows beyond the count are filled with -1 and -inf.

        Returns:
            rows (Q, k) int64, scores (Q, k) float32.
        """
        rows, scores = empty_result(len(queries), k)
        found = min(k, self.count)
        if found and len(queries):
            queries = np.ascontiguousarray(queries, np.float32)
            set_up_search(self._faiss, self.dim)
            search = self._search_blocks if len(queries) >= _BLOCKS_FROM[self.storage] else self._index.search
            scores[:, :found], rows[:, :found] = search(queries, found)
        return rows, scores

    def search_rows(
        self, query: "Descriptors", k: int, rows: NDArray[np.int64]
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
        best_rows, best_scores = empty_result(1, k)
        set_up_search(self._faiss, self.dim)
        for start in range(0, len(rows), _SCAN_ROWS):
            some = rows[start : start + _SCAN_ROWS]
            index = self._copy_of(some)
            scores, places = index.search(query[None], min(k, len(some)))
            all_rows = np.concatenate([best_rows[0], some[places[0]]])
            all_scores = np.concatenate([best_scores[0], scores[0]])
            order = np.argsort(-all_scores, kind="stable")[:k]
            best_rows[0], best_scores[0] = all_rows[order], all_scores[order]
        return best_rows[0], best_scores[0]

    def descriptors(self, rows: NDArray[np.int64]) -> "Descriptors":
        """The stored descriptors of some rows: (len(rows), D) float32."""
        found: Descriptors = self._index.reconstruct_batch(np.ascontiguousarray(rows, np.int64))
        return found

    def _search_blocks(self, queries: "Descriptors", k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """As `index.search`, with blocks of rows shared out among the cores: scores (Q, k) and rows (Q, k)."""
        starts = range(0, self.count, _BLOCK_ROWS)
        workers = min(available_cores(), len(starts))
        if workers == 1:
            return self._search_some_blocks(queries, k, starts)
        parts = list(
            _searchers().map(
                lambda worker: self._search_some_blocks(queries, k, starts[worker::workers]), range(workers)
            )
        )
        heap = self._faiss.ResultHeap(len(queries), k, keep_max=True)
        for scores, rows in parts:
            heap.add_result(scores, rows)
        heap.finalize()
        return heap.D, heap.I

    def _search_some_blocks(
        self, queries: "Descriptors", k: int, starts: range
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k best of some blocks, filled with -inf and -1."""
        set_up_search(self._faiss, self.dim)
        heap = self._faiss.ResultHeap(len(queries), k, keep_max=True)
        block = np.empty((min(_BLOCK_ROWS, self.count), self.dim), np.float32)
        codes = self._codes_of(self._index)
        for start in starts:
            count = min(_BLOCK_ROWS, self.count - start)
            if self.storage == "fp32":
                rows = codes[start : start + count].view(np.float32)
            elif self.storage == "fp16":
                rows = block[:count]
                np.copyto(rows, codes[start : start + count].view(np.float16))
            else:
                rows = self._index.reconstruct_n(start, count, block[:count])
            scores, places = self._faiss.knn(queries, rows, min(k, count), metric=self._faiss.METRIC_INNER_PRODUCT)
            heap.add_result(scores, places + start)
        heap.finalize()
        return heap.D, heap.I

    def _copy_of(self, rows: NDArray[np.int64]) -> Any:
        """An index of some rows. Their codes go straight into its memory: `add_sa_codes` would copy them twice."""
        index = self._empty_alike()
        index.codes.resize(len(rows) * int(index.code_size))
        index.ntotal = len(rows)
        np.take(self._codes_of(self._index), rows, axis=0, out=self._codes_of(index), mode="clip")
        return index

    def _empty_alike(self) -> Any:
        index = _empty_index(self._faiss, self.dim, self.storage)
        if self.storage == "int8":
            index.sq.trained = self._index.sq.trained
            index.is_trained = True
        return index

    def _codes_of(self, index: Any) -> NDArray[np.uint8]:
        """The stored rows of a flat index as bytes, (N, bytes a row), without a copy."""
        count, size = int(index.ntotal), int(index.code_size)
        codes: NDArray[np.uint8] = self._faiss.rev_swig_ptr(index.codes.data(), count * size)
        return codes.reshape(count, size)


@cache
def _searchers() -> ThreadPoolExecutor:
    """Threads that all indexes of this process search large batches with; they sleep in between."""
    return ThreadPoolExecutor(available_cores(), "search")


def empty_result(queries: int, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows (Q, k) of -1 and scores (Q, k) of -inf."""
    return np.full((queries, k), -1, np.int64), np.full((queries, k), -np.inf, np.float32)


def _quantizer_type(faiss: ModuleType, storage: Storage) -> int:
    types = {"fp16": faiss.ScalarQuantizer.QT_fp16, "int8": faiss.ScalarQuantizer.QT_8bit}
    return int(types[storage])


def _empty_index(faiss: ModuleType, dim: int, storage: Storage) -> Any:
    if storage == "fp32":
        return faiss.IndexFlatIP(dim)
    return faiss.IndexScalarQuantizer(dim, _quantizer_type(faiss, storage), faiss.METRIC_INNER_PRODUCT)
