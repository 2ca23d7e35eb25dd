"""What the owner thread can be asked for: localize a photo, describe one, search for a descriptor."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.answer import LocalizeAnswer
from retrieval.describer import Descriptors
from retrieval.images import RgbImage
from retrieval.localizer import DecodedQuery, LocalizeOptions, Localizer


@dataclass(frozen=True, slots=True)
class DescribeWork:
    """Describe one decoded photo."""

    image: RgbImage


@dataclass(frozen=True, slots=True)
class SearchWork:
    """Search for one descriptor: (D,) float32, unit length."""

    descriptor: Descriptors
    options: LocalizeOptions
    request_id: str


Work = DecodedQuery | DescribeWork | SearchWork
Outcome = LocalizeAnswer | Descriptors


def do_works(localizer: Localizer, works: Sequence[Work]) -> list[Outcome]:
    """Do a mixed batch; all photos in it are described at once, and all answers name the same index version.

    Returns:
        in order: a LocalizeAnswer for a query or a search, a (D,) float32 descriptor for a photo to describe.
    """
    outcomes: dict[int, Outcome] = {}
    queries = {place: work for place, work in enumerate(works) if isinstance(work, DecodedQuery)}
    outcomes.update(zip(queries, localizer.localize(list(queries.values())), strict=True))
    photos = {place: work.image for place, work in enumerate(works) if isinstance(work, DescribeWork)}
    if photos:
        outcomes.update(zip(photos, localizer.describer.describe(list(photos.values())), strict=True))
    searches = {place: work for place, work in enumerate(works) if isinstance(work, SearchWork)}
    if searches:
        found = localizer.locate(
            np.stack([work.descriptor for work in searches.values()]),
            [work.options for work in searches.values()],
            [work.request_id for work in searches.values()],
        )
        outcomes.update(zip(searches, found, strict=True))
    return [outcomes[place] for place in range(len(works))]
