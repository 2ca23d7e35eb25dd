"""What the owner thread can be asked for: localize a photo (or a frame), describe one, search for a descriptor."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.answer import LocalizeAnswer
from retrieval.describer import Descriptors
from retrieval.images import RgbImage
from retrieval.localizer import DecodedQuery, LocalizeOptions, Localizer, Located


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


@dataclass(frozen=True, slots=True)
class FrameWork:
    """Localize one photo, and say of which matches the answer was made.

    Attributes:
        query: the photo.
        at_least: so many matches are looked for.
    """

    query: DecodedQuery
    at_least: int


Work = DecodedQuery | DescribeWork | SearchWork | FrameWork
Outcome = LocalizeAnswer | Descriptors | Located


def do_works(localizer: Localizer, works: Sequence[Work]) -> list[Outcome]:
    """Do a mixed batch; all photos in it are described at once, and all answers name the same index version.

    Returns:
        in order: a LocalizeAnswer for a query or a search, a (D,) float32 descriptor for a photo to describe, a
        Located for a frame.
    """
    outcomes: dict[int, Outcome] = {}
    queries = {place: work for place, work in enumerate(works) if isinstance(work, DecodedQuery | FrameWork)}
    at_least = max((work.at_least for work in queries.values() if isinstance(work, FrameWork)), default=1)
    asked = [work.query if isinstance(work, FrameWork) else work for work in queries.values()]
    for (place, work), located in zip(queries.items(), localizer.located(asked, at_least), strict=True):
        outcomes[place] = located if isinstance(work, FrameWork) else located.answer
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
