"""Photos in an export: decoded as the bundle decodes them, described in several ways, and recall measured on them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle import RecallChange
from retrieval.bundle.exportable import Describe
from retrieval.evaluation import Bootstrap, Protocol, exact_ranking, first_hits
from retrieval.evaluation.eval_set import EvalSet, Truth
from retrieval.images import Preprocessing, RgbImage, read_image
from retrieval.index.sampling import evenly_spaced
from retrieval.machine import read_ahead
from retrieval.references.reference import Reference

_BATCH: Final = 32
# Metres within which a match is right.
_RADIUS_M: Final = 25.0
# The name of the model without the step, among the models that are compared.
_BEFORE: Final = "before"


def read_photos(references: Sequence[Reference], preprocessing: Preprocessing) -> Iterator[NDArray[np.uint8]]:
    """Decode photos in order, in bounded threads.

    Args:
        references: the photos.
        preprocessing: of the bundle.

    Yields:
        (n, H, W, 3) uint8 RGB, n up to 32.

    Raises:
        ImageError: a photo cannot be read; it is named.
    """

    def read(reference: Reference) -> RgbImage:
        return read_image(reference.path, preprocessing)

    photos = read_ahead(read, references, ahead=2 * _BATCH)
    while batch := list(islice(photos, _BATCH)):
        yield np.stack(batch)


def describe_photos(
    references: Sequence[Reference],
    preprocessing: Preprocessing,
    describers: Mapping[str, Describe],
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Describe photos in several ways, each decoded once.

    Args:
        references: at least one photo.
        preprocessing: that all describers share.
        describers: by name.
        on_progress: called with the number of photos done since the last call.

    Returns:
        (N, D) float32 by name.

    Raises:
        ImageError: a photo cannot be read; it is named.
    """
    described: dict[str, list[NDArray[np.float32]]] = {name: [] for name in describers}
    for images in read_photos(references, preprocessing):
        for name, describe in describers.items():
            described[name].append(describe(images))
        if on_progress is not None:
            on_progress(len(images))
    return {name: np.concatenate(parts) for name, parts in described.items()}


def evenly(references: Sequence[Reference], count: int) -> list[Reference]:
    """At most `count` of the photos, evenly taken, so that every walk and every corner has its share."""
    return [references[row] for row in evenly_spaced(len(references), count)]


def recall_changes(
    eval_sets: Sequence[EvalSet],
    preprocessing: Preprocessing,
    before: Describe,
    after: Mapping[str, Describe],
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, tuple[RecallChange, ...]]:
    """Measure recall@1 with and without a step; database and queries are both described with it.

    Args:
        eval_sets: photos to measure on.
        preprocessing: that all describers share.
        before: the model without the step.
        after: models with it, by name.
        on_progress: called with the number of photos described since.

    Returns:
        one change per evaluation set, by name of `after`.

    Raises:
        ParameterError: an evaluation set without a solvable query.
        ImageError: a photo cannot be read.
    """
    changes: dict[str, list[RecallChange]] = {name: [] for name in after}
    for photos in eval_sets:
        truth = Truth.of(photos, Protocol(radii_m=(_RADIUS_M,), recall_at=(1,)))
        describers = {_BEFORE: before, **after}
        database = describe_photos(photos.database, preprocessing, describers, on_progress)
        queries = describe_photos(photos.queries, preprocessing, describers, on_progress)
        hits = {name: _first_right(database[name], queries[name], truth) for name in describers}
        for name in after:
            changes[name].append(_change(photos.name, truth, hits[_BEFORE], hits[name]))
    return {name: tuple(found) for name, found in changes.items()}


def _first_right(database: NDArray[np.float32], queries: NDArray[np.float32], truth: Truth) -> NDArray[np.float64]:
    """(Qc,) 1 where the best match of a counted query is right, else 0."""
    rows, _ = exact_ranking(database, queries, 1)
    right = first_hits(truth.ground, rows, _RADIUS_M) == 0
    return np.asarray(right[truth.counted[0]], np.float64)


def _change(name: str, truth: Truth, before: NDArray[np.float64], after: NDArray[np.float64]) -> RecallChange:
    difference = after - before
    low, high = Bootstrap().mean_interval(difference[:, None], truth.groups[truth.counted[0]])[:, 0]
    return RecallChange(
        evaluation_set=name,
        radius_m=_RADIUS_M,
        queries=len(difference),
        chance=float(truth.chance(0, [1])[0]),
        before=float(before.mean()),
        after=float(after.mean()),
        change=float(difference.mean()),
        low=float(low),
        high=float(high),
    )
