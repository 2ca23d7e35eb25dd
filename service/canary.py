"""The canary: does the index still find what is in it? A model and an index that do not fit answer nonsense quietly."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from retrieval.errors import ImageError, PlaceIndexError
from retrieval.images import ImageLimits, RgbImage, read_image
from retrieval.localizer import Localizer

# Photos asked at most before the stored descriptors must do: references need not be where they were indexed.
_PHOTOS_TRIED: Final = 8
# The same photo described on another provider, or in another precision, is a little off.
_MIN_SCORE: Final = 0.95
_SAME: Final = 0.01


@dataclass(frozen=True, slots=True)
class CanaryReport:
    """What the canary did.

    Attributes:
        reference_id: which reference it looked for.
        described: whether its photo was read and described anew; else its stored descriptor was searched.
        score: cosine of what was found.
    """

    reference_id: str
    described: bool
    score: float


@dataclass(frozen=True, slots=True)
class Canary:
    """What to look for, again and again: kept in memory, so that a photo changed on the disk later harms nobody.

    Attributes:
        row: of the reference in the index.
        image: its photo, or None when no photo can be read: its stored descriptor must do.
    """

    row: int
    image: RgbImage | None


def choose_canary(localizer: Localizer, limits: ImageLimits) -> Canary:
    """A reference whose photo can be read, if there is one.

    Args:
        localizer: whose model and index.
        limits: of encoded images.
    """
    index = localizer.place_index
    rows = np.unique(np.linspace(0, index.count - 1, _PHOTOS_TRIED).round().astype(np.int64))
    for row, reference in zip(rows, index.references(rows), strict=True):
        try:
            image = read_image(reference.path, localizer.describer.bundle.preprocessing, limits)
        except ImageError:
            continue
        return Canary(int(row), image)
    return Canary(int(rows[0]), None)


def sing(localizer: Localizer, canary: Canary) -> CanaryReport:
    """Look for the canary's reference in the index; call it on the thread that owns the model.

    Args:
        localizer: whose model and index.
        canary: chosen for this index.

    Raises:
        PlaceIndexError: it is not found (``canary_failed``).
    """
    image = canary.image
    if image is not None:
        return _look(localizer, canary.row, localizer.describer.describe([image]), described=True)
    # Nothing to compare it with, but a model that hangs or is lost shows.
    preprocessing = localizer.describer.bundle.preprocessing
    localizer.describer.describe(np.zeros((1, preprocessing.height, preprocessing.width, 3), np.uint8))
    return _look(localizer, canary.row, localizer.place_index.descriptors(np.array([canary.row])), described=False)


def _look(localizer: Localizer, row: int, descriptor: np.ndarray, *, described: bool) -> CanaryReport:
    index = localizer.place_index
    found = index.search(descriptor, 1)
    score = float(found.scores[0, 0])
    own = float((descriptor[0] * index.descriptors(np.array([row]))[0]).sum())
    name = index.references([row])[0].id
    # A copy of the photo may be found in its place: then the scores are equal.
    if not (own >= _MIN_SCORE and abs(score - own) <= _SAME):
        raise PlaceIndexError(
            f"the canary failed: reference {name!r} is described with a cosine of {own:.3f} to its stored descriptor, "
            f"and the best match has {score:.3f}",
            where=index.where,
            remedy="The photo has changed since it was indexed, or model and index do not fit: index the photos again",
            code="canary_failed",
        )
    return CanaryReport(name, described, score)
