"""Everything that one training step differentiates: encoder, objective and target as one module.

One forward for a whole step is what DistributedDataParallel and torch.compile expect.
"""

from typing import Final

from torch import Tensor, nn

from training.objectives.describing import describe_pairs
from training.objectives.momentum import MomentumEncoder
from training.objectives.objective import Objective, Scalars
from training.views import PairViews


class SealedViews:
    """Views on their way through Lightning, which would turn every float tensor that it finds into float32.

    Positions must stay float64: in float32 a point on the unit sphere is off by up to half a metre.
    """

    __slots__: Final = ("views",)

    def __init__(self, views: PairViews) -> None:
        self.views = views


class PairModel(nn.Module):
    """The encoder's net with the objective and, where it needs one, its momentum encoder.

    Args:
        net: normalised images (N, 3, H, W) → descriptors (N, D), unit rows.
        objective: compares them.
    """

    def __init__(self, net: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.net = net
        self.objective = objective
        self.target: MomentumEncoder | None = objective.make_target(net)

    def forward(self, sealed: SealedViews) -> tuple[Tensor, Scalars, Tensor]:
        """The loss of a batch, scalars to log, and the descriptors of its first views without gradient, (N, D)."""
        views = sealed.views
        pairs = describe_pairs(
            self.objective,
            self.net,
            self.target,
            views.x,
            views.y,
            negative_images=views.negatives,
            x_positions=views.x_points,
            y_positions=views.y_points,
        )
        loss, scalars = self.objective(pairs)
        return loss, scalars, pairs.x.detach()

    def follow(self) -> None:
        """Let the target follow; call it after every step of the optimiser."""
        if self.target is not None:
            self.target.update(self.net, self.objective.projection)
