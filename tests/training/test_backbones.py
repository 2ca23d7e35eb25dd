import huggingface_hub.constants
import pytest
import torch

from retrieval.errors import ParameterError
from tests.retrieval.refusal import refused
from training.backbones import (
    DownloadError,
    FeatureShape,
    classifier_names,
    examine_features,
    input_normalisation,
    set_image_size,
    timm_backbone,
)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("test_resnet", FeatureShape("channels_first", 96)),
        ("test_vit", FeatureShape("tokens", 64, prefix_tokens=1)),
        ("swin_s3_tiny_224", FeatureShape("channels_last", 768)),
        ("deit_tiny_distilled_patch16_224", FeatureShape("tokens", 192, prefix_tokens=2, distilled=True)),
    ],
)
def test_what_features_look_like(name: str, shape: FeatureShape) -> None:
    assert examine_features(timm_backbone(name), *((160, 160) if name == "test_vit" else (224, 224))) == shape


def test_a_transformer_takes_the_asked_size_and_a_net_of_convolutions_takes_any() -> None:
    vit = timm_backbone("test_vit")
    set_image_size(vit, 96, 128)
    assert vit.forward_features(torch.zeros(1, 3, 96, 128)).shape == (1, 1 + 6 * 8, 64)
    set_image_size(timm_backbone("test_resnet"), 97, 131)


def test_a_size_that_patches_do_not_divide() -> None:
    text = (
        "images of 100 × 128 pixels do not divide into patches of 16 × 16. "
        "Set image.height and image.width to 96 × 128 in a recipe; sightfix export takes --size 96x128."
    )
    with refused(ParameterError, text, "validation_error"):
        set_image_size(timm_backbone("test_vit"), 100, 128)


def test_weights_that_lead_nowhere_are_frozen() -> None:
    backbone = timm_backbone("test_convnext")
    examine_features(backbone, 64, 64)
    frozen = [name for name, parameter in backbone.named_parameters() if not parameter.requires_grad]
    assert frozen == ["head.norm.weight", "head.norm.bias"]
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    backbone.forward_features(torch.rand(2, 3, 64, 64)).sum().backward()
    assert all(parameter.grad is not None for parameter in trained)


def test_normalisation_and_classifier_are_those_of_the_named_weights() -> None:
    inception = input_normalisation(timm_backbone("tf_efficientnet_lite0"))
    assert inception.mean == inception.std == (127.5, 127.5, 127.5)
    resnet = timm_backbone("resnet18")
    assert input_normalisation(resnet).mean == pytest.approx((123.675, 116.28, 103.53))
    assert classifier_names(resnet) == ("fc",)
    assert classifier_names(timm_backbone("deit_tiny_distilled_patch16_224")) == ("head", "head_dist")


def test_an_unknown_model_gets_a_suggestion() -> None:
    with pytest.raises(ParameterError, match=r"timm has no model 'resnet_50'\. Did you mean resnet50 or") as caught:
        timm_backbone("resnet_50")
    assert caught.value.code == "unknown_backbone"


def test_unknown_weights_list_the_choices() -> None:
    text = "timm has no weights 'imagenet' for deit_small_distilled_patch16_224. Choose one of fb_in1k."
    with refused(ParameterError, text, "unknown_backbone"):
        timm_backbone("deit_small_distilled_patch16_224.imagenet")


def test_without_a_network_the_download_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DownloadError) as caught:
        timm_backbone("test_resnet.r160_in1k", hub_weights=True)
    assert str(caught.value).startswith("the weights of test_resnet.r160_in1k could not be downloaded (")
    assert str(caught.value).endswith(
        "). Check the network, or give the weights as a file: network.pretrained=FILE of a recipe, --weights FILE of "
        "sightfix export."
    )
    assert caught.value.code == "download_failed"


def test_a_model_without_published_weights_cannot_be_downloaded() -> None:
    with pytest.raises(DownloadError, match="No pretrained weights exist"):
        timm_backbone("convnext_atto_rms", hub_weights=True)
