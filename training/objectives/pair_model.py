"""Everything that one training step differentiates: encoder, objective and momentum encoder as one module.

One forward pass for a whole step is what DistributedDataParallel and torch.compile expect.
"""

import copy

import torch
from torch import Tensor, nn

from training.descriptor_net import in_full_precision
from training.objectives.objective import DescribedPairs, Objective, Scalars


class PairViews:
    """N pairs of views as the net wants them.

    No dataclass: Lightning would turn every float tensor that it finds in one into float32, and positions must stay
    float64. In float32 a point on the unit sphere is off by up to half a metre.

    Attributes:
        x, y: (N, 3, H, W) float32, normalised.
        negatives: (N, K, 3, H, W) float32, normalised, or None.
        x_points, y_points: (N, 3) float64, where the photos were taken.
    """

    __slots__ = ("negatives", "x", "x_points", "y", "y_points")

    def __init__(self, x: Tensor, y: Tensor, negatives: Tensor | None, x_points: Tensor, y_points: Tensor) -> None:
        self.x, self.y, self.negatives = x, y, negatives
        self.x_points, self.y_points = x_points, y_points


class MomentumEncoder(nn.Module):
    """An exponential moving average of the online encoder and projection head (He et al., MoCo, CVPR 2020).

    Only parameters are averaged. Buffers are the copy's own: in train mode its batch norms see the batch as the online
    ones do, and keep their own running statistics. Everything is in the state_dict, so resuming is exact.

    Args:
        encoder: images (N, 3, H, W) → descriptors (N, D); copied.
        projection: (N, D) → (N, P); copied.
        decay: how much of the old value stays at each update, 0 to 1.
    """

    def __init__(self, encoder: nn.Module, projection: nn.Module, decay: float) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.projection = copy.deepcopy(projection).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Project normalised images: (N, 3, H, W) float → (N, P) float without gradient."""
        descriptors = in_full_precision(self.encoder(images))
        with torch.autocast(images.device.type, enabled=False):
            projections: Tensor = self.projection(descriptors)
        return projections

    @torch.no_grad()
    def update(self, encoder: nn.Module, projection: nn.Module) -> None:
        """Move towards the online parameters: target = decay · target + (1 − decay) · online.

        Call it after every optimizer step, not after every micro-batch.

        Args:
            encoder: the online encoder, of the same build as the copied one.
            projection: the online projection head.
        """
        online: list[Tensor] = [*encoder.parameters(), *projection.parameters()]
        target: list[Tensor] = [*self.encoder.parameters(), *self.projection.parameters()]
        assert len(online) == len(target), "the momentum encoder was made of another network"
        torch._foreach_mul_(target, self.decay)
        torch._foreach_add_(target, online, alpha=1.0 - self.decay)


class PairModel(nn.Module):
    """The encoder's net with the objective and, where it has target views, its momentum encoder.

    Make it before the net is wrapped for DistributedDataParallel.

    Args:
        net: normalised images (N, 3, H, W) → descriptors (N, D), unit rows.
        objective: compares them.
    """

    def __init__(self, net: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.net = net
        self.objective = objective
        decay = objective.target_decay
        self.target = None if decay is None else MomentumEncoder(net, objective.projection, decay)

    def forward(self, views: PairViews) -> tuple[Tensor, Scalars, Tensor]:
        """The loss of a batch, always in full precision.

        Returns:
            The loss, a scalar with gradient; named scalars without gradient to log, among them `loss`; and the
            descriptors of the first views without gradient, (N, D).
        """
        objective, images = self.objective, {"x": views.x, "y": views.y}
        # One view after the other, so that batch statistics are those of one view.
        online = {view: self.net(images[view]) for view in objective.online_views}
        targets = (
            {f"target_{view}": self.target(images[view]) for view in objective.target_views} if self.target else {}
        )
        negatives = None
        if objective.needs_negatives:
            assert views.negatives is not None, "the objective needs negatives"
            negatives = self.net(views.negatives.flatten(0, 1)).unflatten(0, views.negatives.shape[:2])
        pairs = DescribedPairs(
            **online, **targets, negatives=negatives, x_positions=views.x_points, y_positions=views.y_points
        ).in_full_precision()
        with torch.autocast(views.x.device.type, enabled=False):
            loss, scalars = objective(pairs)
        detached = {name: value.detach() for name, value in {"loss": loss, **scalars}.items()}
        return loss, detached, pairs.x.detach()

    def update_target(self) -> None:
        """Move the momentum encoder; call it after every step of the optimiser."""
        if self.target is not None:
            self.target.update(self.net, self.objective.projection)
