"""Objectives that predict the projection of the other photo, without negatives: BYOL, SimSiam."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from training.objectives.objective import (
    DescribedPairs,
    Objective,
    ObjectiveSettings,
    Scalars,
    View,
    normalised_head,
    predictor,
    projection_dim,
    required,
)
from training.torchvision_ops import define_missing_operators


class ByolSettings(ObjectiveSettings):
    """BYOL's settings.

    Attributes:
        decay: of the momentum encoder, constant as in VG-SSL (the BYOL paper raises 0.996 to 1).
        head_layers: Linear layers of the projection head, 0 to 3.
        head_width: width of each.
        predictor_width: hidden width of the predictor.
    """

    decay: float = Field(default=0.99, ge=0, le=1)
    head_layers: int = Field(default=2, ge=0)
    head_width: int = Field(default=4096, ge=1)
    predictor_width: int = Field(default=4096, ge=1)


class Byol(Objective):
    """BYOL: predict what a slowly following copy says of the other photo (Grill et al., NeurIPS 2020).

    Squared distance of unit vectors between prediction and target, both ways.

    Args:
        descriptor_dim: D.
        settings: see `ByolSettings`.
    """

    settings_class: ClassVar[type[ObjectiveSettings]] = ByolSettings
    target_views: ClassVar[tuple[View, ...]] = ("x", "y")

    def __init__(self, descriptor_dim: int, settings: ByolSettings) -> None:
        layers, width = settings.head_layers, settings.head_width
        super().__init__(normalised_head(descriptor_dim, layers, width, output_bias=True), target_decay=settings.decay)
        self.settings = settings
        self.predictor = predictor(projection_dim(descriptor_dim, layers, width), settings.predictor_width)

    def forward(self, pairs: DescribedPairs) -> tuple[Tensor, Scalars]:
        """The prediction loss; `prediction_cosine` is 1 when predictions are perfect."""
        x_prediction = self.predictor(self.projection(pairs.x))
        y_prediction = self.predictor(self.projection(required(pairs.y)))
        return prediction_loss(x_prediction, y_prediction, required(pairs.target_x), required(pairs.target_y))


def prediction_loss(
    x_prediction: Tensor, y_prediction: Tensor, x_target: Tensor, y_target: Tensor
) -> tuple[Tensor, Scalars]:
    """mean[(2 − 2cos(p(x), t(y))) + (2 − 2cos(p(y), t(x)))]; targets get no gradient.

    Args:
        x_prediction: (N, P) float.
        y_prediction: (N, P) float.
        x_target: (N, P) float.
        y_target: (N, P) float.
    """
    define_missing_operators()
    from lightly.loss import NegativeCosineSimilarity

    # Half of it is the loss as lightly and SimSiam write it, −cos; hence its gradient is four times theirs.
    negative_cosine = NegativeCosineSimilarity()
    crossed = negative_cosine(x_prediction, y_target.detach()) + negative_cosine(y_prediction, x_target.detach())
    return 4.0 + 2.0 * crossed, {"prediction_cosine": -crossed / 2}


class SimsiamSettings(ObjectiveSettings):
    """SimSiam's settings.

    Attributes:
        head_layers: Linear layers of the projection head, 0 to 3.
        head_width: width of each.
        predictor_width: hidden width of the predictor, 4096 as in VG-SSL (the SimSiam paper: 512).
    """

    head_layers: int = Field(default=2, ge=0)
    head_width: int = Field(default=4096, ge=1)
    predictor_width: int = Field(default=4096, ge=1)


class Simsiam(Objective):
    """SimSiam: BYOL's loss with the online projection, its gradient stopped, as the target (Chen & He, CVPR 2021).

    Args:
        descriptor_dim: D.
        settings: see `SimsiamSettings`.
    """

    settings_class: ClassVar[type[ObjectiveSettings]] = SimsiamSettings

    def __init__(self, descriptor_dim: int, settings: SimsiamSettings) -> None:
        layers, width = settings.head_layers, settings.head_width
        super().__init__(normalised_head(descriptor_dim, layers, width, output_bias=True))
        self.settings = settings
        self.predictor = predictor(projection_dim(descriptor_dim, layers, width), settings.predictor_width)

    def forward(self, pairs: DescribedPairs) -> tuple[Tensor, Scalars]:
        """The prediction loss; `prediction_cosine` is 1 when predictions are perfect."""
        x, y = self.projection(pairs.x), self.projection(required(pairs.y))
        return prediction_loss(self.predictor(x), self.predictor(y), x.detach(), y.detach())
