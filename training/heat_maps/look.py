"""A net's look at a batch of photos: its features by location, and each location's part in a linear reading of it.

The cosine of two descriptors is z·t / |z|, where z is a photo's vector before it gets unit length and t the other
photo's descriptor. With |z| held fixed it is linear in z, so it can be shared out among the locations that z was pooled
from. Were |z| not held fixed, contributions would add up to zero whatever the photos show, since a cosine does not
change with the length of z; of a photo with itself every one would be zero.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from retrieval.errors import ParameterError
from training.descriptor_net import DescriptorNet
from training.pooling import ChannelsLastGeM, GeM, PatchGeM, in_full_precision

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
        net: with any pooling of `training.pooling`.
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
