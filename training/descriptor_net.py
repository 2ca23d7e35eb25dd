"""The net that describes an image: a backbone's features, pooled, optionally projected to D, unit length."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from retrieval.bundle.vlad import SMALLEST_LENGTH, SMALLEST_RESIDUAL, AdaptationSettings, Vocabulary
from training.dense_layers import DenseLayer, reading

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
        layers: of the backbone, whose local descriptors `pool` takes instead, (N, C, h, w) each; none for its features.
    """

    def __init__(
        self,
        backbone: nn.Module,
        pool: nn.Module,
        projection: nn.Linear | None = None,
        layers: Sequence[DenseLayer] = (),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pool = pool
        self.projection = projection or nn.Identity()
        self.layers = tuple(layers)

    def local_descriptors(self, images: Tensor) -> list[Tensor]:
        """Normalised images (N, 3, H, W) float → (N, C, h, w) float of each of the layers, not normalised."""
        forward_features: Any = self.backbone.forward_features
        with reading(self.backbone, self.layers) as found:
            forward_features(images)
        return [found[layer.name] for layer in self.layers]

    def forward(self, images: Tensor) -> Tensor:
        """Describe normalised images: (N, 3, H, W) float → (N, D) float, unit rows, float32 under autocast."""
        forward_features: Any = self.backbone.forward_features
        features = self.local_descriptors(images) if self.layers else forward_features(images)
        pooled: Tensor = self.pool(features)
        described: Tensor = in_full_precision(self.projection(pooled))
        return _unit(described)


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


class Vlad(nn.Module):
    """Residuals to the centroids of a vocabulary, summed for each, of one layer's local descriptors.

    What `retrieval.bundle.vlad.Vocabulary` computes, with gradients: channels are standardised, local descriptors get
    unit length, and are shared among centroids (NetVLAD, see there). Only the centroids learn: means and deviations of
    the channels, and the reduction of layers of many channels, stay as they were fitted, as statistics of a frozen
    batch norm do. They begin as those that change nothing; see `training.run.vocabulary`.

    Args:
        channels: C; a local descriptor has c numbers of these, fewer where the layer is reduced.
        centroids: K. They begin at random.
        sharpness: alpha of the assignment, softmax over centroids c of alpha · (c·x - |c|²/2).
        share: length of what comes out where every centroid has local descriptors.
    """

    mean: Tensor
    deviation: Tensor
    reduction: Tensor | None

    def __init__(self, channels: int, centroids: int, sharpness: float, share: float = 1.0) -> None:
        super().__init__()
        reduced = channels > AdaptationSettings.most_channels
        width = AdaptationSettings.reduced_channels if reduced else channels
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        self.register_buffer("reduction", torch.eye(channels, width) if reduced else None)
        self.centroids = nn.Parameter(functional.normalize(torch.randn(centroids, width), dim=1))
        self.sharpness = sharpness
        self.scale = share * centroids**-0.5

    def begin_with(self, vocabulary: Vocabulary) -> None:
        """Take centroids and standardisation of a vocabulary of as many centroids and channels."""
        with torch.no_grad():
            self.centroids.copy_(torch.from_numpy(vocabulary.centroids))
            self.mean.copy_(torch.from_numpy(vocabulary.mean))
            self.deviation.copy_(torch.from_numpy(vocabulary.deviation))
            if self.reduction is not None and vocabulary.reduction is not None:
                self.reduction.copy_(torch.from_numpy(vocabulary.reduction))

    def assign(self, spatial: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, h, w) float → (N, h·w, c) local descriptors of unit length, and (N, h·w, K) shares in centroids."""
        local = (spatial.flatten(2).transpose(1, 2) - self.mean) / self.deviation
        local = _unit(local if self.reduction is None else local @ self.reduction)
        nearness = local @ self.centroids.T - self.centroids.square().sum(dim=1) / 2
        return local, (self.sharpness * nearness).softmax(dim=2)

    def forward(self, spatial: Tensor) -> Tensor:
        """Aggregate (N, C, h, w) float to (N, K·c) float: each centroid's residual, made unit length, then scaled.

        Computed in full precision, whatever autocast says. Residuals shorter than 0.1 are not stretched to unit length.
        """
        kind = spatial.device.type
        # No context where none is needed: an exporter would trace it.
        with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
            local, shares = self.assign(in_full_precision(spatial))
            residuals = shares.transpose(1, 2) @ local - shares.sum(dim=1).unsqueeze(2) * self.centroids
            joined: Tensor = _unit(residuals, SMALLEST_RESIDUAL).flatten(1) * self.scale
            return joined


class VladOfLayers(nn.Module):
    """VLAD of several layers, each with its own vocabulary, one after the other.

    It is the residuals of `retrieval.bundle.vlad.aggregated`, so that what is trained is what an adapted bundle reads.
    The rest of an adapted descriptor is left out. The mean local descriptor says whether a photo shows the kind of
    place at all, which photos of one place cannot teach. Principal components would have to be found anew as the net
    changes; `network.descriptor_dim` adds a linear layer that learns instead.

    Args:
        layers: of the backbone; their weights say how long each one's part is beside the others.
        centroids, sharpness: as `Vlad`.
    """

    def __init__(self, layers: Sequence[DenseLayer], centroids: int, sharpness: float) -> None:
        super().__init__()
        length = math.hypot(*(layer.weight for layer in layers))
        parts = (Vlad(layer.channels, centroids, sharpness, layer.weight / length) for layer in layers)
        self.parts = nn.ModuleList(parts)

    @property
    def width(self) -> int:
        """Numbers that come out: K · Σc."""
        return sum(part.centroids.numel() for part in self.parts if isinstance(part, Vlad))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Aggregate (N, C, h, w) float of each layer to (N, K · Σc) float."""
        return torch.cat([part(spatial) for part, spatial in zip(self.parts, maps, strict=True)], dim=1)


def _unit(values: Tensor, smallest_length: float = SMALLEST_LENGTH) -> Tensor:
    """The last dimension's vectors made unit length, shorter ones than `smallest_length` by as much as that."""
    # Not `normalize`: in a graph it would expand lengths to a shape that it reads from the input.
    length: Tensor = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
    return values / length.clamp_min(smallest_length)
