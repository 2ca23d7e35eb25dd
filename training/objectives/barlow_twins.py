"""Barlow Twins: each dimension agrees between the photos and with no other dimension (Zbontar et al., ICML 2021)."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from training.heads import normalised_head
from training.objectives.gathering import gathered
from training.objectives.objective import DescribedPairs, Objective, ObjectiveSettings, Scalars, given
from training.objectives.off_diagonal import off_diagonal


class BarlowTwinsSettings(ObjectiveSettings):
    """Barlow Twins' settings.

    Attributes:
        redundancy_weight: of the off-diagonal terms, λ.
        head_layers: Linear layers of the projection head, 0 to 3.
        head_width: width of each.
    """

    redundancy_weight: float = Field(default=0.0051, ge=0)
    head_layers: int = Field(default=2, ge=0)
    head_width: int = Field(default=2048, ge=1)


class BarlowTwins(Objective):
    """The cross-correlation of the two views' projections is pulled to the identity; statistics over all processes.

    Args:
        descriptor_dim: D.
        settings: see `BarlowTwinsSettings`.
    """

    settings_class: ClassVar[type[ObjectiveSettings]] = BarlowTwinsSettings

    def __init__(self, descriptor_dim: int, settings: BarlowTwinsSettings) -> None:
        super().__init__(normalised_head(descriptor_dim, settings.head_layers, settings.head_width, output_bias=False))
        self.settings = settings

    def loss(self, pairs: DescribedPairs) -> tuple[Tensor, Scalars]:
        """`invariance` + λ · `redundancy`."""
        x, y = gathered(self.projection(pairs.x)), gathered(self.projection(given(pairs.y)))
        invariance, redundancy = barlow_twins_terms(x, y)
        loss = invariance + self.settings.redundancy_weight * redundancy
        return loss, {"invariance": invariance, "redundancy": redundancy}


def barlow_twins_terms(x: Tensor, y: Tensor, eps: float = 1e-4) -> tuple[Tensor, Tensor]:
    """Σ (C_ii − 1)² and Σ_{i≠j} C_ij² of the cross-correlation C as VG-SSL computes it.

    Not lightly's: that divides by the biased variance with eps 1e-5. Here the variance is unbiased and C is divided by
    N, so that the diagonal is at most (N − 1)/N.

    Args:
        x: (N, P) float, projections of the first views.
        y: (N, P) float, of the second.
        eps: added to each variance.
    """
    correlation = _standardised(x, eps).T @ _standardised(y, eps) / len(x)
    diagonal = correlation.diagonal()
    return (diagonal - 1).pow(2).sum(), off_diagonal(correlation).pow(2).sum()


def _standardised(x: Tensor, eps: float) -> Tensor:
    return (x - x.mean(dim=0)) / (x.var(dim=0) + eps).sqrt()
