"""Backbones from timm by name: built, sized, and asked what their features look like."""

import copy
import difflib
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from retrieval.errors import ParameterError, SightfixError
from training.normalisation import InputNormalisation
from training.torchvision_ops import define_missing_operators

Layout = Literal["channels_first", "channels_last", "tokens"]


class DownloadError(SightfixError):
    """Pretrained weights that could not be downloaded."""

    default_code = "download_failed"


@dataclass(frozen=True, slots=True)
class FeatureShape:
    """What a backbone's `forward_features` returns.

    Attributes:
        layout: `channels_first` (N, C, h, w), `channels_last` (N, h, w, C) or `tokens` (N, T, C).
        channels: C.
        prefix_tokens: how many tokens stand before the patches; 0 for a spatial map.
        distilled: whether the second token is DeiT's distillation token.
    """

    layout: Layout
    channels: int
    prefix_tokens: int = 0
    distilled: bool = False


def timm_backbone(name: str, *, hub_weights: bool = False) -> nn.Module:
    """A timm model by name without its classifier, at the image size it was made for.

    Args:
        name: for example `resnet50.tv_in1k`; the part after the dot says which pretrained weights are meant.
        hub_weights: download these weights (or take them from the download cache); random ones otherwise.

    Raises:
        ParameterError: timm knows no such model or weights.
        DownloadError: the weights could not be downloaded.
    """
    define_missing_operators()
    import timm

    _check_name(name)
    try:
        # With the classifier, because timm then insists that all weights are there; without, it lets random ones pass.
        model: Any = timm.create_model(name, pretrained=hub_weights)
    except (OSError, RuntimeError) as error:
        if not hub_weights:
            raise
        raise DownloadError(
            f"the weights of {name} could not be downloaded ({_first_line(error)})",
            remedy="Check the network, or give the weights as a file with network.pretrained=FILE",
        ) from error
    model.reset_classifier(0)
    built: nn.Module = model
    return built


def _check_name(name: str) -> None:
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3)
        suggestion = f"Did you mean {' or '.join(near)}? " if near else ""
        raise ParameterError(
            f"timm has no model {name!r}",
            remedy=f"{suggestion}All names are listed by timm.list_models()",
            code="unknown_backbone",
        )
    architecture, _, tag = name.partition(".")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise ParameterError(
            f"timm has no weights {tag!r} for {architecture}",
            remedy=f"Choose one of {', '.join(tags)}" if tags else f"Write {architecture} alone",
            code="unknown_backbone",
        )


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


def input_normalisation(backbone: nn.Module) -> InputNormalisation:
    """How timm's weights of this backbone want their input, by its `pretrained_cfg`."""
    config: Any = backbone.pretrained_cfg
    return InputNormalisation.of_unit_range(config["mean"], config["std"])


def classifier_names(backbone: nn.Module) -> tuple[str, ...]:
    """The names of the classifier's modules in weights of the whole timm model, such as `fc`."""
    config: Any = backbone.pretrained_cfg
    names: str | tuple[str, ...] = config.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def set_image_size(backbone: nn.Module, height: int, width: int) -> None:
    """Make a vision transformer take images of this size; its position embedding is resampled (bicubic, antialiased).

    Convolutional nets take any size and are left alone. VG-SSL resamples bilinearly.

    Raises:
        ParameterError: a side is not a multiple of the patch size.
    """
    model: Any = backbone
    if not hasattr(model, "set_input_size"):
        return
    patch_height, patch_width = model.patch_embed.patch_size
    if height % patch_height or width % patch_width:
        nearest = f"{_nearest_multiple(height, patch_height)} × {_nearest_multiple(width, patch_width)}"
        raise ParameterError(
            f"images of {height} × {width} pixels do not divide into patches of {patch_height} × {patch_width}",
            remedy=f"Set image.height and image.width to {nearest}",
        )
    model.set_input_size((height, width))


def _nearest_multiple(size: int, of: int) -> int:
    return max(1, round(size / of)) * of


def examine_features(backbone: nn.Module, height: int, width: int) -> FeatureShape:
    """Find out what a backbone's features look like, and freeze the weights that do not lead to them.

    Some timm models keep layers for their classifier (ConvNeXt's last norm). Trained they never are, and distributed
    training stops at parameters without a gradient. Runs on the meta device: no arithmetic is done.

    Args:
        backbone: from `timm_backbone`.
        height, width: of the images, pixels.

    Raises:
        ParameterError: the backbone cannot take images of this size, or its features are neither a map nor tokens.
    """
    sketch: Any = copy.deepcopy(backbone).to("meta").train()
    try:
        features: Tensor = sketch.forward_features(torch.zeros((2, 3, height, width), device="meta"))
    except (AssertionError, RuntimeError) as error:
        raise ParameterError(
            f"the backbone cannot take images of {height} × {width} pixels ({_first_line(error)})",
            remedy="Choose another image size or another backbone",
        ) from error
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        raise ParameterError(
            "the backbone's features are neither one spatial map nor tokens", remedy="Choose another backbone"
        )
    features.sum().backward()  # type: ignore[no-untyped-call]
    unused = [name for name, parameter in sketch.named_parameters() if parameter.grad is None]
    for name in unused:
        backbone.get_parameter(name).requires_grad_(False)
    return _shape_of(features, backbone)


def _shape_of(features: Tensor, backbone: Any) -> FeatureShape:
    if features.ndim == 3:
        prefix_tokens = int(getattr(backbone, "num_prefix_tokens", 0))
        return FeatureShape("tokens", features.shape[2], prefix_tokens, hasattr(backbone, "dist_token"))
    if getattr(backbone, "output_fmt", "NCHW") == "NHWC":
        return FeatureShape("channels_last", features.shape[3])
    return FeatureShape("channels_first", features.shape[1])
