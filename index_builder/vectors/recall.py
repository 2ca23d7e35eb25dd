"""How good an approximate index is against exact search, and the least effort that makes it good enough."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.describer import Descriptors
from retrieval.place_index_manifest import RecallReport
from retrieval.vectors.candidates import CandidateParameters, Candidates
from retrieval.vectors.exact import ExactVectors
from retrieval.vectors.stored import StoredVectors

Search = Callable[[Descriptors, int], NDArray[np.int64]]

RECALL_AT: Final = 10
DEFAULT_QUERIES: Final = 256

# A row whose exact score is this near to the last of the best is as good: fp16 rounds, and photos repeat.
_TIE: Final = 1e-4
_TIMED: Final = 64
_MOST_GRAPH_EFFORT: Final = 2048
_RERANKS: Final = (1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Queries, and what exact search finds for each.

    Attributes:
        rows: (Q,) int64, the references that are asked for; none may find itself.
        descriptors: (Q, d) float32, theirs as stored.
        least: (Q, k) float32, scores of the k best other rows, falling.
    """

    rows: NDArray[np.int64]
    descriptors: Descriptors
    best: NDArray[np.float32]


def hold_out(exact: ExactVectors, queries: int = DEFAULT_QUERIES, seed: int = 0) -> HeldOut:
    """Choose references as queries and find their best other rows exactly.

    Args:
        exact: at least two rows.
        queries: at most so many.
        seed: of the choice.
    """
    return _asked_for(exact, _drawn(exact.count, queries, seed))


def hold_out_twice(exact: ExactVectors, queries: int = DEFAULT_QUERIES, seed: int = 0) -> tuple[HeldOut, HeldOut]:
    """As `hold_out`, but queries to tune with, and others, that tuning does not see, to report.

    Args:
        exact: at least two rows.
        queries: at most so many of each.
        seed: of the choice.
    """
    rows = _drawn(exact.count, 2 * queries, seed)
    return _asked_for(exact, rows[::2]), _asked_for(exact, rows[1::2])


def _drawn(count: int, queries: int, seed: int) -> NDArray[np.int64]:
    drawn = np.random.default_rng(seed).choice(count, min(queries, count), replace=False)
    return np.asarray(np.sort(drawn), np.int64)


def _asked_for(exact: ExactVectors, rows: NDArray[np.int64]) -> HeldOut:
    descriptors = exact.descriptors(rows)
    k = min(RECALL_AT, exact.count - 1)
    found, scores = exact.search(descriptors, k + 1)
    return HeldOut(rows, descriptors, _without_self(found, scores, rows)[1][:, :k])


def measure(vectors: StoredVectors, held_out: HeldOut, wanted: float = 0.0) -> RecallReport:
    """Recall@1 and @10 of the other rows, and the time of single queries; `wanted` is only written down."""
    return recall_of(lambda queries, k: vectors.search(queries, k)[0], vectors.exact, held_out, wanted)


def recall_of(search: Search, exact: ExactVectors, held_out: HeldOut, wanted: float = 0.0) -> RecallReport:
    """As `measure`, of any search of the same rows: one in another engine, for example.

    Args:
        search: (Q, d) float32 and k → rows (Q, k) int64, -1 where there are fewer.
        exact: the descriptors.
        held_out: chosen from them.
        wanted: only written down.
    """
    k = held_out.best.shape[1]
    found = search(held_out.descriptors, k + 1)
    found, _ = _without_self(found, np.zeros(found.shape, np.float32), held_out.rows)
    right, first = np.zeros((len(held_out.rows), k), bool), np.zeros(len(held_out.rows), bool)
    for place, query in enumerate(held_out.descriptors):
        rows = found[place, :k]
        there = np.unique(rows[rows >= 0])
        scores = np.sort(exact.descriptors(there) @ query)[::-1] if len(there) else np.empty(0, np.float32)
        # The i-th best that was found stands for the i-th best there is if it scores as high as the last of them.
        right[place, : len(scores)] = scores >= held_out.best[place, -1] - _TIE
        first[place] = len(scores) > 0 and scores[0] >= held_out.best[place, 0] - _TIE
    return RecallReport(
        wanted=wanted,
        at_1=float(first.mean()),
        at_10=float(right.mean()),
        queries=len(held_out.rows),
        milliseconds=_median_ms(search, held_out.descriptors[:_TIMED], k),
    )


def tune(
    vectors: StoredVectors, held_out: HeldOut, target: float, others: HeldOut | None = None
) -> tuple[CandidateParameters, RecallReport]:
    """The least effort, and then the fewest candidates, whose recall@10 reaches the target.

    Both are sought by doubling: effort is what costs most, so it is settled first, with many candidates.

    Args:
        vectors: with candidates.
        held_out: the queries.
        target: recall@10, 0 to 1.
        others: queries that must agree. The least effort that is enough for some queries is chosen by what they happen
            to need, so their recall says a little too much; where there are others the report is theirs.

    Returns:
        the parameters to search with, and what they give: less than the target where nothing reaches it.
    """
    assert vectors.candidates is not None, "there is nothing to tune in exact search"
    candidates, first = vectors.candidates, vectors.candidates.parameters
    reranks = [first.rerank] if first.type in ("ivf", "hnsw") else [many for many in _RERANKS if many >= first.rerank]
    asked = [held_out] if others is None else [held_out, others]

    def first_that_reaches(choices: list[CandidateParameters]) -> tuple[CandidateParameters, RecallReport]:
        return _first_that_reaches(vectors.exact, candidates, asked, choices, target)

    efforts = [first.model_copy(update={"effort": effort, "rerank": reranks[-1]}) for effort in _efforts(first)]
    best, report = first_that_reaches(efforts)
    if report.at_10 < target or len(reranks) == 1:
        return best, report
    return first_that_reaches([best.model_copy(update={"rerank": many}) for many in reranks])


def _efforts(first: CandidateParameters) -> list[int]:
    most = _MOST_GRAPH_EFFORT if first.lists is None else first.lists
    efforts = [16 if first.lists is None else 1]
    while efforts[-1] < most:
        efforts.append(min(most, efforts[-1] * 2))
    return efforts


def _first_that_reaches(
    exact: ExactVectors,
    candidates: Candidates,
    asked: list[HeldOut],
    choices: list[CandidateParameters],
    target: float,
) -> tuple[CandidateParameters, RecallReport]:
    """The first choice that is enough for all that is asked, with the report of the last of them."""
    tried: list[tuple[CandidateParameters, RecallReport]] = []
    for parameters in choices:
        vectors = StoredVectors(exact, candidates.with_parameters(parameters))
        for held_out in asked:
            report = measure(vectors, held_out, target)
            if report.at_10 < target:
                tried.append((parameters, report))
                break
        else:
            return parameters, report
    return max(tried, key=lambda one: one[1].at_10)


def _without_self(
    found: NDArray[np.int64], scores: NDArray[np.float32], own: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows and scores (Q, k + 1) without the query's own row, which may stand anywhere or nowhere: (Q, k)."""
    k = found.shape[1] - 1
    # Own rows last, the order of the others as it was.
    order = np.argsort(found == own[:, None], axis=1, kind="stable")[:, :k]
    return np.take_along_axis(found, order, axis=1), np.take_along_axis(scores, order, axis=1)


def _median_ms(search: Search, queries: Descriptors, k: int) -> float:
    times = []
    for query in queries:
        started = time.perf_counter()
        search(query[None], k)
        times.append(time.perf_counter() - started)
    return float(np.median(times)) * 1e3
