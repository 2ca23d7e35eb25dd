"""Whitening: fewer numbers a descriptor, and none of them counted twice.

Directions in which all photos of a place vary together (its light, its sky) dominate a cosine and say little about
where a photo was taken. Principal component analysis finds them; whitening divides them down. Jégou & Chum, "Negative
evidences and co-occurences in image retrieval: the benefit of PCA and whitening", ECCV 2012.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ParameterError, PlaceIndexError

# Dividing by the square root of the singular values: on real photos better than either of the extremes, 0 and 1.
HALF_WHITENING: Final = 0.5

# Directions below this share of the largest singular value are rounding errors, which whitening would magnify.
_SMALLEST_SHARE: Final = 1e-5

_ROWS_AT_ONCE: Final = 65_536


@dataclass(frozen=True, slots=True)
class Whitening:
    """A linear map of descriptors, followed by L2 norm.

    Attributes:
        mean: (D,) float32, of the descriptors it was fitted on.
        projection: (D, d) float32, principal directions divided by their singular values to the power.
        power: 0 keeps the variances (PCA), 1 makes them equal (whitening), 0.5 is half-way.
        explained: share of the descriptors' variance in the d directions kept, 0 to 1.
    """

    mean: NDArray[np.float32]
    projection: NDArray[np.float32]
    power: float
    explained: float

    @property
    def bias(self) -> NDArray[np.float32]:
        """(d,) float32: what to add after the projection, so that the map is one linear layer."""
        return np.asarray(-(self.mean.astype(np.float64) @ self.projection.astype(np.float64)), np.float32)

    def apply(self, descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, D) float32 descriptors → (N, d) float32, unit rows."""
        whitened = (descriptors - self.mean) @ self.projection
        length = np.linalg.norm(whitened, axis=1, keepdims=True)
        return np.asarray(whitened / np.maximum(length, 1e-12), np.float32)


def fit_whitening(descriptors: NDArray[np.float32], dim: int, power: float = HALF_WHITENING) -> Whitening:
    """Fit PCA-whitening to the descriptors of a reference database.

    Args:
        descriptors: (N, D) float32, unit rows.
        dim: d, how many numbers a descriptor shall have.
        power: of the singular values by which directions are divided, 0 to 1.

    Raises:
        ParameterError: the power is outside [0, 1], d is outside 1..D, there are too few descriptors for d directions,
            or they span fewer.
    """
    count, length = descriptors.shape
    if not 0.0 <= power <= 1.0:
        raise ParameterError(f"the whitening power {power:g} is outside 0 to 1", remedy="0.5 is a good beginning")
    if not 1 <= dim <= length:
        raise ParameterError(
            f"{dim} is not a length that whitening can give",
            remedy=f"Choose 1 to {length}, the descriptor's own length",
        )
    if count <= dim:
        raise ParameterError(
            f"{count} reference photos are too few to find {dim} directions in",
            remedy=f"Give more than {dim} photos, better ten times as many, or whiten to fewer numbers",
            code="too_few_photos",
        )
    mean = descriptors.mean(axis=0, dtype=np.float64)
    variances, directions = np.linalg.eigh(_scatter(descriptors, mean))
    singular = np.sqrt(np.maximum(variances[::-1], 0.0))
    directions = directions[:, ::-1]
    spanned = int((singular > _SMALLEST_SHARE * singular[0]).sum()) if singular[0] > 0.0 else 0
    if spanned < dim:
        raise ParameterError(
            f"the photos' descriptors span only {spanned} directions, not {dim}",
            remedy=f"Give more, and more different, photos, or whiten to at most {max(spanned, 1)} numbers",
            code="too_few_photos",
        )
    # The scale is free (rows are made unit again); the first direction keeps its length, so that numbers stay ordinary.
    divisors = (singular[:dim] / singular[0]) ** power
    return Whitening(
        mean=mean.astype(np.float32),
        projection=np.ascontiguousarray(directions[:, :dim] / divisors, np.float32),
        power=power,
        explained=float((singular[:dim] ** 2).sum() / (singular**2).sum()),
    )


def _scatter(descriptors: NDArray[np.float32], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """(D, D) sum of outer products of centred rows, in float64, a block of rows at a time."""
    total = np.zeros((len(mean), len(mean)))
    for begin in range(0, len(descriptors), _ROWS_AT_ONCE):
        centred = descriptors[begin : begin + _ROWS_AT_ONCE] - mean
        total += centred.T @ centred
    return total


def write_whitening(whitening: Whitening, path: Path) -> None:
    """Write a whitening to an ``.npz`` file."""
    with path.open("wb") as file:
        np.savez(
            file,
            mean=whitening.mean,
            projection=whitening.projection,
            power=np.float64(whitening.power),
            explained=np.float64(whitening.explained),
        )


def read_whitening(source: Path | BinaryIO, where: str | None = None) -> Whitening:
    """Read what `write_whitening` wrote.

    Args:
        source: the file, or its content.
        where: names it in messages; the file's path if left out.

    Raises:
        PlaceIndexError: the file is damaged.
    """
    try:
        with np.load(source, allow_pickle=False) as stored:
            mean, projection = stored["mean"], stored["projection"]
            power, explained = float(stored["power"]), float(stored["explained"])
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise PlaceIndexError(
            f"the whitening cannot be read ({error})", where=where or str(source), remedy="Build the index again"
        ) from error
    if mean.ndim != 1 or projection.ndim != 2 or len(mean) != len(projection):
        raise PlaceIndexError("the whitening's parts do not fit together", where=where or str(source))
    return Whitening(np.asarray(mean, np.float32), np.asarray(projection, np.float32), power, explained)
