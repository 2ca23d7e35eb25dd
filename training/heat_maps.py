"""Where the descriptor looks: heat maps of photos and pairs, and how condensed they are.

The cosine of two descriptors is z·t / |z|, where z is a photo's vector before it gets unit length and t the other
photo's descriptor. With |z| held fixed it is linear in z, so it can be shared out among the locations that z was pooled
from. Were |z| not held fixed, contributions would add up to zero whatever the photos show, since a cosine does not
change with the length of z; of a photo with itself every one would be zero.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from retrieval.bundle.vlad import SMALLEST_RESIDUAL
from retrieval.errors import ParameterError
from training.descriptor_net import (
    GEM_MIN,
    ChannelsLastGeM,
    DescriptorNet,
    GeM,
    PatchGeM,
    Vlad,
    VladOfLayers,
    in_full_precision,
)
from training.encoder import Encoder, evaluating

DEFAULT_TOP: Final = 0.10
_PHOTOS_AT_ONCE: Final = 16
_SMALLEST_LENGTH: Final = 1e-12  # as `functional.normalize`


@dataclass(frozen=True, slots=True)
class HeatMaps:
    """The heat maps of N pairs of photos.

    Attributes:
        scores: (N,) float32, cosine of the two descriptors.
        activation_a, activation_b: (N, h, w) float32, not negative: how strongly each location responds, the L2 norm
            over channels of the features that enter pooling. Negative features count as zero where GeM clamps them.
            With L2 per location before pooling the norm is taken before it, so the map shows what the net found, not
            what reaches the descriptor. For class-token pooling the features are the patches that enter the last block.
        match_a, match_b: (N, h, w) float32, in units of the score: where it comes from, as signed contributions;
            positive supports the match, negative opposes it. Gradient × activation, the descriptors' lengths held
            fixed. With GeM the map of either photo adds up to the score, less what the bias of a projection adds to
            every photo's score; with class-token pooling it is a first-order share. A photo paired with itself gives
            each location's share in its own descriptor.
    """

    scores: NDArray[np.float32]
    activation_a: NDArray[np.float32]
    activation_b: NDArray[np.float32]
    match_a: NDArray[np.float32]
    match_b: NDArray[np.float32]


def heat_maps(encoder: Encoder, images_a: NDArray[np.uint8], images_b: NDArray[np.uint8]) -> HeatMaps:
    """Activation maps and match maps of pairs, and their scores; each photo goes through the net once.

    Args:
        encoder: its net is used where it is, in evaluation mode, and left as it was.
        images_a, images_b: (N, H, W, 3) uint8 RGB, as `decode_image` gives them with `encoder.preprocessing`; row i of
            one is paired with row i of the other.

    Raises:
        ParameterError: heat maps do not know this kind of backbone.
    """
    if len(images_a) != len(images_b):
        raise ValueError(f"{len(images_a)} photos cannot be paired with {len(images_b)}")
    pieces: list[tuple[NDArray[np.float32], ...]] = []
    with evaluating(encoder.net):
        for batch_a, batch_b in zip(_batches(images_a), _batches(images_b), strict=True):
            a = _attribute(encoder, batch_a)
            b = a if images_b is images_a else _attribute(encoder, batch_b)
            scores = (a.descriptors * b.descriptors).sum(dim=1)
            match_a, match_b = a.contributions(b.descriptors), b.contributions(a.descriptors)
            pieces.append(tuple(map(_numpy, (scores, a.activation, b.activation, match_a, match_b))))
    return HeatMaps(*(np.concatenate(kind) for kind in zip(*pieces, strict=True)))


@dataclass(frozen=True, slots=True)
class Condensation:
    """The energy shares of N pairs of photos; NaN where a map has no energy.

    Attributes:
        activation: (N,) float64, mean over a pair's two activation maps, 0 to 1.
        match: (N,) float64, mean over a pair's two match maps, 0 to 1.
    """

    activation: NDArray[np.float64]
    match: NDArray[np.float64]


def condensation(
    encoder: Encoder, images: NDArray[np.uint8], others: NDArray[np.uint8], *, top: float = DEFAULT_TOP
) -> Condensation:
    """How condensed the activation and match maps of pairs of photos are.

    Args:
        encoder, images, others: as `heat_maps`.
        top: share of the locations.

    Raises:
        ParameterError: heat maps do not know this kind of backbone, or `top` is outside (0, 1].
    """
    maps = heat_maps(encoder, images, others)
    activation = (energy_share(maps.activation_a, top) + energy_share(maps.activation_b, top)) / 2
    match = (energy_share(maps.match_a, top) + energy_share(maps.match_b, top)) / 2
    return Condensation(activation, match)


def energy_share(maps: NDArray[np.floating], top: float = DEFAULT_TOP) -> NDArray[np.float64]:
    """The share of each map's energy that its strongest locations hold.

    Energy is the map itself where positive; negative contributions, which oppose a match, count as none. Where `top` is
    no whole number of locations, the last one counts by the fraction, so that an even map gives `top` on every grid.
    Shares on grids of different fineness are not quite comparable: a finer one can be more condensed.

    Args:
        maps: (N, h, w).
        top: share of the locations, 0 < top ≤ 1.

    Returns:
        (N,) float64 in [top, 1]; NaN for a map without energy, or with a value that is not finite.

    Raises:
        ParameterError: `top` is outside (0, 1].
    """
    if not 0.0 < top <= 1.0:
        raise ParameterError(f"the share of locations {top} is outside (0, 1]", remedy="Give such as 0.1")
    if maps.ndim != 3:
        raise ValueError(f"maps are (N, h, w), not {maps.shape}")
    energy = maps.reshape(len(maps), maps.shape[1] * maps.shape[2]).astype(np.float64)
    known = np.isfinite(energy).all(axis=1, keepdims=True)
    energy = np.where(known, energy, 0.0).clip(min=0.0)
    largest = energy.max(axis=1, keepdims=True)
    energy = energy / np.where(largest > 0, largest, 1.0)  # to 1, lest sums of tiny or huge values leave the range
    total = energy.sum(axis=1)
    # Counted from the strongest, location i weighs 1 as long as it lies whole within the top, then what is left of it.
    weights = (top * energy.shape[1] - np.arange(energy.shape[1])).clip(0.0, 1.0)
    held = np.sort(energy, axis=1)[:, ::-1] @ weights
    shares = np.full(len(maps), np.nan)
    np.divide(held, total, out=shares, where=total > 0)
    return shares


@dataclass(frozen=True, slots=True)
class FeatureAttribution:
    """A batch of photos' features by location, and each location's part in a linear function of the pooled vector.

    Attributes:
        activation: (N, h, w) float, L2 norm over channels of the features that are read.
        vectors: (N, D) float, the descriptors before they get unit length.
        attribute: (N, D) gradients of some score by `vectors` → (N, h, w) parts of each location in that score.
    """

    activation: Tensor
    vectors: Tensor
    attribute: Callable[[Tensor], Tensor]

    @property
    def descriptors(self) -> Tensor:
        """(N, D) float, unit rows."""
        return functional.normalize(self.vectors, dim=1)

    def contributions(self, others: Tensor) -> Tensor:
        """Each location's part in the cosine with other descriptors, the length of this one held fixed.

        Args:
            others: (N, D) unit rows.

        Returns:
            (N, h, w) float, signed.
        """
        lengths = self.vectors.norm(dim=1, keepdim=True).clamp(min=_SMALLEST_LENGTH)
        return self.attribute(others / lengths)


def attribute_features(net: DescriptorNet, images: Tensor) -> FeatureAttribution:
    """Attribute the vectors of photos to locations, by a net in evaluation mode; the caller turns gradients off.

    Args:
        net: with any pooling of `training.descriptor_net`.
        images: (N, 3, H, W) float, normalised, on the net's device.

    Raises:
        ParameterError: class-token pooling without a last attention that could be read.
    """
    if isinstance(net.pool, GeM):
        return _attribute_gem(net, net.pool, images)
    if isinstance(net.pool, VladOfLayers):
        return _attribute_vlad(net, net.pool, images)
    return _attribute_attention(net, images)


def _attribute_gem(net: DescriptorNet, pool: GeM, images: Tensor) -> FeatureAttribution:
    """Split each channel's generalised mean by what the locations add to its sum of p-th powers.

    GeM is homogeneous of degree one, so by Euler's theorem this is gradient × activation, and parts add up to the whole
    without a remainder. For average pooling (p = 1) it is the decomposition of Stylianou et al., "Visualizing Deep
    Similarity Networks", WACV 2019. With `normalise_locations` the unit vectors are split: raw lengths never reach the
    descriptor, and gradient × activation before that norm would be zero everywhere.
    """
    backbone: Any = net.backbone
    features: Tensor = backbone.forward_features(images)
    pooled = pool(features).detach()
    spatial = in_full_precision(_by_location(backbone, pool, features, images))
    activation = spatial.clamp(min=0).norm(dim=1)
    if pool.normalise_locations:
        spatial = functional.normalize(spatial, dim=1)
    # x^p / Σ x^p, as a softmax of logarithms: a learned p may be so large that powers leave the range of float32.
    powers = pool.p.detach() * spatial.clamp(min=GEM_MIN).log()
    shares = powers.flatten(2).softmax(dim=2).reshape(powers.shape)
    with torch.enable_grad():
        leaf = pooled.requires_grad_()
        vectors = in_full_precision(net.projection(leaf))

    def attribute(gradients: Tensor) -> Tensor:
        (by_channel,) = torch.autograd.grad(vectors, leaf, gradients, retain_graph=True)
        return torch.einsum("nc,nchw->nhw", by_channel * leaf.detach(), shares)

    return FeatureAttribution(activation, vectors.detach(), attribute)


def _attribute_vlad(net: DescriptorNet, pool: VladOfLayers, images: Tensor) -> FeatureAttribution:
    """Split each centroid's residual by the locations it is summed over, lengths and assignments held fixed.

    The parts add up without a remainder. Layers of coarser grids are spread over the finest one.
    """
    maps = net.local_descriptors(images)
    grid = max((spatial.shape[2:] for spatial in maps), key=lambda shape: shape[0] * shape[1])
    pooled = pool(maps).detach()
    activation = torch.stack([_spread(in_full_precision(spatial).norm(dim=1), grid) for spatial in maps]).mean(dim=0)
    with torch.enable_grad():
        leaf = pooled.requires_grad_()
        vectors = in_full_precision(net.projection(leaf))
    parts = [part for part in pool.parts if isinstance(part, Vlad)]
    sizes = [part.centroids.numel() for part in parts]

    def attribute(gradients: Tensor) -> Tensor:
        (by_number,) = torch.autograd.grad(vectors, leaf, gradients, retain_graph=True)
        summed = []
        for part, spatial, slopes in zip(parts, maps, by_number.split(sizes, dim=1), strict=True):
            shares = _shares_of_residuals(part, spatial, slopes.unflatten(1, part.centroids.shape))
            spread = _spread(shares, grid)
            summed.append(spread * (shares[0].numel() / spread[0].numel()))
        return torch.stack(summed).sum(dim=0)

    return FeatureAttribution(activation, vectors.detach(), attribute)


def _shares_of_residuals(part: Vlad, spatial: Tensor, slopes: Tensor) -> Tensor:
    """(N, C, h, w) local descriptors, (N, K, C) gradients by the aggregated ones → (N, h, w) parts of the score."""
    local, assigned = part.assign(in_full_precision(spatial))
    residuals = assigned.transpose(1, 2) @ local - assigned.sum(dim=1).unsqueeze(2) * part.centroids
    lengths = residuals.norm(dim=2, keepdim=True).clamp(min=SMALLEST_RESIDUAL)
    slopes = slopes * part.scale / lengths
    along = local @ slopes.transpose(1, 2) - (slopes * part.centroids).sum(dim=2).unsqueeze(1)
    return (assigned * along).sum(dim=2).reshape(len(spatial), *spatial.shape[2:])


def _spread(values: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(N, h, w) on a finer grid, by area."""
    return functional.interpolate(values.unsqueeze(1), tuple(grid), mode="area").squeeze(1)


