"""How condensed heat maps are: the share of their energy in the strongest tenth of the locations."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ParameterError
from training.encoder import Encoder
from training.heat_maps.maps import heat_maps

DEFAULT_TOP: Final = 0.10
_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class Condensation:
    """The energy shares of N pairs of photos, to draw intervals from; NaN where a map has no energy.

    Attributes:
        activation: (N,) float64, mean over a pair's two activation maps, 0 to 1.
        match: (N,) float64, mean over a pair's two match maps, 0 to 1.
    """

    activation: NDArray[np.float64]
    match: NDArray[np.float64]

    @property
    def mean_activation(self) -> float:
        """Over the pairs that have one; NaN when none has."""
        return _mean(self.activation)

    @property
    def mean_match(self) -> float:
        """Over the pairs that have one; NaN when none has."""
        return _mean(self.match)


def energy_share(maps: NDArray[np.floating], top: float = DEFAULT_TOP) -> NDArray[np.float64]:
    """The share of each map's energy that its strongest locations hold.

    Energy is the map itself where positive; negative contributions, which oppose a match, count as none. Where `top` is
    no whole number of locations, the last one counts by the fraction, so that an even map gives `top` on every grid.
    Shares on grids of different fineness are not quite comparable: a finer one can be more condensed.

    Args:
        maps: (N, h, w).
        top: share of the locations, 0 < top ≤ 1.

    Returns:
        (N,) float64 in [top, 1]; NaN for a map without energy, or with a value that is not finite.

    Raises:
        ParameterError: `top` is outside (0, 1].
    """
    if not 0.0 < top <= 1.0:
        raise ParameterError(f"the share of locations {top} is outside (0, 1]", remedy="Give such as 0.1")
    if maps.ndim != 3:
        raise ValueError(f"maps are (N, h, w), not {maps.shape}")
    energy = maps.reshape(len(maps), maps.shape[1] * maps.shape[2]).astype(np.float64)
    known = np.isfinite(energy).all(axis=1, keepdims=True)
    energy = np.where(known, energy, 0.0).clip(min=0.0)
    largest = energy.max(axis=1, keepdims=True)
    energy = energy / np.where(largest > 0, largest, 1.0)  # to 1, lest sums of tiny or huge values leave the range
    total = energy.sum(axis=1)
    # Counted from the strongest, location i weighs 1 as long as it lies whole within the top, then what is left of it.
    weights = (top * energy.shape[1] - np.arange(energy.shape[1])).clip(0.0, 1.0)
    held = np.sort(energy, axis=1)[:, ::-1] @ weights
    shares = np.full(len(maps), np.nan)
    np.divide(held, total, out=shares, where=total > 0)
    return shares


def condensation(
    encoder: Encoder,
    images: NDArray[np.uint8],
    others: NDArray[np.uint8] | None = None,
    *,
    top: float = DEFAULT_TOP,
    on_progress: Callable[[int], None] | None = None,
) -> Condensation:
    """How condensed the activation and match maps of many photos are.

    Args:
        encoder: as `activation_maps`.
        images: (N, H, W, 3) uint8 RGB; a memory-mapped array is read batch by batch.
        others: (N, H, W, 3) uint8 RGB, the photo each is matched with; itself if left out, and then the match map is
            each location's share in the photo's own descriptor.
        top: share of the locations.
        on_progress: called with the number of pairs done since the last call.

    Raises:
        ParameterError: the backbone cannot be looked into, or `top` is outside (0, 1].
    """
    if others is not None and len(images) != len(others):
        raise ValueError(f"{len(images)} photos cannot be paired with {len(others)}")
    activation, match = np.empty(len(images)), np.empty(len(images))
    for begin in range(0, len(images), _AT_ONCE):
        rows = slice(begin, begin + _AT_ONCE)
        batch = images[rows]
        maps = heat_maps(encoder, batch, batch if others is None else others[rows])
        activation[rows] = (energy_share(maps.activation_a, top) + energy_share(maps.activation_b, top)) / 2
        match[rows] = (energy_share(maps.match_a, top) + energy_share(maps.match_b, top)) / 2
        if on_progress is not None:
            on_progress(len(maps.scores))
    return Condensation(activation, match)


def _mean(values: NDArray[np.float64]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy warns of a mean over nothing, which is NaN as it should
        return float(np.nanmean(values))
