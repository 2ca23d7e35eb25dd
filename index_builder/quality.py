"""How good an approximate index is against exact search, and the least effort that makes it good enough."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.describer import Describer, Descriptors
from retrieval.errors import ImageError, PlaceIndexError
from retrieval.images import DEFAULT_LIMITS, ImageLimits, RgbImage, fit_image, read_image
from retrieval.index.manifest import RecallReport
from retrieval.index.place_index import PlaceIndex
from retrieval.index.vectors.candidates import CandidateParameters, Candidates, StoredVectors
from retrieval.index.vectors.exact import ExactVectors

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


# The gate before publishing: the written version must find its own photos, and what exact search would find.

# Two scores nearer than this are a tie: fp16 storage moves a cosine by up to 5e-4.
_SELF_MATCH_TIE: Final = 1e-3

_EXACT_TIE: Final = 1e-4

_SCAN_ROWS: Final = 4096

# Three standard errors of a recall@10 over 64 queries.
_CHANCE: Final = 0.03

_BATCH: Final = 8

# Of each side of a photo, what a held-out view keeps: near enough to be found, far enough to be another query.
_VIEW_SIDE: Final = 0.8


@dataclass(frozen=True, slots=True)
class GateSettings:
    """What a version must reach.

    Attributes:
        canaries: references that are looked for again, spread evenly over the index.
        min_self_match: the share of them that must find themselves first.
        recall_at: k of the recall.
        min_recall: of the k best by exact search, the share that an exact index must return; of an approximate one it
            is what it was tuned to, less what so few queries may miss by chance.
        limits: of encoded photos.
    """

    canaries: int = 64
    min_self_match: float = 0.95
    recall_at: int = 10
    min_recall: float = 0.98
    limits: ImageLimits = DEFAULT_LIMITS


@dataclass(frozen=True, slots=True)
class GateReport:
    """What was measured.

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


def check_version(
    folder: Path, describer: Describer, settings: GateSettings | None = None, go_on: Callable[[], None] = lambda: None
) -> GateReport:
    """Open a written version and measure it through the search that a server uses.

    Args:
        folder: of the version.
        describer: of the bundle that described it.
        settings: what it must reach.
        go_on: called between batches; may raise.

    Raises:
        PlaceIndexError: it cannot be opened, or does not reach what it must (``gate_failed``).
        ModelIndexMismatchError: another bundle.
    """
    settings = settings or GateSettings()
    index = PlaceIndex.open(folder)
    index.check_bundle(describer.bundle)
    sample = np.unique(np.linspace(0, index.count - 1, min(settings.canaries, index.count)).astype(np.int64))
    rows, photos = _read_photos(index, sample, describer, settings.limits, go_on)
    lost = _not_found(index, rows, _describe(describer, photos, go_on))
    queries = _held_out_queries(index, describer, photos, sample, go_on)
    k = min(settings.recall_at, index.count)
    report = GateReport(
        canaries=len(rows),
        unreadable_canaries=len(sample) - len(rows),
        self_matches=len(rows) - len(lost),
        held_out_queries=len(queries),
        recall=recall_against_exact(index, queries, k, go_on),
        recall_at=k,
    )
    _judge(index, report, lost, settings)
    return report


def recall_against_exact(
    index: PlaceIndex, queries: Descriptors, k: int, go_on: Callable[[], None] = lambda: None
) -> float:
    """The share of the k best rows by exact search that the index returns.

    A returned row counts when its exact score reaches that of the k-th best, so ties are no loss.

    Args:
        index: the index.
        queries: (Q, d) float32 unit rows as the index stores them, Q at least 1.
        k: at most the number of rows.
        go_on: called between pieces; may raise.
    """
    threshold = _exact_scores(index, queries, k, go_on)[:, -1]
    found = index.search_whitened(queries, k).rows
    right = 0
    for query, rows, least in zip(queries, found, threshold, strict=True):
        there = np.unique(rows[rows >= 0])
        right += int((index.descriptors(there) @ query >= least - _EXACT_TIE).sum()) if len(there) else 0
    return right / (len(queries) * k)


def _exact_scores(index: PlaceIndex, queries: Descriptors, k: int, go_on: Callable[[], None]) -> NDArray[np.float32]:
    """The k best scores of each query over all stored descriptors, (Q, k) float32, falling."""
    best = np.full((len(queries), k), -np.inf, np.float32)
    for start in range(0, index.count, _SCAN_ROWS):
        go_on()
        rows = np.arange(start, min(start + _SCAN_ROWS, index.count), dtype=np.int64)
        scores = np.concatenate([best, queries @ index.descriptors(rows).T], axis=1)
        best = -np.partition(-scores, k - 1, axis=1)[:, :k]
    return -np.sort(-best, axis=1)


def _read_photos(
    index: PlaceIndex, sample: NDArray[np.int64], describer: Describer, limits: ImageLimits, go_on: Callable[[], None]
) -> tuple[NDArray[np.int64], list[RgbImage]]:
    """Those rows of the sample whose photos can be read, and the photos."""
    rows, photos = [], []
    for row, reference in zip(sample, index.references(sample), strict=True):
        go_on()
        try:
            photos.append(read_image(reference.path, describer.bundle.preprocessing, limits))
        except ImageError:
            continue
        rows.append(row)
    return np.array(rows, np.int64), photos


def _describe(describer: Describer, photos: Sequence[RgbImage], go_on: Callable[[], None]) -> Descriptors:
    pieces = [np.empty((0, describer.bundle.descriptor_dim), np.float32)]
    for start in range(0, len(photos), _BATCH):
        go_on()
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


def _held_out_queries(
    index: PlaceIndex,
    describer: Describer,
    photos: Sequence[RgbImage],
    sample: NDArray[np.int64],
    go_on: Callable[[], None],
) -> Descriptors:
    """Queries that are no references, (Q, d) float32 unit rows as the index stores them.

    The middle of each photo, described as a photo of its own. Where no photo can be read: the mean of each sampled
    descriptor and the next one's.
    """
    if photos:
        return index.whitened(_describe(describer, [_middle(photo, describer) for photo in photos], go_on))
    stored = index.descriptors(sample)
    between = stored + np.roll(stored, 1, axis=0)
    unit: Descriptors = between / np.maximum(np.linalg.norm(between, axis=1, keepdims=True), 1e-12)
    return unit


def _middle(photo: RgbImage, describer: Describer) -> RgbImage:
    height, width = (round(side * _VIEW_SIDE) for side in photo.shape[:2])
    top, left = (photo.shape[0] - height) // 2, (photo.shape[1] - width) // 2
    return fit_image(photo[top : top + height, left : left + width], describer.bundle.preprocessing)


def _judge(index: PlaceIndex, report: GateReport, lost: Sequence[str], settings: GateSettings) -> None:
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
