"""VICReg: agree, keep each dimension's variance, decorrelate dimensions (Bardes et al., ICLR 2022)."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from training.heads import normalised_head
from training.objectives.gathering import gathered
from training.objectives.objective import DescribedPairs, Objective, ObjectiveSettings, Scalars, given
from training.objectives.off_diagonal import off_diagonal
from training.torchvision_ops import define_missing_operators


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
    """Three weighted terms, equal to lightly's `VICRegLoss`; variance and covariance over all processes' pairs.

    Args:
        descriptor_dim: D.
        settings: see `VicregSettings`.
    """

    settings_class: ClassVar[type[ObjectiveSettings]] = VicregSettings

    def __init__(self, descriptor_dim: int, settings: VicregSettings) -> None:
        super().__init__(normalised_head(descriptor_dim, settings.head_layers, settings.head_width, output_bias=False))
        self.settings = settings

    def loss(self, pairs: DescribedPairs) -> tuple[Tensor, Scalars]:
        """The weighted sum of `invariance`, `variance` and `covariance`."""
        define_missing_operators()
        from lightly.loss import vicreg_loss

        x, y = self.projection(pairs.x), self.projection(given(pairs.y))
        invariance = vicreg_loss.invariance_loss(x, y)
        x, y = gathered(x), gathered(y)
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
    return off_diagonal(centred.T @ centred / (len(x) - 1)).pow(2).sum() / x.shape[1]
