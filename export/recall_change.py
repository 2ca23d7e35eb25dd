"""What a step of the export does to recall, on the same queries, with an interval."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from export.photos import describe_photos
from export.source import Describe
from retrieval.bundle import RecallChange
from retrieval.evaluation import Bootstrap, Protocol, exact_ranking, first_hits
from retrieval.evaluation.eval_set import EvalSet, Truth
from retrieval.images import Preprocessing

BEFORE = "before"


def recall_changes(
    eval_sets: Sequence[EvalSet],
    preprocessing: Preprocessing,
    before: Describe,
    after: Mapping[str, Describe],
    *,
    radius_m: float = 25.0,
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, tuple[RecallChange, ...]]:
    """Measure recall@1 with and without a step; database and queries are both described with it.

    Args:
        eval_sets: photos to measure on.
        preprocessing: that all describers share.
        before: the model without the step.
        after: models with it, by name.
        radius_m: metres within which a match is right.
        on_progress: called with the number of photos described since.

    Returns:
        one change per evaluation set, by name of `after`.

    Raises:
        ParameterError: an evaluation set without a solvable query.
        ImageError: a photo cannot be read.
    """
    changes: dict[str, list[RecallChange]] = {name: [] for name in after}
    for photos in eval_sets:
        truth = Truth.of(photos, Protocol(radii_m=(radius_m,), recall_at=(1,)))
        describers = {BEFORE: before, **after}
        database = describe_photos(photos.database, preprocessing, describers, on_progress)
        queries = describe_photos(photos.queries, preprocessing, describers, on_progress)
        hits = {name: _first_right(database[name], queries[name], truth) for name in describers}
        for name in after:
            changes[name].append(_change(photos.name, truth, hits[BEFORE], hits[name]))
    return {name: tuple(found) for name, found in changes.items()}


def _first_right(database: NDArray[np.float32], queries: NDArray[np.float32], truth: Truth) -> NDArray[np.float64]:
    """(Qc,) 1 where the best match of a counted query is right, else 0."""
    rows, _ = exact_ranking(database, queries, 1)
    right = first_hits(truth.ground, rows, truth.protocol.radii_m[0]) == 0
    return np.asarray(right[truth.counted[0]], np.float64)


def _change(name: str, truth: Truth, before: NDArray[np.float64], after: NDArray[np.float64]) -> RecallChange:
    difference = after - before
    low, high = Bootstrap().mean_interval(difference[:, None], truth.groups[truth.counted[0]])[:, 0]
    return RecallChange(
        evaluation_set=name,
        radius_m=truth.protocol.radii_m[0],
        queries=len(difference),
        chance=float(truth.chance(0, [1])[0]),
        before=float(before.mean()),
        after=float(after.mean()),
        change=float(difference.mean()),
        low=float(low),
        high=float(high),
    )
