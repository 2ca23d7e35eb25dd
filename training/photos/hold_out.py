"""Set photos aside for validation, by place: no photo that is trained on shows a place that is validated on.

One end of the area is held out (its photos' main direction, by principal components), with a margin around it that is
neither trained on nor validated on. Random photos, or random small cells, would leave the same facades on both sides.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import SightfixError
from retrieval.geo import EARTH_RADIUS_M
from retrieval.references.reference import Reference
from training.geopair import PhotoTable

DEFAULT_SHARE: Final = 0.15

# Photos nearer than this to the held-out part are left out of training.
_MARGIN_M: Final = 25.0
_FEWEST: Final = 4


class HoldOutError(SightfixError):
    """Too few photos, or places, to set some aside for validation."""

    default_code = "hold_out"


@dataclass(frozen=True)
class ValidationPhotos:
    """What recall is measured on during training.

    Attributes:
        database: photos to find.
        queries: photos to localize.
        note: what a reader of the recall must know, or nothing.
    """

    database: tuple[Reference, ...]
    queries: tuple[Reference, ...]
    note: str = ""


@dataclass(frozen=True)
class HeldOut:
    """A reference database cut in two.

    Attributes:
        training: photos to train on.
        validation: photos to measure recall on.
        margin: how many photos are neither, because they lie too near to those held out.
    """

    training: tuple[Reference, ...]
    validation: ValidationPhotos
    margin: int


def hold_out(references: Sequence[Reference], share: float = DEFAULT_SHARE) -> HeldOut:
    """Hold out one end of the area.

    Whole sessions of the held-out photos become its queries and the others its database, about half each; with a single
    session every second photo is a query, which makes recall optimistic, and the note says so.

    Args:
        references: all photos, in the order of their reader.
        share: of the photos, to be held out.

    Raises:
        HoldOutError: a share outside (0, 0.5], or nothing would be left on one of the sides.
    """
    if not 0 < share <= 0.5:
        raise HoldOutError(f"a share of {share} cannot be held out", remedy="Give more than 0 and at most 0.5")
    points = PhotoTable.from_references(references).points
    along = _along_main_direction(points) * EARTH_RADIUS_M
    border = float(np.quantile(along, 1 - share)) if len(along) else 0.0
    held = along > border
    kept = along < border - _MARGIN_M
    if held.sum() < _FEWEST or kept.sum() < 2:
        raise HoldOutError(
            f"of {len(references)} photos {int(held.sum())} would be validated on and {int(kept.sum())} trained on: "
            "too few, or too close together",
            remedy="Give photos to validate on (--validation-database and --validation-queries), or --hold-out 0",
        )
    validation = split_by_session([references[int(row)] for row in np.flatnonzero(held)])
    training = tuple(references[int(row)] for row in np.flatnonzero(kept))
    return HeldOut(training, validation, len(references) - len(training) - int(held.sum()))


def split_by_session(references: Sequence[Reference]) -> ValidationPhotos:
    """Cut photos of one area into a database and queries: whole sessions, the largest into the database."""
    counts = Counter(reference.session for reference in references)
    if len(counts) == 1:
        return ValidationPhotos(
            tuple(references[::2]),
            tuple(references[1::2]),
            "validation photos are of one session: each query matches its neighbours in time, and recall is optimistic",
        )
    chosen: set[str | None] = set()
    for session, _ in sorted(counts.items(), key=lambda item: (-item[1], str(item[0]))):
        if sum(counts[name] for name in chosen) * 2 >= len(references) or len(chosen) == len(counts) - 1:
            break
        chosen.add(session)
    return ValidationPhotos(
        tuple(reference for reference in references if reference.session in chosen),
        tuple(reference for reference in references if reference.session not in chosen),
    )


def _along_main_direction(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 3) points → (N,) coordinates along the direction in which they spread most; its sign is fixed."""
    if len(points) < 2:
        return np.zeros(len(points))
    centred = points - points.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    main = directions[:, -1]
    return np.asarray(centred @ (main * np.sign(main[np.argmax(np.abs(main))])))
