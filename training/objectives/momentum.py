"""The target of BYOL and MoCo: a copy of encoder and projection head that follows them slowly."""

import copy

import torch
from torch import Tensor, nn


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
        descriptors: Tensor = self.encoder(images)
        if descriptors.dtype in (torch.float16, torch.bfloat16):
            descriptors = descriptors.float()
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
        assert len(online) == len(target), "the target was made of another network"
        torch._foreach_mul_(target, self.decay)
        torch._foreach_add_(target, online, alpha=1.0 - self.decay)
