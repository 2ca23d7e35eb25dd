"""What is evaluated, how it is counted, and the exact ranking that approximate search is measured against."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ParameterError
from retrieval.evaluation.bootstrap import Bootstrap
from retrieval.evaluation.fixes import Fixes
from retrieval.evaluation.positions import Int64Array, Positions
from retrieval.evaluation.report import Convention, Grouping
from retrieval.index.vectors.faiss_library import BLAS_FROM_QUERIES, faiss_module

CONVENTIONS: tuple[Convention, ...] = ("solvable", "vpr-methods-evaluation")
GROUPINGS: tuple[Grouping, ...] = ("session", "place")
Float32Array = NDArray[np.float32]

# faiss itself cuts the queries of one call into blocks of 4096. Blocks that begin where its own begin, and no short
# last one, give the same bits as one call over all queries.
_FAISS_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class BeforeReranking:
    """What a ranking was before it was re-ranked.

    Attributes:
        rows: (Nq, K) int64, by score: the same matches in another order.
        top, min_inliers: see `RerankSettings`.
    """

    rows: Int64Array
    top: int
    min_inliers: int


@dataclass(frozen=True, slots=True)
class Ranked:
    """What is evaluated: queries, database, and the matches that were found.

    Attributes:
        database: N positions.
        queries: Nq positions.
        rows: (Nq, K) int64 database rows, best first, -1 where there is no match.
        fixes: one position fix per query, or None.
        sessions: the drive or walk of each query, for the intervals, or None.
        elsewhere: fixes of photos that were taken outside of the database's area, or None. Each one given is wrong.
        before: what was re-ranked, or None.
    """

    database: Positions
    queries: Positions
    rows: Int64Array
    fixes: Fixes | None = None
    sessions: Sequence[str | None] | None = None
    elsewhere: Fixes | None = None
    before: BeforeReranking | None = None


@dataclass(frozen=True, slots=True)
class Protocol:
    """How to count.

    Attributes:
        radii_m: a match within this distance is a true one, the border included.
        recall_at: the Ns.
        convention: ``solvable``: only queries with a true match in the database count, and their share is reported.
            ``vpr-methods-evaluation``: all queries count and metres are those of the plane or of UTM, as in
            https://github.com/gmberton/VPR-methods-evaluation (Berton et al., CVPR 2023).
        grouping: what the bootstrap draws; None: sessions where there are at least ten, else places.
        place_m: side of a place in metres.
        bootstrap: how intervals are drawn.

    Raises:
        ParameterError: an empty, negative or unknown value.
    """

    radii_m: tuple[float, ...] = (25.0,)
    recall_at: tuple[int, ...] = (1, 5, 10, 20)
    convention: Convention = "solvable"
    grouping: Grouping | None = None
    place_m: float = 25.0
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    def __post_init__(self) -> None:
        if not self.radii_m or not all(np.isfinite(r) and r > 0 for r in self.radii_m):
            raise ParameterError(
                f"radii {list(self.radii_m)} are not all above 0", remedy="Give metres, for example 25"
            )
        if not self.recall_at or min(self.recall_at) < 1:
            raise ParameterError(
                f"recall at {list(self.recall_at)} is not all ≥ 1", remedy="Give for example 1,5,10,20"
            )
        if self.convention not in CONVENTIONS:
            raise ParameterError(f"unknown convention {self.convention!r}", remedy=f"Choose {' or '.join(CONVENTIONS)}")
        if self.grouping is not None and self.grouping not in GROUPINGS:
            raise ParameterError(f"unknown grouping {self.grouping!r}", remedy=f"Choose {' or '.join(GROUPINGS)}")


def check_ranked(ranked: Ranked, protocol: Protocol) -> None:
    """Raise ParameterError unless the protocol can count this ranking."""
    count, size = len(ranked.queries), len(ranked.database)
    if count == 0 or size == 0:
        raise ParameterError(f"{count} queries and {size} database images: nothing to evaluate")
    rows = ranked.rows
    if rows.ndim != 2 or len(rows) != count or rows.shape[1] == 0 or not np.issubdtype(rows.dtype, np.integer):
        raise ParameterError(f"rows have shape {rows.shape} and type {rows.dtype}, not ({count}, K) int64")
    if rows.min() < -1 or rows.max() >= size:
        raise ParameterError(f"rows lie in [{rows.min()}, {rows.max()}], not in [-1, {size})")
    largest = max(protocol.recall_at)
    if rows.shape[1] < min(largest, size):
        raise ParameterError(
            f"recall@{largest} needs {min(largest, size)} matches per query, {rows.shape[1]} were ranked",
            remedy="Rank more matches, or ask for a smaller N",
        )
    if ranked.before is not None and ranked.before.rows.shape != rows.shape:
        raise ParameterError(f"{rows.shape} rows were {ranked.before.rows.shape} before they were re-ranked")
    if ranked.sessions is not None and len(ranked.sessions) != count:
        raise ParameterError(f"{len(ranked.sessions)} sessions for {count} queries")


def exact_ranking(
    database: Float32Array, queries: Float32Array, k: int, on_progress: Callable[[int], None] | None = None
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
