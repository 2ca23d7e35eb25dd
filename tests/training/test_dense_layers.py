"""Layers of a backbone by name, and what they give."""

import pytest
import torch

from retrieval.bundle import layer_and_weight, layer_text, open_bundle
from retrieval.errors import ParameterError
from training.backbones import set_image_size, timm_backbone
from training.dense_layers import cut_after, dense_layers, reading


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet18", ["layer3", "layer4"]),
        ("tf_efficientnet_lite0", ["blocks.3", "blocks.4", "blocks.5.2"]),
        ("efficientnet_lite2", ["blocks.3", "blocks.4", "blocks.5.2"]),
        ("tf_efficientnet_lite3.in1k", ["blocks.4", "blocks.5"]),
        ("mobilenetv3_small_050", ["blocks.3", "blocks.5"]),
        ("test_convnext", ["stages.2", "stages.3"]),
        ("regnetx_002", ["s3", "s4"]),
        ("swin_s3_tiny_224", ["layers.2", "layers.3"]),
        ("deit_tiny_distilled_patch16_224", ["blocks.9:value"]),
        # Its attention has no bias of the keys, and so no module that gives all three.
        ("eva02_tiny_patch14_224", ["blocks.9"]),
    ],
)
def test_the_layers_of_each_family(name: str, layers: list[str]) -> None:
    found = dense_layers(timm_backbone(name), 224, 224)
    assert [layer.name for layer in found] == layers


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "efficientnet_lite0.ra_in1k", "tf_efficientnet_lite1"])
def test_efficientnet_lite_has_the_layers_and_weights_of_the_shipped_bundle(name: str) -> None:
    shipped = [(output.layer, output.channels, output.weight) for output in open_bundle().manifest.dense_outputs]
    found = [(layer.name, layer.channels, layer.weight) for layer in dense_layers(timm_backbone(name), 96, 96)]
    assert found == shipped == [("blocks.3", 80, 0.5), ("blocks.4", 112, 1.0), ("blocks.5.2", 192, 1.0)]


def test_layers_behind_the_end_are_none_of_the_defaults() -> None:
    backbone = timm_backbone("tf_efficientnet_lite0")
    cut_after(backbone, dense_layers(backbone, 64, 64, ["4"]), 64, 64)
    assert [(layer.name, layer.weight) for layer in dense_layers(backbone, 64, 64)] == [
        ("blocks.3", 0.5),
        ("blocks.4", 1.0),
    ]


def test_weights_as_users_write_them() -> None:
    found = dense_layers(timm_backbone("test_vit"), 160, 160, ["4:0.5", " 2:value:2 ", "blocks.1:token:1e-1", "3"])
    assert [(layer.name, layer.weight) for layer in found] == [
        ("blocks.4", 0.5),
        ("blocks.2:value", 2.0),
        ("blocks.1", 0.1),
        ("blocks.3", 1.0),
    ]


@pytest.mark.parametrize("weight", ["0", "-1", "0.5x", "", "1001", "0,5"])
def test_what_is_no_weight_is_refused(weight: str) -> None:
    asked = f"layer3:{weight}".split(",")
    text = rf"the weight '{weight.partition(',')[0]}' of layer3 is not a number above 0 and up to 1000. Write such as"
    with pytest.raises(ParameterError, match=text) as caught:
        dense_layers(timm_backbone("test_resnet"), 160, 160, asked)
    assert caught.value.code == "bad_weight"


@pytest.mark.parametrize("text", ["layer3", "blocks.9:value", "blocks.3:0.5", "blocks.9:value:2"])
def test_layers_are_written_as_they_are_read(text: str) -> None:
    assert layer_text(*layer_and_weight(f" {text} ")) == text


@pytest.mark.parametrize(
    ("name", "asked", "layers"),
    [
        ("test_resnet", ["2", " layer1 ", "layer3.0.conv1"], ["layer2", "layer1", "layer3.0.conv1"]),
        ("test_vit", ["4", "2:value", "blocks.1:token"], ["blocks.4", "blocks.2:value", "blocks.1"]),
    ],
)  # fmt: skip
def test_layers_as_users_write_them(name: str, asked: list[str], layers: list[str]) -> None:
    found = dense_layers(timm_backbone(name), 160, 160, asked)
    assert [layer.name for layer in found] == layers


@pytest.mark.parametrize(
    ("name", "asked", "text"),
    [
        ("test_resnet", "5", "no layer '5' that gives one map. Choose among layer1, layer2, layer3, layer4."),
        ("test_resnet", "5:0.5", "no layer '5' that gives one map"),
        ("test_resnet", "layer3:half", "no layer 'layer3:half' that gives one map"),
        ("test_resnet", "layer3:value", "no layer 'layer3:value' that gives one map. Choose among layer1, "),
        ("test_vit", "2:key", r"no layer '2:key' that gives one map. Choose among blocks.0, .*; with :value after it"),
        ("test_vit", "head", "no layer 'head' that gives one map"),
    ],
)
def test_a_layer_that_is_not_there_is_refused_with_those_that_are(name: str, asked: str, text: str) -> None:
    with pytest.raises(ParameterError, match=text) as caught:
        dense_layers(timm_backbone(name), 160, 160, [asked])
    assert caught.value.code == "unknown_layer"


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("test_resnet", ["2", "3"]),
        ("test_vit", ["2", "5"]),
        ("test_convnext", ["0", "3"]),
        ("swin_s3_tiny_224", ["1", "2"]),
    ],
)
def test_maps_are_those_of_timm_itself(name: str, asked: list[str]) -> None:
    torch.manual_seed(0)
    backbone = timm_backbone(name).eval()
    height, width = (224, 224) if name.startswith("swin") else (96, 128)
    set_image_size(backbone, height, width)
    layers = dense_layers(backbone, height, width, asked)
    images = torch.rand(2, 3, height, width)
    with torch.no_grad():
        stages = backbone.forward_intermediates(images, norm=False, output_fmt="NCHW", intermediates_only=True)
        with reading(backbone, layers) as found:
            backbone.forward_features(images)
    for number, layer in zip(asked, layers, strict=True):
        theirs = stages[int(number)]
        assert found[layer.name].shape == theirs.shape == (2, layer.channels, *layer.grid)
        assert torch.equal(found[layer.name], theirs)


def test_nothing_is_left_in_the_backbone() -> None:
    backbone = timm_backbone("test_resnet").eval()
    layers = dense_layers(backbone, 64, 64)
    with torch.no_grad(), reading(backbone, layers) as found:
        backbone.forward_features(torch.rand(1, 3, 64, 64))
        once = dict(found)
    with torch.no_grad():
        backbone.forward_features(torch.rand(1, 3, 64, 64))
    assert all(found[name] is tensor for name, tensor in once.items())
    assert not any(module._forward_hooks for module in backbone.modules())
