import pytest
import torch
from torch.nn import functional

from retrieval.errors import ParameterError
from retrieval.images import Preprocessing
from tests.retrieval.refusal import refused
from tests.training.small_encoder import small_encoder, small_recipe
from training.encoder import build_encoder
from training.recipe import load_recipe
from training.recipe_settings import NetworkSettings

SMALL = Preprocessing(height=64, width=96)


def small(backbone: str, **changes: object) -> NetworkSettings:
    return NetworkSettings.model_validate({"backbone": backbone, "pretrained": "none", **changes})


@pytest.mark.parametrize(
    ("recipe_name", "millions", "descriptor_dim"), [("simclr-resnet50", 25.6, 1024), ("simclr-deit-small", 22.2, 256)]
)
def test_the_paper_networks_at_their_size(recipe_name: str, millions: float, descriptor_dim: int) -> None:
    recipe = load_recipe(recipe_name, ["network.pretrained=none"])
    encoder = build_encoder(recipe.network, recipe.image)
    count = sum(parameter.numel() for parameter in encoder.net.parameters())
    assert round(count / 1e6, 1) == millions
    assert all(parameter.requires_grad for parameter in encoder.net.parameters())
    with torch.inference_mode():
        descriptors = encoder.net.eval()(torch.randn(1, 3, 480, 640))
    assert descriptors.shape == (1, descriptor_dim)
    assert encoder.descriptor_dim == descriptor_dim
    torch.testing.assert_close(descriptors.norm(dim=1), torch.ones(1))


@pytest.mark.parametrize(
    ("network", "descriptor_dim"),
    [
        (small("test_resnet"), 96),
        (small("test_resnet", descriptor_dim=16, l2_before_pool=True), 16),
        (small("test_vit", pooling="class_token"), 64),
        (small("test_vit", pooling="patch_gem", descriptor_dim=16), 16),
        (small("test_efficientnet", descriptor_dim=8), 8),
    ],
)
def test_descriptors_are_unit_rows_and_everything_learns(network: NetworkSettings, descriptor_dim: int) -> None:
    net = build_encoder(network, SMALL).net
    descriptors = net(torch.randn(3, 3, 64, 96))
    assert descriptors.shape == (3, descriptor_dim)
    torch.testing.assert_close(descriptors.norm(dim=1), torch.ones(3))
    descriptors[:, 0].sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters() if parameter.requires_grad)


def test_distilled_heads_agree_with_timm() -> None:
    network = small("deit_tiny_distilled_patch16_224", pooling="distilled_heads", descriptor_dim=12)
    net = build_encoder(network, SMALL).net.eval()
    backbone = net.backbone
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        ours = net(images)
        backbone.head, backbone.head_dist = net.pool.head, net.pool.head_dist
        torch.testing.assert_close(ours, functional.normalize(backbone(images), dim=1))


def test_descriptors_stay_exact_under_autocast() -> None:
    encoder = small_encoder(small_recipe())
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        descriptors = encoder.net(torch.randn(2, 3, 64, 96))
    assert descriptors.dtype == torch.float32
    torch.testing.assert_close(descriptors.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize(
    ("backbone", "pooling", "possible"),
    [
        ("test_resnet", "class_token", "gem"),
        ("test_vit", "gem", "patch_gem or class_token"),
        ("test_vit", "distilled_heads", "patch_gem or class_token"),
    ],
)
def test_a_pooling_that_does_not_suit_names_those_that_do(backbone: str, pooling: str, possible: str) -> None:
    text = f"the pooling {pooling} does not suit the backbone {backbone}. Set network.pooling to {possible}."
    with refused(ParameterError, text, "validation_error"):
        build_encoder(small(backbone, pooling=pooling), SMALL)


def test_an_encoder_says_where_it_comes_from() -> None:
    encoder = small_encoder(small_recipe("network.l2_before_pool=true"))
    assert encoder.provenance.backbone == "test_resnet.r160_in1k"
    assert encoder.provenance.aggregation == "L2 per location, GeM from p=3"
    assert encoder.provenance.training_data == "never trained for places"
    assert encoder.provenance.objective is None
    trained = encoder.trained("simclr", "town, 60 photos", {"R@1": 0.5})
    assert trained.net is encoder.net
    assert (trained.provenance.objective, trained.provenance.recalls) == ("simclr", {"R@1": 0.5})
