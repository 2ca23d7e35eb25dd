"""The exact ranking of a database for each query, by L2 distance of unit descriptors: what approximate search is
measured against, and what the field's evaluators use."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ParameterError
from retrieval.vectors.faiss_library import BLAS_FROM_QUERIES, faiss_module

Int64Array = NDArray[np.int64]
Float32Array = NDArray[np.float32]

# faiss itself cuts the queries of one call into blocks of 4096. Blocks that begin where its own begin, and no short
# last one, give the same bits as one call over all queries.
_FAISS_BLOCK = 4096


def exact_ranking(
    database: Float32Array,
    queries: Float32Array,
    k: int,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[Int64Array, Float32Array]:
    """Rank the database for every query by exhaustive search (faiss ``IndexFlatL2``).

    On unit vectors the L2 order is the cosine order: ‖a − b‖² = 2 − 2 cos.

    Args:
        database: (N, D) float32, unit rows.
        queries: (Nq, D) float32, unit rows.
        k: how many matches per query.
        on_progress: called with the number of queries done since the last call.

    Returns:
        rows: (Nq, k) int64, best first, padded with -1 when the database has fewer than k images.
        scores: (Nq, k) float32 cosine, -inf where padded.

    Raises:
        ParameterError: k below 1, or descriptors of different lengths.
        MissingExtraError: FAISS is not installed.
    """
    if k < 1:
        raise ParameterError(f"k is {k}, below 1", remedy="Ask for at least one match")
    if database.ndim != 2 or queries.ndim != 2 or database.shape[1] != queries.shape[1]:
        raise ParameterError(
            f"descriptors of the database {database.shape} and of the queries {queries.shape} do not fit together",
            remedy="Describe both with the same bundle",
        )
    faiss = faiss_module()
    faiss.cvar.distance_compute_blas_threshold = BLAS_FROM_QUERIES * database.shape[1]
    index = faiss.IndexFlatL2(database.shape[1])
    index.add(np.ascontiguousarray(database, np.float32))
    rows = np.empty((len(queries), k), np.int64)
    scores = np.empty((len(queries), k), np.float32)
    begin = 0
    while begin < len(queries):
        end = begin + _FAISS_BLOCK if len(queries) - begin >= 2 * _FAISS_BLOCK else len(queries)
        squared, rows[begin:end] = index.search(np.ascontiguousarray(queries[begin:end], np.float32), k)
        scores[begin:end] = np.where(rows[begin:end] < 0, -np.inf, 1.0 - squared / 2.0)
        if on_progress is not None:
            on_progress(end - begin)
        begin = end
    return rows, scores
