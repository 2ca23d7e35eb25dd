"""Objectives on the statistics of dimensions over a batch, without negatives: Barlow Twins, VICReg."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from training.objectives.objective import (
    DescribedPairs,
    Objective,
    ObjectiveSettings,
    Scalars,
    gather_rows,
    normalised_head,
    required,
)
from training.torchvision_ops import define_missing_operators


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
    """Barlow Twins: each dimension agrees between the photos and with no other dimension (Zbontar et al., ICML 2021).

    The cross-correlation of the two views' projections is pulled to the identity; statistics over all processes.

    Args:
        descriptor_dim: D.
        settings: see `BarlowTwinsSettings`.
    """

    settings_class: ClassVar[type[ObjectiveSettings]] = BarlowTwinsSettings

    def __init__(self, descriptor_dim: int, settings: BarlowTwinsSettings) -> None:
        super().__init__(normalised_head(descriptor_dim, settings.head_layers, settings.head_width, output_bias=False))
        self.settings = settings

    def forward(self, pairs: DescribedPairs) -> tuple[Tensor, Scalars]:
        """`invariance` + λ · `redundancy`."""
        x, y = gather_rows(self.projection(pairs.x)), gather_rows(self.projection(required(pairs.y)))
        invariance, redundancy = barlow_twins_terms(x, y)
        loss = invariance + self.settings.redundancy_weight * redundancy
        return loss, {"invariance": invariance, "redundancy": redundancy}


def barlow_twins_terms(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Σ (C_ii − 1)² and Σ_{i≠j} C_ij² of the cross-correlation C as VG-SSL computes it.

    Not lightly's: that divides by the biased variance with 1e-5 added. Here the variance is unbiased, with 1e-4 added,
    and C is divided by N, so that the diagonal is at most (N − 1)/N.

    Args:
        x: (N, P) float, projections of the first views.
        y: (N, P) float, of the second.
    """
    correlation = _standardised(x).T @ _standardised(y) / len(x)
    diagonal = correlation.diagonal()
    return (diagonal - 1).pow(2).sum(), _off_diagonal(correlation).pow(2).sum()


def _standardised(x: Tensor) -> Tensor:
    return (x - x.mean(dim=0)) / (x.var(dim=0) + 1e-4).sqrt()


class VicregSettings(ObjectiveSettings):
    """VICReg's settings.

    Attributes:
        invariance_weight: of the mean squared difference between the views.
        variance_weight: of how far standard deviations fall short of 1.
        covariance_weight: of the squared covariances between dimensions.
        head_layers: Linear layers of the projection head, 0 to 3.
        head_width: width of each.
    """

    invariance_weight: float = Field(default=25.0, ge=0)
    variance_weight: float = Field(default=25.0, ge=0)
    covariance_weight: float = Field(default=1.0, ge=0)
    head_layers: int = Field(default=2, ge=0)
    head_width: int = Field(default=4096, ge=1)


class Vicreg(Objective):
    """VICReg: agree, keep each dimension's variance, decorrelate dimensions (Bardes et al., ICLR 2022).

    Three weighted terms, equal to lightly's `VICRegLoss`; variance and covariance over all processes' pairs.

    Args:
        descriptor_dim: D.
        settings: see `VicregSettings`.
    """

    settings_class: ClassVar[type[ObjectiveSettings]] = VicregSettings

    def __init__(self, descriptor_dim: int, settings: VicregSettings) -> None:
        super().__init__(normalised_head(descriptor_dim, settings.head_layers, settings.head_width, output_bias=False))
        self.settings = settings

    def forward(self, pairs: DescribedPairs) -> tuple[Tensor, Scalars]:
        """The weighted sum of `invariance`, `variance` and `covariance`."""
        define_missing_operators()
        from lightly.loss import vicreg_loss

        x, y = self.projection(pairs.x), self.projection(required(pairs.y))
        invariance = vicreg_loss.invariance_loss(x, y)
        x, y = gather_rows(x), gather_rows(y)
        variance = (vicreg_loss.variance_loss(x, eps=1e-4) + vicreg_loss.variance_loss(y, eps=1e-4)) / 2
        covariance = covariance_term(x) + covariance_term(y)
        loss = (
            self.settings.invariance_weight * invariance
            + self.settings.variance_weight * variance
            + self.settings.covariance_weight * covariance
        )
        return loss, {"invariance": invariance, "variance": variance, "covariance": covariance}


def covariance_term(x: Tensor) -> Tensor:
    """The sum of squared covariances between different dimensions, divided by their number P.

    Equal to lightly's `covariance_loss`, which picks the off-diagonal elements by a boolean mask; with P = 4096 that is
    twice as slow on a CPU and waits for the GPU.

    Args:
        x: (N, P) float.
    """
    centred = x - x.mean(dim=0)
    return _off_diagonal(centred.T @ centred / (len(x) - 1)).pow(2).sum() / x.shape[1]


def _off_diagonal(matrix: Tensor) -> Tensor:
    """The (P, P) matrix with zeros on its diagonal; no squares are subtracted from each other later on."""
    return matrix.clone().fill_diagonal_(0)
