"""SimSiam: predict what the same encoder, its gradient stopped, says of the other photo (Chen & He, CVPR 2021)."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from training.heads import normalised_head, predictor, projection_dim
from training.objectives.byol import prediction_loss
from training.objectives.objective import DescribedPairs, Objective, ObjectiveSettings, Scalars, given


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
    """BYOL's loss with the online projection, gradient stopped, as the target.

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

    def loss(self, pairs: DescribedPairs) -> tuple[Tensor, Scalars]:
        """The prediction loss; `prediction_cosine` is 1 when predictions are perfect."""
        x, y = self.projection(pairs.x), self.projection(given(pairs.y))
        return prediction_loss(self.predictor(x), self.predictor(y), x.detach(), y.detach())
