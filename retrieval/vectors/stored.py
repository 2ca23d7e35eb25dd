"""Stored descriptors with or without a quick first look: one way to search them."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.describer import Descriptors
from retrieval.vectors.candidates import Candidates
from retrieval.vectors.exact import ExactVectors, empty_result
from retrieval.vectors.index_types import IndexType

# Inside a geo prior of more rows than this, candidates are quicker than an exact scan.
EXACT_PRIOR_ROWS: Final = 100_000

# Their codes are as fine as stored descriptors; the others' scores are never shown to anyone.
_EXACT_SCORES: Final = frozenset({"ivf", "hnsw"})


class StoredVectors:
    """The descriptors of a place index. Thread-safe for reading.

    Args:
        exact: every descriptor, in the order of the rows.
        candidates: names the rows that are worth a closer look; None: all are looked at.
    """

    def __init__(self, exact: ExactVectors, candidates: Candidates | None = None) -> None:
        self.exact = exact
        self.candidates = candidates

    @property
    def type(self) -> IndexType:
        """The type of index."""
        return self.candidates.parameters.type if self.candidates else "exact"

    def search(
        self, queries: Descriptors, k: int, *, effort: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k best rows of each query, best first, as good as the index's type is.

        Args:
            queries: (Q, D) float32.
            k: at least 1.
            effort: of the candidates, instead of what the index was tuned to.

        Returns:
            rows (Q, k) int64, scores (Q, k) float32, filled with -1 and -inf.
        """
        if self.candidates is None:
            return self.exact.search(queries, k)
        return self._candidates(self.candidates, queries, k, effort, None)

    def search_rows(
        self, query: Descriptors, k: int, rows: NDArray[np.int64], *, effort: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k best of some rows for one query.

        Exact, unless the rows are more than `EXACT_PRIOR_ROWS` and the index is approximate: then candidates are taken
        among them, each is checked to be one of them, and where fewer than k remain all rows are scanned after all. The
        effort grows as the share of the rows shrinks, so that as many of them are seen as without a prior; where that
        would cost more than scanning them, they are scanned.

        Args:
            query: (D,) float32.
            k: at least 1.
            rows: (R,) int64, rising.
            effort: of the candidates, instead of what the index was tuned to.

        Returns:
            rows (k,) int64, scores (k,) float32, filled with -1 and -inf.
        """
        if self.candidates is None or len(rows) <= EXACT_PRIOR_ROWS:
            return self.exact.search_rows(query, k, rows)
        parameters = self.candidates.parameters
        wider = -(-(effort or parameters.effort) * self.exact.count // len(rows))
        if wider >= (parameters.lists or len(rows) // (parameters.neighbours or 1)):
            return self.exact.search_rows(query, k, rows)
        among = np.zeros(self.exact.count, bool)
        among[rows] = True
        found, scores = (one[0] for one in self._candidates(self.candidates, query[None], k, wider, among))
        inside = (found >= 0) & among[found]
        if inside.sum() < min(k, len(rows)):
            return self.exact.search_rows(query, k, rows)
        return found, scores

    def _candidates(
        self,
        candidates: Candidates,
        queries: Descriptors,
        k: int,
        effort: int | None,
        among: NDArray[np.bool_] | None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        wanted = k * candidates.parameters.rerank
        found, found_scores = candidates.search(queries, wanted, effort=effort, among=among)
        if candidates.parameters.rerank == 1 and candidates.parameters.type in _EXACT_SCORES:
            return found, found_scores
        rows, scores = empty_result(len(queries), k)
        for place, query in enumerate(queries):
            # Rising, so that the rows' codes are copied from front to back.
            some = np.sort(found[place][found[place] >= 0])
            rows[place], scores[place] = self.exact.search_rows(query, k, some)
        return rows, scores
