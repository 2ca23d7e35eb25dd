"""Collapse: has training pressed all descriptors together, or into a few dimensions?

Self-distillation can end with one descriptor for every image, and any objective can lose dimensions. The loss shows
neither, so we watch the descriptors themselves.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from retrieval.errors import ParameterError

MIN_SPREAD: Final = 0.1
MIN_RANK_SHARE: Final = 0.05


@dataclass(frozen=True, slots=True)
class CollapseReport:
    """How descriptors fill their space.

    Attributes:
        spread: mean over dimensions of the standard deviation, relative to 1/√D: near 1 when unit vectors point
            everywhere alike, 0 when all are the same.
        effective_rank: how many dimensions they vary in, 1 to `possible_rank`; NaN when descriptors are not finite.
        possible_rank: min(N − 1, D), the most that N descriptors could vary in.
        warning: what is wrong and what helps, or None.
    """

    spread: float
    effective_rank: float
    possible_rank: int
    warning: str | None


def effective_rank(matrix: Tensor) -> float:
    """The exponential of the entropy of the singular values' shares (Roy & Vetterli, EUSIPCO 2007).

    Args:
        matrix: (N, D) float.

    Returns:
        1 when one singular value holds everything, min(N, D) when all are equal; 1 for a matrix of zeros.
    """
    singular = torch.linalg.svdvals(matrix.detach().float().cpu()).double()
    total = float(singular.sum())
    if total == 0.0:
        return 1.0
    shares = singular / total
    return math.exp(float(torch.special.entr(shares).sum()))


def measure_collapse(
    descriptors: Tensor, *, min_spread: float = MIN_SPREAD, min_rank_share: float = MIN_RANK_SHARE
) -> CollapseReport:
    """Measure the spread and the effective rank of descriptors about their mean, and warn when either is lost.

    The mean is taken away first: what all images share says nothing about where one was taken.

    Args:
        descriptors: (N, D) float, unit rows, of N different places; a few hundred are enough.
        min_spread: warn below this spread. 0.1 means a mean cosine of about 0.99 between images.
        min_rank_share: warn below this share of `possible_rank`.

    Raises:
        ParameterError: fewer than three descriptors.
    """
    count, dim = descriptors.shape
    if count < 3:
        raise ParameterError(f"{count} descriptors are too few to see a collapse", remedy="Give at least three")
    centred = descriptors.detach().float()
    centred = centred - centred.mean(dim=0)
    spread = float(centred.pow(2).sum(dim=0).div(count - 1).sqrt().mean()) * math.sqrt(dim)
    rank = effective_rank(centred) if math.isfinite(spread) else math.nan
    possible = min(count - 1, dim)
    return CollapseReport(spread, rank, possible, _warning(spread, rank, possible, min_spread, min_rank_share))


def _warning(spread: float, rank: float, possible: int, min_spread: float, min_rank_share: float) -> str | None:
    remedy = "Lower the learning rate, or use an objective with negatives or with a variance term"
    if not math.isfinite(spread):
        return f"descriptors are not finite. {remedy}."
    if spread < min_spread:
        return f"descriptors collapse: nearly the same for every image (spread {spread:.3f} < {min_spread}). {remedy}."
    if rank < min_rank_share * possible:
        return (
            f"descriptors collapse: they vary in {rank:.1f} of {possible} possible dimensions "
            f"(fewer than {min_rank_share:.0%}). {remedy}."
        )
    return None