def _by_location(backbone: nn.Module, pool: GeM, features: Tensor, images: Tensor) -> Tensor:
    """(N, C, h, w) of what the pooling averages."""
    if isinstance(pool, ChannelsLastGeM):
        return features.permute(0, 3, 1, 2)
    if isinstance(pool, PatchGeM):
        patches = features[:, pool.prefix_tokens :].transpose(1, 2)
        return patches.reshape(*patches.shape[:2], *_grid(backbone, images, patches.shape[2]))
    return features


def _attribute_attention(net: DescriptorNet, images: Tensor) -> FeatureAttribution:
    """Gradient × activation of the tokens that enter the last attention, which hands the patches to the class token.

    After that layer a patch has no gradient, for only the class token is read. Before the norm in front of it the
    product is zero, for a norm undoes any change of a token's length. It is a first-order share (HiResCAM, Draelos &
    Carin 2020, at the layer that is usual for Grad-CAM on transformers): it need not add up to the score, part of which
    passes through the class token alone. Activation is the magnitude of the patches that enter the last block.
    """
    backbone: Any = net.backbone
    block, attention = _last_attention(backbone)
    entering: list[Tensor] = []
    leaves: list[Tensor] = []

    def remember(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        entering[:] = [arguments[0].detach()]

    def start_gradients(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        torch.set_grad_enabled(True)  # from here on; the caller's setting comes back when this block is left
        leaves[:] = [arguments[0].detach().requires_grad_()]
        return (leaves[0], *arguments[1:])

    hooks = [block.register_forward_pre_hook(remember), attention.register_forward_pre_hook(start_gradients)]
    try:
        with torch.no_grad():
            vectors = in_full_precision(net.projection(net.pool(backbone.forward_features(images))))
    finally:
        for hook in hooks:
            hook.remove()
    leaf = leaves[0]
    patches = leaf.shape[1] - int(getattr(backbone, "num_prefix_tokens", 0))
    grid = _grid(backbone, images, patches)

    def attribute(gradients: Tensor) -> Tensor:
        (by_token,) = torch.autograd.grad(vectors, leaf, gradients, retain_graph=True)
        return (by_token * leaf.detach()).sum(dim=2)[:, -patches:].reshape(-1, *grid)

    activation = in_full_precision(entering[0])[:, -patches:].norm(dim=2).reshape(-1, *grid)
    return FeatureAttribution(activation, vectors.detach(), attribute)


def _last_attention(backbone: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The last block that has an attention, by timm's name `attn`, and this attention."""
    names = [name for name, _ in backbone.named_modules() if name.rpartition(".")[2] == "attn"]
    if not names:
        raise ParameterError(
            "the backbone reads its class token from layers that heat maps do not know",
            remedy="Choose a transformer of timm whose blocks have `attn`, or GeM pooling",
        )
    return backbone.get_submodule(names[-1].rpartition(".")[0]), backbone.get_submodule(names[-1])


def _grid(backbone: Any, images: Tensor, patches: int) -> tuple[int, int]:
    """Rows and columns of the patches: as the patch embedding says, else those of square patches."""
    stated = getattr(getattr(backbone, "patch_embed", None), "grid_size", None)
    if stated is not None and stated[0] * stated[1] == patches:
        return int(stated[0]), int(stated[1])
    height, width = images.shape[2:]
    side = (height * width / max(1, patches)) ** 0.5
    grid = round(height / side), round(width / side)
    if grid[0] * grid[1] != patches:
        raise ParameterError(
            f"{patches} patches do not lie on a grid over {height} × {width} pixels",
            remedy="Choose a backbone that keeps one token a patch",
        )
    return grid


def _attribute(encoder: Encoder, images: NDArray[np.uint8]) -> FeatureAttribution:
    device = next(encoder.net.parameters()).device
    pixels = torch.tensor(images, device=device).permute(0, 3, 1, 2)  # a copy: memory-mapped photos are read-only
    return attribute_features(encoder.net, encoder.normalisation.apply(pixels))


def _batches(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"images are (N, H, W, 3) uint8, not {images.shape} {images.dtype}")
    return (images[begin : begin + _PHOTOS_AT_ONCE] for begin in range(0, max(1, len(images)), _PHOTOS_AT_ONCE))


def _numpy(values: Tensor) -> NDArray[np.float32]:
    return np.asarray(values.detach().float().cpu().numpy(), np.float32)
