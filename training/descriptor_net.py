"""The net that describes an image: a backbone's features, pooled, optionally projected to D, unit length."""

from typing import Any

import torch
from torch import Tensor, nn

from training.backbones import timm_backbone
from training.pooling import GeM, in_full_precision

__all__ = ["DescriptorNet", "GeM", "timm_backbone"]


class DescriptorNet(nn.Module):
    """Backbone, pooling and L2 norm: images in, descriptors out. What is exported; projection heads are elsewhere.

    Args:
        backbone: maps (N, 3, H, W) float to features by its `forward_features`: a spatial map (N, C, h, w), or
            (N, h, w, C), or tokens (N, T, C).
        pool: these features → (N, C); see `training.pooling`.
        projection: (N, C) → (N, D), or None to keep D = C. Part of the descriptor, not a projection head.
    """

    def __init__(self, backbone: nn.Module, pool: nn.Module, projection: nn.Linear | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.pool = pool
        self.projection = projection or nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Describe normalised images: (N, 3, H, W) float → (N, D) float, unit rows, float32 under autocast."""
        forward_features: Any = self.backbone.forward_features
        pooled: Tensor = self.pool(forward_features(images))
        described: Tensor = in_full_precision(self.projection(pooled))
        # Not `normalize`: in a graph it would expand lengths to a shape that it reads from the input.
        length: Tensor = torch.linalg.vector_norm(described, dim=-1, keepdim=True)
        return described / length.clamp_min(1e-12)
