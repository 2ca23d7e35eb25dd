"""Principal component analysis, of few long rows or of many short ones."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

_COLUMNS_AT_ONCE: Final = 2048


@dataclass(frozen=True)
class PrincipalComponents:
    """The directions in which rows differ from their mean, those in which they differ most first.

    Attributes:
        centre: (D,) float32, the mean.
        singular: (m,) float64, singular values of the centred rows, the largest first; m is the lesser of n and D.
    """

    centre: NDArray[np.float32]
    singular: NDArray[np.float64]
    _centred: NDArray[np.float32]
    _vectors: NDArray[np.float64]

    def directions(self, count: int) -> NDArray[np.float32]:
        """(D, count) float32, columns of unit length: the first ones, of which no singular value may be 0."""
        vectors = self._vectors[:, :count]
        if len(vectors) == len(self.centre):
            return signed(np.ascontiguousarray(vectors, np.float32))
        return signed(self._centred.T @ (vectors / self.singular[:count]).astype(np.float32))

    def explained(self, count: int) -> float:
        """Share of the variance in the first directions, 0 to 1; 0 where the rows are all the same."""
        total = float((self.singular**2).sum())
        return float((self.singular[:count] ** 2).sum()) / total if total else 0.0


def principal_components(rows: NDArray[np.float32]) -> PrincipalComponents:
    """Of rows (n, D) float32, in float64; the n × n or the D × D inner products are taken, whichever are fewer."""
    centre = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = rows - centre
    few = len(rows) < rows.shape[1]
    squares, vectors = np.linalg.eigh(gram(centred if few else centred.T))
    return PrincipalComponents(centre, np.sqrt(np.maximum(squares[::-1], 0.0)), centred, vectors[:, ::-1])


def gram(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n, n) float64 inner products of rows (n, D), a block of columns at a time."""
    total = np.zeros((len(rows), len(rows)))
    for begin in range(0, rows.shape[1], _COLUMNS_AT_ONCE):
        block = rows[:, begin : begin + _COLUMNS_AT_ONCE].astype(np.float64)
        total += block @ block.T
    return total


def signed(directions: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same columns, each with its largest number positive: both signs are right, and one shall come out."""
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=0)[None], axis=0)
    return directions * np.where(largest < 0, -1.0, 1.0).astype(np.float32)
