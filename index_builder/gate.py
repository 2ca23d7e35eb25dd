"""The gate before publishing: the written version must find its own photos, and what exact search would find."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.describer import Describer, Descriptors
from retrieval.errors import ImageError, PlaceIndexError
from retrieval.images import DEFAULT_LIMITS, ImageLimits, RgbImage, fit_image, read_image
from retrieval.place_index import PlaceIndex

# Two scores nearer than this are a tie: fp16 storage moves a cosine by up to 5e-4.
_TIE: Final = 1e-3
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
    lost = rows[own < best - _TIE]
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
