"""Recall on photos set aside, and collapse: the numbers by which training chooses its best checkpoint, and ends.

Self-distillation can end with one descriptor for every image, and any objective can lose dimensions. The loss shows
neither, so the descriptors themselves are measured.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from retrieval.errors import SightfixError
from retrieval.evaluation import Bootstrap, EvaluationReport, Positions, Protocol, Ranked, evaluate, exact_ranking
from retrieval.index.sampling import evenly_spaced
from training.encoder import Encoder, describe_cached
from training.photos.cache import PhotoCache

_RECALL_AT: Final = (1, 5, 10)

# Collapse is not measured on fewer descriptors; a few hundred are enough.
_FEWEST_DESCRIPTORS: Final = 8
_MOST_DESCRIPTORS: Final = 512
# A spread of 0.1 means a mean cosine of about 0.99 between images.
_MIN_SPREAD: Final = 0.1
_MIN_RANK_SHARE: Final = 0.05


class ValidationError(SightfixError):
    """Photos that recall cannot be measured on."""

    default_code = "validation_photos"


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


def measure_collapse(descriptors: Tensor) -> CollapseReport | None:
    """Measure the spread and the effective rank of descriptors about their mean, and warn when either is lost.

    The mean is taken away first: what all images share says nothing about where one was taken.

    Args:
        descriptors: (N, D) float, unit rows, of N different places.

    Returns:
        None for fewer than eight descriptors.
    """
    count, dim = descriptors.shape
    if count < _FEWEST_DESCRIPTORS:
        return None
    centred = descriptors.detach().float()
    centred = centred - centred.mean(dim=0)
    spread = float(centred.pow(2).sum(dim=0).div(count - 1).sqrt().mean()) * math.sqrt(dim)
    rank = effective_rank(centred) if math.isfinite(spread) else math.nan
    possible = min(count - 1, dim)
    return CollapseReport(spread, rank, possible, _warning(spread, rank, possible))


def _warning(spread: float, rank: float, possible: int) -> str | None:
    remedy = "Lower the learning rate, or use an objective with negatives or with a variance term"
    if not math.isfinite(spread):
        return f"descriptors are not finite. {remedy}."
    if spread < _MIN_SPREAD:
        return f"descriptors collapse: nearly the same for every image (spread {spread:.3f} < {_MIN_SPREAD}). {remedy}."
    if rank < _MIN_RANK_SHARE * possible:
        return (
            f"descriptors collapse: they vary in {rank:.1f} of {possible} possible dimensions "
            f"(fewer than {_MIN_RANK_SHARE:.0%}). {remedy}."
        )
    return None


@dataclass(frozen=True)
class Measured:
    """What one validation found.

    Attributes:
        report: recall@1, 5 and 10 with chance and intervals.
        collapse: how the database's descriptors fill their space; None with too few photos.
    """

    report: EvaluationReport
    collapse: CollapseReport | None

    def recalls(self) -> dict[str, float]:
        """Recall by N, such as `R@1`, 0 to 1."""
        return {f"R@{at.n}": float(at.recall.value or 0.0) for at in self.report.recall[0].at}


@dataclass(frozen=True)
class Validation:
    """A database and queries, decoded once.

    Attributes:
        database, queries: their photos.
        radius_m: a match within this distance is a true one.
    """

    database: PhotoCache
    queries: PhotoCache
    radius_m: float

    def measure(self, encoder: Encoder, on_progress: Callable[[int], None] | None = None) -> Measured:
        """Describe all photos with the encoder as it is, rank exactly, count as `retrieval.evaluation` does.

        Raises:
            ValidationError: no query has a true match in the database.
        """
        database = describe_cached(encoder, self.database, np.arange(len(self.database)), on_progress=on_progress)
        queries = describe_cached(encoder, self.queries, np.arange(len(self.queries)), on_progress=on_progress)
        # Evenly through the photos: neighbours in order show the same place.
        collapse = measure_collapse(torch.from_numpy(database[evenly_spaced(len(database), _MOST_DESCRIPTORS)]))
        if not (np.isfinite(database).all() and np.isfinite(queries).all()):
            raise ValidationError(
                "the net's descriptors are not finite: training has diverged",
                remedy="Lower optimiser.learning_rate, set training.clip_norm, or train in bf16 or fp32",
                code="diverged",
            )
        rows, _ = exact_ranking(database, queries, min(max(_RECALL_AT), len(database)))
        ranked = Ranked(
            Positions.from_references(self.database.references),
            Positions.from_references(self.queries.references),
            rows,
        )
        protocol = Protocol(
            radii_m=(self.radius_m,), recall_at=_RECALL_AT, grouping="place", bootstrap=Bootstrap(resamples=500)
        )
        report = evaluate(ranked, protocol).report
        if report.recall[0].counted == 0:
            raise ValidationError(
                f"none of the {len(self.queries)} validation queries has a database photo within {self.radius_m:g} m",
                remedy="Give --validation-database and --validation-queries of one area, or --hold-out 0",
            )
        return Measured(report, collapse)

    @property
    def photos(self) -> int:
        """How many photos are described for one measurement."""
        return len(self.database) + len(self.queries)
