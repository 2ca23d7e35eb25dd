"""Approximate search: a FAISS index that names candidates quickly, and the exact descriptors that decide among them.

Inverted lists (Sivic & Zisserman, ICCV 2003) look at some lists only; product quantisation (Jégou et al., PAMI 2011)
and its fast-scan form (André et al., VLDB 2015) compare short codes; HNSW (Malkov & Yashunin, PAMI 2020) walks a graph.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from retrieval.errors import ParameterError, PlaceIndexError, counted
from retrieval.index.vectors.exact import ExactVectors, empty_result
from retrieval.index.vectors.faiss_library import (
    faiss_module,
    read_faiss_index,
    set_up_search,
    set_up_training,
    write_faiss_index,
)

if TYPE_CHECKING:
    from retrieval.describer import Descriptors

ApproximateType = Literal["ivf", "ivf-int8", "ivf-pq", "ivf-pq-fast", "hnsw"]
IndexType = Literal["exact", "ivf", "ivf-int8", "ivf-pq", "ivf-pq-fast", "hnsw"]
WantedType = IndexType | Literal["auto"]
_GRAPH_BUILD_EFFORT: Final = 80
_LIST_TRAINING_ROUNDS: Final = 10

# Inside a geo prior of more rows than this, candidates are quicker than an exact scan.
EXACT_PRIOR_ROWS: Final = 100_000

INDEX_TYPES: Final[tuple[IndexType, ...]] = get_args(IndexType)

# Their codes are as fine as stored descriptors; the others' scores are never shown.
_EXACT_SCORES: Final = frozenset({"ivf", "hnsw"})

_CODES: Final[dict[ApproximateType, str]] = {
    "ivf": "SQfp16",
    "ivf-int8": "SQ8",
    # np: without polysemous training, which takes minutes and serves a search that is not used here.
    "ivf-pq": "PQ{code_parts}x8np",
    "ivf-pq-fast": "PQ{code_parts}x4fs",
    "hnsw": "SQfp16",
}

_CODE_VALUES: Final[dict[ApproximateType, int]] = {"ivf-pq": 256, "ivf-pq-fast": 16}


class CandidateParameters(BaseModel):
    """How the candidates are found; in the manifest of the place index.

    Attributes:
        type: of index.
        lists: how many inverted lists; None for hnsw.
        code_parts: numbers of a product quantisation code (a byte each for ivf-pq, half a byte for ivf-pq-fast).
        neighbours: edges of a node of the graph on each level; None for ivf.
        effort: lists that are looked at (ivf), or nodes that are kept in view (hnsw).
        rerank: candidates for each match asked for, the best of which by their stored descriptors are returned.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: ApproximateType
    lists: int | None = Field(default=None, ge=1)
    code_parts: int | None = Field(default=None, ge=1)
    neighbours: int | None = Field(default=None, ge=2)
    effort: int = Field(ge=1)
    rerank: int = Field(default=1, ge=1)

    @property
    def factory(self) -> str:
        """FAISS's own words for it, for `faiss.index_factory`."""
        codes = _CODES[self.type].format(code_parts=self.code_parts)
        return f"HNSW{self.neighbours}_{codes}" if self.type == "hnsw" else f"IVF{self.lists},{codes}"


