"""The net that describes an image: a backbone's features, pooled, optionally projected to D, unit length."""

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

# GeM's values are clamped to at least this, since p-th powers of negative numbers are not defined.
GEM_MIN: Final = 1e-6


def in_full_precision(values: Tensor) -> Tensor:
    """Half-precision values as float32, others as they are: powers and norms need the digits."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


class DescriptorNet(nn.Module):
    """Backbone, pooling and L2 norm: images in, descriptors out. What is exported; projection heads are elsewhere.

    Args:
        backbone: maps (N, 3, H, W) float to features by its `forward_features`: a spatial map (N, C, h, w), or
            (N, h, w, C), or tokens (N, T, C).
        pool: these features → (N, C); one of the poolings below.
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


class GeM(nn.Module):
    """Generalised-mean pooling (Radenović et al., "Fine-tuning CNN Image Retrieval …", TPAMI 2018).

    Args:
        p: the exponent; 1 is average pooling, large values approach max pooling.
        learnable: whether p is trained.
        normalise_locations: give each location's vector unit length first, so that all weigh alike (VG-SSL does).
    """

    def __init__(self, p: float = 3.0, *, learnable: bool = True, normalise_locations: bool = False) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(float(p)), requires_grad=learnable)
        self.normalise_locations = normalise_locations

    def forward(self, spatial: Tensor) -> Tensor:
        """Pool (N, C, H, W) float to (N, C). Written without sizes, so that export keeps H and W free."""
        spatial = in_full_precision(spatial)
        if self.normalise_locations:
            spatial = functional.normalize(spatial, dim=1)
        return spatial.clamp(min=GEM_MIN).pow(self.p).mean((-2, -1)).pow(1.0 / self.p)


class ChannelsLastGeM(GeM):
    """GeM over the spatial map of a backbone that puts its channels last, such as Swin."""

    def forward(self, spatial: Tensor) -> Tensor:
        """Pool (N, H, W, C) float to (N, C)."""
        return super().forward(spatial.permute(0, 3, 1, 2))


class PatchGeM(GeM):
    """GeM over a vision transformer's patch tokens.

    Args:
        prefix_tokens: how many tokens (class, distillation, registers) stand before the patches.
        p, normalise_locations: as `GeM`.
    """

    def __init__(self, prefix_tokens: int, p: float = 3.0, *, normalise_locations: bool = False) -> None:
        super().__init__(p, normalise_locations=normalise_locations)
        self.prefix_tokens = prefix_tokens

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool (N, T, C) float to (N, C)."""
        return super().forward(tokens[:, self.prefix_tokens :].transpose(1, 2).unsqueeze(-1))


class ClassToken(nn.Module):
    """A vision transformer's class token, its first."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T, C) float → (N, C)."""
        return tokens[:, 0]


class DistilledHeads(nn.Module):
    """DeiT's class token and distillation token, each through its own linear layer, averaged.

    Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML 2021; used for
    descriptors by R2Former and VG-SSL. VG-SSL starts both layers from the same rows of ImageNet's class head; ours
    start as timm starts a new head, and differ.

    Args:
        channels: C.
        descriptor_dim: D.
    """

    def __init__(self, channels: int, descriptor_dim: int) -> None:
        super().__init__()
        self.head = nn.Linear(channels, descriptor_dim)
        self.head_dist = nn.Linear(channels, descriptor_dim)
        for layer in (self.head, self.head_dist):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T, C) float, class token first and distillation token second → (N, D)."""
        averaged: Tensor = (self.head(tokens[:, 0]) + self.head_dist(tokens[:, 1])) / 2
        return averaged
