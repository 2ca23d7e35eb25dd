"""A describer that remembers how many images it described."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle import open_bundle
from retrieval.describer import Descriptors
from retrieval.images import RgbImage
from tests.remembering_describer import RememberingDescriber


class CountingDescriber(RememberingDescriber):
    """The shipped bundle on one thread; `described` counts images, and so it counts those of the quality check too."""

    def __init__(self) -> None:
        super().__init__(open_bundle(), threads=1)
        self.described = 0

    def describe(self, images: NDArray[np.uint8] | Sequence[RgbImage]) -> Descriptors:
        self.described += len(images)
        return super().describe(images)
