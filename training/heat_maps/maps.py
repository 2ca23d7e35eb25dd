"""A net's look at a batch of photos: its features by location, and each location's part in a linear reading of it.

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

from retrieval.errors import ParameterError
from training.descriptor_net import ChannelsLastGeM, DescriptorNet, GeM, PatchGeM, in_full_precision
from training.encoder import Encoder, evaluating

_SMALLEST_LENGTH: Final = 1e-12  # as `functional.normalize`


@dataclass(frozen=True, slots=True)
class Look:
    """What a net made of a batch of photos.

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


def look(net: DescriptorNet, images: Tensor) -> Look:
    """Look at photos with a net in evaluation mode; the caller sees to that, and to gradients being off.

    Args:
        net: with any pooling of `training.descriptor_net`.
        images: (N, 3, H, W) float, normalised, on the net's device.

    Raises:
        ParameterError: class-token pooling without a last attention that could be read.
    """
    if isinstance(net.pool, GeM):
        return _look_through_gem(net, net.pool, images)
    return _look_through_attention(net, images)


def _look_through_gem(net: DescriptorNet, pool: GeM, images: Tensor) -> Look:
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
    powers = pool.p.detach() * spatial.clamp(min=pool.eps).log()
    shares = powers.flatten(2).softmax(dim=2).reshape(powers.shape)
    with torch.enable_grad():
        leaf = pooled.requires_grad_()
        vectors = in_full_precision(net.projection(leaf))

    def attribute(gradients: Tensor) -> Tensor:
        (by_channel,) = torch.autograd.grad(vectors, leaf, gradients, retain_graph=True)
        return torch.einsum("nc,nchw->nhw", by_channel * leaf.detach(), shares)

    return Look(activation, vectors.detach(), attribute)


def _by_location(backbone: nn.Module, pool: GeM, features: Tensor, images: Tensor) -> Tensor:
    """(N, C, h, w) of what the pooling averages."""
    if isinstance(pool, ChannelsLastGeM):
        return features.permute(0, 3, 1, 2)
    if isinstance(pool, PatchGeM):
        patches = features[:, pool.prefix_tokens :].transpose(1, 2)
        return patches.reshape(*patches.shape[:2], *_grid(backbone, images, patches.shape[2]))
    return features


def _look_through_attention(net: DescriptorNet, images: Tensor) -> Look:
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
    return Look(activation, vectors.detach(), attribute)


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


# Heat maps of photos: how strongly each location responds, and where the score of a pair comes from.

_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class HeatMaps:
    """The heat maps of N pairs of photos.

    Attributes:
        scores: (N,) float32, cosine of the two descriptors.
        activation_a, activation_b: (N, h, w) float32, see `activation_maps`.
        match_a, match_b: (N, h, w) float32, see `match_maps`.
    """

    scores: NDArray[np.float32]
    activation_a: NDArray[np.float32]
    activation_b: NDArray[np.float32]
    match_a: NDArray[np.float32]
    match_b: NDArray[np.float32]


def activation_maps(encoder: Encoder, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """How strongly each location responds: the L2 norm over channels of the features that enter pooling.

    Negative features count as zero where GeM clamps them. With L2 per location before pooling the norm is taken before
    it, so the map shows what the net found, not what reaches the descriptor. For class-token pooling the features are
    the patches that enter the last block.

    Args:
        encoder: its net is used where it is, in evaluation mode, and left as it was.
        images: (N, H, W, 3) uint8 RGB, as `decode_image` gives them with `encoder.preprocessing`.

    Returns:
        (N, h, w) float32, not negative.

    Raises:
        ParameterError: the backbone cannot be looked into.
    """
    with evaluating(encoder.net):
        return np.concatenate([_numpy(_look_at(encoder, batch).activation) for batch in _batches(images)])


def match_maps(
    encoder: Encoder, images_a: NDArray[np.uint8], images_b: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Where the score of each pair comes from: signed contributions to the cosine of the two descriptors.

    Gradient × activation, the descriptors' lengths held fixed. With GeM the map of either photo adds up to the score,
    less what the bias of a projection adds to every photo's score; with class-token pooling it is a first-order share.
    A photo paired with itself gives each location's share in its own descriptor.

    Args:
        encoder: as `activation_maps`.
        images_a, images_b: (N, H, W, 3) uint8 RGB; row i of one is paired with row i of the other.

    Returns:
        Two of (N, h, w) float32, in units of the score; positive supports the match, negative opposes it.

    Raises:
        ParameterError: the backbone cannot be looked into.
    """
    maps = heat_maps(encoder, images_a, images_b)
    return maps.match_a, maps.match_b


def heat_maps(encoder: Encoder, images_a: NDArray[np.uint8], images_b: NDArray[np.uint8]) -> HeatMaps:
    """Activation maps and match maps of pairs, and their scores; each photo goes through the net once.

    Args, Raises: as `match_maps`.
    """
    if len(images_a) != len(images_b):
        raise ValueError(f"{len(images_a)} photos cannot be paired with {len(images_b)}")
    pieces: list[tuple[NDArray[np.float32], ...]] = []
    with evaluating(encoder.net):
        for batch_a, batch_b in zip(_batches(images_a), _batches(images_b), strict=True):
            a = _look_at(encoder, batch_a)
            b = a if images_b is images_a else _look_at(encoder, batch_b)
            scores = (a.descriptors * b.descriptors).sum(dim=1)
            match_a, match_b = a.contributions(b.descriptors), b.contributions(a.descriptors)
            pieces.append(tuple(map(_numpy, (scores, a.activation, b.activation, match_a, match_b))))
    return HeatMaps(*(np.concatenate(kind) for kind in zip(*pieces, strict=True)))


def _look_at(encoder: Encoder, images: NDArray[np.uint8]) -> Look:
    device = next(encoder.net.parameters()).device
    pixels = torch.tensor(images, device=device).permute(0, 3, 1, 2)  # a copy: memory-mapped photos are read-only
    return look(encoder.net, encoder.normalisation.apply(pixels))


def _batches(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"images are (N, H, W, 3) uint8, not {images.shape} {images.dtype}")
    return (images[begin : begin + _AT_ONCE] for begin in range(0, max(1, len(images)), _AT_ONCE))


def _numpy(values: Tensor) -> NDArray[np.float32]:
    return np.asarray(values.detach().float().cpu().numpy(), np.float32)
