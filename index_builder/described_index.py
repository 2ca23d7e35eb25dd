"""Described references in memory, as something to be calibrated before anything is published."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retrieval.describer import Descriptors
from retrieval.errors import ParameterError
from retrieval.geo import Float64Array
from retrieval.references.reference import Reference


class DescribedVectors:
    """Descriptors by row: (N, D) float32."""

    def __init__(self, descriptors: Descriptors) -> None:
        self.count = len(descriptors)
        self._descriptors = descriptors

    def descriptors(self, rows: NDArray[np.int64]) -> Descriptors:
        """The descriptors of some rows: (len(rows), D) float32."""
        return self._descriptors[rows]


class DescribedIndex(DescribedVectors):
    """References and their descriptors, in the form that calibration reads.

    Args:
        references: N, each with a position.
        descriptors: (N, D) float32, unit rows.

    Raises:
        ParameterError: a reference without degrees, or not one descriptor for each.
    """

    def __init__(self, references: Sequence[Reference], descriptors: Descriptors) -> None:
        if len(references) != len(descriptors):
            raise ParameterError(f"{len(references)} references and {len(descriptors)} descriptors")
        positions = [reference.position for reference in references]
        places = [position for position in positions if position is not None]
        if len(places) != len(positions):
            raise ParameterError("a reference has no position in degrees", remedy="Calibrate with geo-tagged photos")
        self.lat: Float64Array = np.array([place.lat for place in places])
        self.lon: Float64Array = np.array([place.lon for place in places])
        super().__init__(descriptors)
        self.score_stretch = 1.0
        self._references = references

    def references(self, rows: NDArray[np.int64]) -> Sequence[Reference]:
        """The references of some rows."""
        return [self._references[row] for row in rows]