class Candidates:
    """An opened index of candidates, whose rows are those of the place index. Thread-safe for reading.

    Args:
        index: of FAISS, as `CandidateParameters.factory` makes it.
        parameters: of it.
    """

    def __init__(self, index: Any, parameters: CandidateParameters) -> None:
        self._faiss = faiss_module()
        self.index = index
        self.parameters = parameters

    @classmethod
    def train(cls, parameters: CandidateParameters, sample: "Descriptors") -> "Candidates":
        """An index without rows, trained on a sample of the rows that will be added.

        Args:
            parameters: what to make.
            sample: (n, D) float32; lists are trained well on 30 to 256 rows each.

        Raises:
            ParameterError: fewer rows than lists, or codes that do not divide the descriptor.
        """
        faiss = faiss_module()
        dim = sample.shape[1]
        _check_trainable(parameters, len(sample), dim)
        index = faiss.index_factory(dim, parameters.factory, faiss.METRIC_INNER_PRODUCT)
        if parameters.type == "hnsw":
            index.hnsw.efConstruction = _GRAPH_BUILD_EFFORT
        else:
            index.cp.niter = _LIST_TRAINING_ROUNDS
            # The sample is what the caller chose; FAISS would draw its own of 256 rows a list.
            index.cp.max_points_per_centroid = len(sample)
            index.cp.min_points_per_centroid = 1
        set_up_training(faiss)
        index.train(np.ascontiguousarray(sample, np.float32))
        return cls(index, parameters)

    @classmethod
    def read(cls, path: Path, parameters: CandidateParameters, *, memory_map: bool = False) -> "Candidates":
        """Open a file that `write` made.

        Raises:
            PlaceIndexError: FAISS cannot read it, or it holds another type of index than the parameters say.
        """
        faiss = faiss_module()
        # HNSW jumps about in the whole of its file: paged in piece by piece it would be slow for a long time.
        index = read_faiss_index(path, memory_map=memory_map and parameters.type != "hnsw")
        wanted = {
            "ivf": faiss.IndexIVFScalarQuantizer,
            "ivf-int8": faiss.IndexIVFScalarQuantizer,
            "ivf-pq": faiss.IndexIVFPQ,
            "ivf-pq-fast": faiss.IndexIVFPQFastScan,
            "hnsw": faiss.IndexHNSWSQ,
        }[parameters.type]
        if not isinstance(index, wanted) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise PlaceIndexError(f"the candidates are not an index of type {parameters.type}", where=str(path))
        return cls(index, parameters)

    def with_parameters(self, parameters: CandidateParameters) -> "Candidates":
        """The same index, searched in another way."""
        return Candidates(self.index, parameters)

    def add(self, descriptors: "Descriptors") -> None:
        """Add (n, D) float32 unit rows on all cores; not while it is searched."""
        set_up_training(self._faiss)
        self.index.add(np.ascontiguousarray(descriptors, np.float32))

    def write(self, write: Callable[[bytes], int]) -> None:
        """Serialise through a file's write method, so that a full disk shows as the OSError it is."""
        write_faiss_index(self.index, write)

    @property
    def count(self) -> int:
        """Number of rows."""
        return int(self.index.ntotal)

    @property
    def dim(self) -> int:
        """Length of a descriptor."""
        return int(self.index.d)

    def search(
        self, queries: "Descriptors", k: int, *, effort: int | None = None, among: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k best rows that the index finds, best first by its own scores.

        Args:
            queries: (Q, D) float32.
            k: at least 1.
            effort: instead of the parameters' own.
            among: (N,) the rows that may be found, or None for all. Whether FAISS keeps to it is for the caller to
                check.

        Returns:
            rows (Q, k) int64, scores (Q, k) float32, filled with -1 and -inf.
        """
        rows, scores = empty_result(len(queries), k)
        found = min(k, self.count)
        if not len(queries):
            return rows, scores
        set_up_search(self._faiss, self.dim)
        settings = self._search_settings(found, effort or self.parameters.effort, among)
        queries = np.ascontiguousarray(queries, np.float32)
        scores[:, :found], rows[:, :found] = self.index.search(queries, found, params=settings)
        # FAISS fills up with the least float there is; and rows are padded alike everywhere in this project.
        scores[rows < 0] = -np.inf
        return rows, scores

    def _search_settings(self, k: int, effort: int, among: NDArray[np.bool_] | None) -> Any:
        """Settings of one call: the shared index is never changed."""
        selected: dict[str, Any] = {}
        if among is not None:
            bits = np.packbits(among, bitorder="little")
            selected["sel"] = self._faiss.IDSelectorBitmap(bits)
        if self.parameters.type == "hnsw":
            # A search narrower than k could not hold all matches that are asked for.
            return self._faiss.SearchParametersHNSW(efSearch=max(effort, k), **selected)
        return self._faiss.SearchParametersIVF(nprobe=min(effort, int(self.index.nlist)), **selected)


def code_parts_for(dim: int, numbers_each: int) -> int:
    """How many parts a product quantisation code can have: the most that divide `dim` into `numbers_each` or more."""
    return next(parts for parts in range(max(1, dim // numbers_each), 0, -1) if dim % parts == 0)


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
        self, queries: "Descriptors", k: int, *, effort: int | None = None
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
        self, query: "Descriptors", k: int, rows: NDArray[np.int64], *, effort: int | None = None
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
        queries: "Descriptors",
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


def _check_trainable(parameters: CandidateParameters, rows: int, dim: int) -> None:
    lists = parameters.lists
    if lists is not None and rows < lists:
        raise ParameterError(
            f"{counted(rows, 'reference is', 'references are')} too few for {counted(lists, 'list')}",
            remedy="Use fewer lists, or --type exact, which is fast with so few",
        )
    values = _CODE_VALUES.get(parameters.type, 0)
    if rows < values:
        raise ParameterError(
            f"{counted(rows, 'reference is', 'references are')} too few for codes of {values} values",
            remedy="Use --type exact, which is fast with so few",
        )
    if parameters.code_parts is not None and dim % parameters.code_parts:
        raise ParameterError(
            f"codes of {parameters.code_parts} parts do not divide a descriptor of {dim} numbers",
            remedy=f"Use a divisor of {dim}",
        )
