"""The net that describes an image: a backbone's spatial map, pooled by GeM, optionally projected to D, unit length."""

from typing import Any

import torch
from torch import Tensor, nn

from training.torchvision_ops import define_missing_operators


class GeM(nn.Module):
    """Generalised-mean pooling (Radenović et al., "Fine-tuning CNN Image Retrieval …", TPAMI 2018).

    Args:
        p: the exponent; 1 is average pooling, large values approach max pooling.
        eps: values are clamped to at least this, since p-th powers of negative numbers are not defined.
        learnable: whether p is trained.
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6, *, learnable: bool = True) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(float(p)), requires_grad=learnable)
        self.eps = eps

    def forward(self, spatial: Tensor) -> Tensor:
        """Pool (N, C, H, W) float to (N, C). Written without sizes, so that export keeps H and W free."""
        return spatial.clamp(min=self.eps).pow(self.p).mean((-2, -1)).pow(1.0 / self.p)


class DescriptorNet(nn.Module):
    """Backbone, GeM and L2 norm: images in, descriptors out.

    Args:
        backbone: maps (N, 3, H, W) float to a spatial map (N, C, h, w) by its `forward_features`.
        pool: (N, C, h, w) → (N, C).
        projection: (N, C) → (N, D), or None to keep D = C. Part of the descriptor, not a projection head.
    """

    def __init__(self, backbone: nn.Module, pool: GeM, projection: nn.Linear | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.pool = pool
        self.projection = projection or nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Describe normalised images: (N, 3, H, W) float → (N, D) float, unit rows."""
        forward_features: Any = self.backbone.forward_features
        pooled: Tensor = self.pool(forward_features(images))
        return nn.functional.normalize(self.projection(pooled), dim=-1)


def timm_backbone(name: str) -> nn.Module:
    """A timm model by name with random weights; its classifier is removed."""
    define_missing_operators()
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, global_pool="")
    return model
