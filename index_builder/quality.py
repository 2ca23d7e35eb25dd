"""How good an index is: what it returns of what exact search finds, and whether its references find themselves.

Recall is one number throughout: the share of the k best rows by exact score that a search returns. A returned row
counts when its exact score reaches that of the k-th best, so ties are no loss.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.describer import Describer, Descriptors
from retrieval.errors import ImageError, PlaceIndexError
from retrieval.images import DEFAULT_LIMITS, ImageLimits, RgbImage, fit_image, read_image
from retrieval.index.manifest import RecallReport
from retrieval.index.place_index import PlaceIndex
from retrieval.index.sampling import drawn, evenly_spaced
from retrieval.index.searchable import SearchablePlaceIndex
from retrieval.index.vectors.candidates import CandidateParameters, Candidates, StoredVectors
from retrieval.index.vectors.exact import ExactVectors
from retrieval.localize.evidence import StoredRows

RECALL_AT: Final = 10
DEFAULT_QUERIES: Final = 256

# A row whose exact score is this near to the last of the best is as good: fp16 rounds, and photos repeat.
_TIE: Final = 1e-4

# Two scores of the same photo nearer than this are a tie: fp16 storage moves a cosine by up to 5e-4.
_SELF_MATCH_TIE: Final = 1e-3
_SCAN_ROWS: Final = 4096
_TIMED: Final = 64
_MOST_GRAPH_EFFORT: Final = 2048
_RERANKS: Final = (1, 2, 5, 10, 20, 50, 100)
_STORED_TRIED: Final = 64
_LEAST_CANARIES: Final = 4

# Three standard errors of a recall@10 over 64 queries.
_CHANCE: Final = 0.03
_BATCH: Final = 8

# Of each side of a photo, what a held-out view keeps: near enough to be found, far enough to be another query.
_VIEW_SIDE: Final = 0.8

Search = Callable[[Descriptors, int], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Queries:
    """Queries, and what exact search finds for each.

    Attributes:
        descriptors: (Q, d) float32, unit rows as the index stores them.
        best: (Q, k) float32, the k best exact scores, falling.
        rows: (Q,) int64, where the queries are references, which: none may find itself. Else None.
    """

    descriptors: Descriptors
    best: NDArray[np.float32]
    rows: NDArray[np.int64] | None = None

    @classmethod
    def of(
        cls,
        stored: StoredRows,
        descriptors: Descriptors,
        k: int,
        rows: NDArray[np.int64] | None = None,
        check_stopped: Callable[[], None] = lambda: None,
    ) -> "Queries":
        """Compare queries with all stored descriptors.

        Args:
            stored: the descriptors, read a few thousand rows at a time.
            descriptors: (Q, d) float32.
            k: at most the number of rows, less one where the queries are references.
            rows: of the references that are queries.
            check_stopped: called between pieces; may raise.
        """
        best = np.full((len(descriptors), k), -np.inf, np.float32)
        for start in range(0, stored.count, _SCAN_ROWS):
            check_stopped()
            piece = np.arange(start, min(start + _SCAN_ROWS, stored.count), dtype=np.int64)
            scores = descriptors @ stored.descriptors(piece).T
            if rows is not None:
                own = np.flatnonzero((rows >= start) & (rows < start + len(piece)))
                scores[own, rows[own] - start] = -np.inf
            scores = np.concatenate([best, scores], axis=1)
            best = -np.partition(-scores, k - 1, axis=1)[:, :k]
        return cls(descriptors, -np.sort(-best, axis=1), rows)


def hold_out(stored: StoredRows, queries: int = DEFAULT_QUERIES) -> Queries:
    """Choose references as queries and find their best other rows exactly.

    Args:
        stored: at least two rows.
        queries: at most so many.
    """
    return _held_out(stored, drawn(stored.count, queries))


def hold_out_twice(stored: StoredRows, queries: int = DEFAULT_QUERIES) -> tuple[Queries, Queries]:
    """As `hold_out`, but queries to tune with, and others, that tuning does not see, to report.

    Args:
        stored: at least two rows.
        queries: at most so many of each.
    """
    rows = drawn(stored.count, 2 * queries)
    return _held_out(stored, rows[::2]), _held_out(stored, rows[1::2])


def recall_of(search: Search, stored: StoredRows, queries: Queries) -> tuple[float, float]:
    """What a search returns of what exact search finds: recall@1 and recall@k, 0 to 1.

    Args:
        search: (Q, d) float32 and k → rows (Q, k) int64, -1 where there are fewer.
        stored: the descriptors.
        queries: and what exact search finds among them.
    """
    k = queries.best.shape[1]
    found = search(queries.descriptors, k if queries.rows is None else k + 1)
    scores = np.full((len(found), k), -np.inf, np.float32)
    for place, query in enumerate(queries.descriptors):
        rows = found[place][found[place] >= 0]
        if queries.rows is not None:
            rows = rows[rows != queries.rows[place]]
        rows = np.unique(rows[:k])
        scores[place, : len(rows)] = np.sort(stored.descriptors(rows) @ query)[::-1] if len(rows) else -np.inf
    # The i-th best that was found stands for the i-th best there is if it scores as high as the last of them.
    at_k = (scores >= queries.best[:, -1:] - _TIE).mean()
    return float((scores[:, 0] >= queries.best[:, 0] - _TIE).mean()), float(at_k)


def measure(search: Search, stored: StoredRows, queries: Queries, wanted: float = 0.0) -> RecallReport:
    """Recall, and the time of single queries; `wanted` is only written down. See `recall_of`."""
    at_1, at_10 = recall_of(search, stored, queries)
    times = []
    for query in queries.descriptors[:_TIMED]:
        started = time.perf_counter()
        search(query[None], queries.best.shape[1])
        times.append(time.perf_counter() - started)
    milliseconds = float(np.median(times)) * 1e3
    return RecallReport(
        wanted=wanted, at_1=at_1, at_10=at_10, queries=len(queries.descriptors), milliseconds=milliseconds
    )


def measure_vectors(vectors: StoredVectors, queries: Queries, wanted: float = 0.0) -> RecallReport:
    """As `measure`, of candidates and the exact vectors beside them."""
    return measure(lambda descriptors, k: vectors.search(descriptors, k)[0], vectors.exact, queries, wanted)


def tune(
    vectors: StoredVectors, queries: Queries, target: float, others: Queries | None = None
) -> tuple[CandidateParameters, RecallReport]:
    """The least effort, and then the fewest candidates, whose recall@10 reaches the target.

    Both are sought by doubling: effort is what costs most, so it is settled first, with many candidates.

    Args:
        vectors: with candidates.
        queries: to tune with.
        target: recall@10, 0 to 1.
        others: queries that must agree. The least effort that is enough for some queries is chosen by what they happen
            to need, so their recall says a little too much; where there are others the report is theirs.

    Returns:
        the parameters to search with, and what they give: less than the target where nothing reaches it.
    """
    assert vectors.candidates is not None, "there is nothing to tune in exact search"
    candidates, first = vectors.candidates, vectors.candidates.parameters
    reranks = [first.rerank] if first.type in ("ivf", "hnsw") else [many for many in _RERANKS if many >= first.rerank]
    asked = [queries] if others is None else [queries, others]

    def first_that_reaches(choices: list[CandidateParameters]) -> tuple[CandidateParameters, RecallReport]:
        return _first_that_reaches(vectors.exact, candidates, asked, choices, target)

    efforts = [first.model_copy(update={"effort": effort, "rerank": reranks[-1]}) for effort in _efforts(first)]
    best, report = first_that_reaches(efforts)
    if report.at_10 < target or len(reranks) == 1:
        return best, report
    return first_that_reaches([best.model_copy(update={"rerank": many}) for many in reranks])


@dataclass(frozen=True, slots=True)
class QualitySettings:
    """What a version must reach to be published.

    Attributes:
        canaries: references that are looked for again, spread evenly over the index.
        one_in: of a small index only one reference in so many is looked for, yet four.
        min_self_match: the share of them that must find themselves first.
        recall_at: k of the recall.
        min_recall: of the k best by exact search, the share that an exact index must return; of an approximate one it
            is what it was tuned to, less what so few queries may miss by chance.
    """

    canaries: int = 64
    one_in: int = 1
    min_self_match: float = 0.95
    recall_at: int = 10
    min_recall: float = 0.98


@dataclass(frozen=True, slots=True)
class QualityReport:
    """What the quality check measured.

    Attributes:
        canaries: references whose photos were read and described again.
        unreadable_canaries: references that could not be, because their photos are gone or damaged.
        self_matches: canaries that found themselves first, or with the same score as the first.
        held_out_queries: queries that are no references.
        recall: of the index against exact search on them, at `recall_at`.
        recall_at: k.
    """

    canaries: int
    unreadable_canaries: int
    self_matches: int
    held_out_queries: int
    recall: float
    recall_at: int


def check_stored(index: SearchablePlaceIndex) -> None:
    """Search an index for some of its own stored descriptors: each must score 1 with itself.

    Raises:
        PlaceIndexError: it does not find them (``canary_failed``).
    """
    some = evenly_spaced(index.count, _STORED_TRIED)
    descriptors = index.descriptors(some)
    found = index.search_whitened(descriptors, 1)
    own_scores = (descriptors * descriptors).sum(axis=1)
    missed = int((found.scores[:, 0] < own_scores - _SELF_MATCH_TIE).sum())
    # An approximate search may miss one; by how many, the recall says.
    allowed = 0 if index.searches_exactly else len(some) // 10
    if missed > allowed or not np.all(np.abs(own_scores - 1.0) < 1e-2):
        raise PlaceIndexError(
            "the written index does not find its own references; nothing was published",
            where=index.where,
            remedy="Check the disk and the memory of this machine, then build again",
            code="canary_failed",
        )


def check_photos(
    index: PlaceIndex,
    describer: Describer,
    settings: QualitySettings | None = None,
    limits: ImageLimits = DEFAULT_LIMITS,
    check_stopped: Callable[[], None] = lambda: None,
) -> QualityReport:
    """Search an index for photos of its references, as a server would, and measure its recall.

    Args:
        index: opened as it was written.
        describer: of the bundle that described it.
        settings: what it must reach.
        limits: of encoded photos.
        check_stopped: called between batches; may raise.

    Raises:
        PlaceIndexError: it does not reach what it must (``gate_failed``).
        ModelIndexMismatchError: another bundle.
    """
    settings = settings or QualitySettings()
    index.check_bundle(describer.bundle)
    canaries = max(_LEAST_CANARIES, min(settings.canaries, index.count // settings.one_in))
    sample = evenly_spaced(index.count, canaries)
    rows, photos = list[int](), list[RgbImage]()
    for row, reference in zip(sample.tolist(), index.references(sample), strict=True):
        check_stopped()
        try:
            photos.append(read_image(reference.path, describer.bundle.preprocessing, limits))
        except ImageError:
            continue
        rows.append(row)
    lost = _not_found(index, np.array(rows, np.int64), _describe(describer, photos, check_stopped))
    views = _held_out_views(index, describer, photos, sample, check_stopped)
    k = min(settings.recall_at, index.count)
    queries = Queries.of(index, views, k, check_stopped=check_stopped)
    report = QualityReport(
        canaries=len(rows),
        unreadable_canaries=len(sample) - len(rows),
        self_matches=len(rows) - len(lost),
        held_out_queries=len(views),
        recall=recall_of(lambda some, k: index.search_whitened(some, k).rows, index, queries)[1],
        recall_at=k,
    )
    _judge(index, report, lost, settings)
    return report


def _held_out(stored: StoredRows, rows: NDArray[np.int64]) -> Queries:
    return Queries.of(stored, stored.descriptors(rows), min(RECALL_AT, stored.count - 1), rows)


def _efforts(first: CandidateParameters) -> list[int]:
    most = _MOST_GRAPH_EFFORT if first.lists is None else first.lists
    efforts = [16 if first.lists is None else 1]
    while efforts[-1] < most:
        efforts.append(min(most, efforts[-1] * 2))
    return efforts


def _first_that_reaches(
    exact: ExactVectors, candidates: Candidates, asked: list[Queries], choices: list[CandidateParameters], target: float
) -> tuple[CandidateParameters, RecallReport]:
    """The first choice that is enough for all that is asked, with the report of the last of them."""
    tried: list[tuple[CandidateParameters, RecallReport]] = []
    for parameters in choices:
        vectors = StoredVectors(exact, candidates.with_parameters(parameters))
        for queries in asked:
            report = measure_vectors(vectors, queries, target)
            if report.at_10 < target:
                tried.append((parameters, report))
                break
        else:
            return parameters, report
    return max(tried, key=lambda one: one[1].at_10)


def _describe(describer: Describer, photos: Sequence[RgbImage], check_stopped: Callable[[], None]) -> Descriptors:
    pieces = [np.empty((0, describer.bundle.descriptor_dim), np.float32)]
    for start in range(0, len(photos), _BATCH):
        check_stopped()
        pieces.append(describer.describe(photos[start : start + _BATCH]))
    return np.concatenate(pieces)


def _not_found(index: PlaceIndex, rows: NDArray[np.int64], descriptors: Descriptors) -> list[str]:
    """The ids of the rows that are not first for their own photos; the same photo twice is a tie, and no loss."""
    if not len(rows):
        return []
    descriptors = index.whitened(descriptors)
    best = index.search_whitened(descriptors, 1).scores[:, 0]
    own = (index.descriptors(rows) * descriptors).sum(axis=1)
    lost = rows[own < best - _SELF_MATCH_TIE]
    return [reference.id for reference in index.references(lost)]


def _held_out_views(
    index: PlaceIndex,
    describer: Describer,
    photos: Sequence[RgbImage],
    sample: NDArray[np.int64],
    check_stopped: Callable[[], None],
) -> Descriptors:
    """Queries that are no references, (Q, d) float32 unit rows as the index stores them.

    The middle of each photo, described as a photo of its own. Where no photo can be read: the mean of each sampled
    descriptor and the next one's.
    """
    if photos:
        return index.whitened(_describe(describer, [_middle(photo, describer) for photo in photos], check_stopped))
    stored = index.descriptors(sample)
    between = stored + np.roll(stored, 1, axis=0)
    unit: Descriptors = between / np.maximum(np.linalg.norm(between, axis=1, keepdims=True), 1e-12)
    return unit


def _middle(photo: RgbImage, describer: Describer) -> RgbImage:
    height, width = (round(side * _VIEW_SIDE) for side in photo.shape[:2])
    top, left = (photo.shape[0] - height) // 2, (photo.shape[1] - width) // 2
    return fit_image(photo[top : top + height, left : left + width], describer.bundle.preprocessing)


def _judge(index: PlaceIndex, report: QualityReport, lost: Sequence[str], settings: QualitySettings) -> None:
    if report.self_matches < settings.min_self_match * report.canaries:
        raise PlaceIndexError(
            f"{len(lost)} of {report.canaries} references do not find themselves first, {lost[0]!r} for one; "
            "nothing was published",
            where=str(index.folder),
            remedy="Their photos may have changed since they were described: describe everything again (kind full)",
            code="gate_failed",
        )
    tuned = index.manifest.recall
    wanted = settings.min_recall if tuned is None else min(settings.min_recall, tuned.wanted - _CHANCE)
    if report.recall < wanted:
        raise PlaceIndexError(
            f"the index returns {report.recall:.1%} of what exact search finds, {wanted:.1%} are wanted; "
            "nothing was published",
            where=str(index.folder),
            remedy="Build it again; if it stays so, ask for more recall, or for an exact index",
            code="gate_failed",
        )
