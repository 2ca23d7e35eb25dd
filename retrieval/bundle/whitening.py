"""Whitening: fewer numbers a descriptor, and none of them counted twice.

Directions in which all photos of a place vary together (its light, its sky) dominate a cosine and say little about
where a photo was taken. Principal component analysis finds them; whitening divides them down. Jégou & Chum, "Negative
evidences and co-occurences in image retrieval: the benefit of PCA and whitening", ECCV 2012.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle.principal_components import principal_components
from retrieval.errors import ParameterError

# Dividing by the square root of the singular values: on real photos better than either of the extremes, 0 and 1.
HALF_WHITENING: Final = 0.5

# Directions below this share of the largest singular value are rounding errors, which whitening would magnify.
_SMALLEST_SHARE: Final = 1e-5


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
    components = principal_components(descriptors)
    singular = components.singular
    spanned = int((singular > _SMALLEST_SHARE * singular[0]).sum())
    if spanned < dim:
        raise ParameterError(
            f"the photos' descriptors span only {spanned} directions, not {dim}",
            remedy=f"Give more, and more different, photos, or whiten to at most {max(spanned, 1)} numbers",
            code="too_few_photos",
        )
    # The scale is free (rows are made unit again); the first direction keeps its length, so that numbers stay ordinary.
    divisors = (singular[:dim] / singular[0]) ** power
    return Whitening(
        mean=components.centre,
        projection=np.ascontiguousarray(components.directions(dim) / divisors, np.float32),
        power=power,
        explained=components.explained(dim),
    )
