"""Heat maps against numbers worked out on paper, against finite differences, and on timm's smallest nets."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from retrieval.bundle import Provenance
from retrieval.errors import ParameterError
from retrieval.images import Preprocessing
from tests.training.small_encoder import small_encoder, small_recipe
from training.backbones import InputNormalisation, examine_features
from training.descriptor_net import ChannelsLastGeM, ClassToken, DescriptorNet, DistilledHeads, GeM, PatchGeM
from training.encoder import Encoder
from training.heat_maps import attribute_features, heat_maps
from training.torchvision_ops import define_missing_operators

PHOTO = Preprocessing(height=64, width=96)


class Pixels(nn.Module):
    """A backbone whose features are the pixels themselves."""

    def __init__(self, arrange: Callable[[Tensor], Tensor] = lambda images: images) -> None:
        super().__init__()
        self.arrange = arrange

    def forward_features(self, images: Tensor) -> Tensor:
        return self.arrange(images)


class AveragingBlock(nn.Module):
    """A block of a transformer whose attention gives every token the mean of all."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = Averaging()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.attn(2 * tokens)


class Averaging(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(dim=1, keepdim=True).expand_as(tokens)


class AveragingTransformer(nn.Module):
    """Tokens are a class token of zeros and the pixels, through one block."""

    num_prefix_tokens = 1

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(AveragingBlock())

    def forward_features(self, images: Tensor) -> Tensor:
        patches = images.flatten(2).transpose(1, 2)
        return self.blocks(torch.cat([torch.zeros_like(patches[:, :1]), patches], dim=1))


def as_encoder(net: DescriptorNet, dim: int = 3) -> Encoder:
    """An encoder that shows the net 8-bit RGB as it is."""
    net.register_parameter("anchor", nn.Parameter(torch.zeros(1)))  # says on which device the net is
    plain = InputNormalisation(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    words = Provenance(backbone="toy", aggregation="toy", weights="none", weights_licence="none", training_data="none")
    return Encoder(net.eval(), dim, PHOTO, plain, words)


def pixels(*locations: tuple[int, int, int]) -> np.ndarray:
    """(1, 1, L, 3): a photo of one row."""
    return np.array([[locations]], np.uint8)


A = pixels((3, 0, 0), (0, 4, 0))
B = pixels((0, 5, 0), (0, 5, 0))


def activation_maps(encoder: Encoder, images: np.ndarray) -> np.ndarray:
    return heat_maps(encoder, images, images).activation_a


def match_maps(encoder: Encoder, images_a: np.ndarray, images_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    maps = heat_maps(encoder, images_a, images_b)
    return maps.match_a, maps.match_b


def test_average_pooling_by_hand() -> None:
    """A is pooled to (1.5, 2, 0), of length 2.5; B points along green: cosine 0.8, all of it from A's second pixel."""
    encoder = as_encoder(DescriptorNet(Pixels(), GeM(1.0)))
    maps = heat_maps(encoder, A, B)
    assert maps.scores.tolist() == pytest.approx([0.8], abs=1e-5)
    np.testing.assert_allclose(maps.match_a, [[[0.0, 0.8]]], atol=1e-5)
    np.testing.assert_allclose(maps.match_b, [[[0.4, 0.4]]], atol=1e-5)
    np.testing.assert_allclose(maps.activation_a, [[[3.0, 4.0]]])
    np.testing.assert_allclose(maps.activation_b, [[[5.0, 5.0]]])


def test_a_photo_with_itself_gives_shares_of_its_descriptor() -> None:
    encoder = as_encoder(DescriptorNet(Pixels(), GeM(1.0)))
    own, same = match_maps(encoder, A, A)
    np.testing.assert_allclose(own, [[[0.36, 0.64]]], atol=1e-5)
    assert np.array_equal(own, same)
    assert np.array_equal(own, match_maps(encoder, A, A.copy())[1])


def test_gem_by_hand() -> None:
    """With p = 3 values of 1 and 2 have 1/9 and 8/9 of the sum of cubes."""
    encoder = as_encoder(DescriptorNet(Pixels(), GeM(3.0)))
    own, _ = match_maps(encoder, pixels((1, 0, 0), (2, 0, 0)), B)
    np.testing.assert_allclose(own, 0.0, atol=1e-5)
    own, _ = match_maps(encoder, pixels((1, 0, 0), (2, 0, 0)), pixels((7, 0, 0), (0, 0, 0)))
    np.testing.assert_allclose(own, [[[1 / 9, 8 / 9]]], atol=1e-5)


def test_unit_length_before_pooling_by_hand() -> None:
    """Both pixels weigh alike then, however bright; the activation still says which is brighter."""
    encoder = as_encoder(DescriptorNet(Pixels(), GeM(1.0, normalise_locations=True)))
    np.testing.assert_allclose(match_maps(encoder, A, A)[0], [[[0.5, 0.5]]], atol=1e-5)
    np.testing.assert_allclose(activation_maps(encoder, A), [[[3.0, 4.0]]])


def test_a_projection_by_hand() -> None:
    """The first pixel opposes the match; the bias belongs to no location."""
    projection = nn.Linear(3, 2)
    with torch.no_grad():
        projection.weight.copy_(torch.tensor([[-1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
        projection.bias.copy_(torch.tensor([2.5, 0.0]))
    encoder = as_encoder(DescriptorNet(Pixels(), GeM(1.0), projection), 2)
    maps = heat_maps(encoder, A, B)  # A: -1.5 + 2 + 2.5 = 3; B: 5 + 2.5 = 7.5; both along the first axis
    assert maps.scores.tolist() == pytest.approx([1.0], abs=1e-5)
    np.testing.assert_allclose(maps.match_a, [[[-1.5 / 3, 2.0 / 3]]], atol=1e-5)
    np.testing.assert_allclose(maps.match_b, [[[2.5 / 7.5, 2.5 / 7.5]]], atol=1e-5)


def test_attention_by_hand() -> None:
    """Its class token is the mean of three tokens, one of them zero: each patch adds a third of itself, doubled."""
    encoder = as_encoder(DescriptorNet(AveragingTransformer(), ClassToken()))
    maps = heat_maps(encoder, A, B)
    np.testing.assert_allclose(maps.scores, [0.8], atol=1e-6)
    np.testing.assert_allclose(maps.match_a, [[[0.0, 0.8]]], atol=1e-6)
    np.testing.assert_allclose(maps.match_b, [[[0.4, 0.4]]], atol=1e-6)
    np.testing.assert_allclose(maps.activation_a, [[[3.0, 4.0]]])


def fixed_length_score(vectors: Tensor, before: Tensor, others: Tensor) -> Tensor:
    """The cosine by its numerator alone: the length stays what it was."""
    return (vectors * others).sum(dim=1) / before.norm(dim=1)


ARRANGED: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[float], GeM]]] = {
    "channels first": (lambda x: x, GeM),
    "channels last": (lambda x: x.permute(0, 2, 3, 1), ChannelsLastGeM),
    "patches": (
        lambda x: torch.cat([x.flatten(2)[..., :2], x.flatten(2)], 2).transpose(1, 2),
        lambda p: PatchGeM(2, p),
    ),
}


@pytest.mark.parametrize("arranged", ARRANGED)
@pytest.mark.parametrize("p", [1.0, 3.0, 4.5])
def test_contributions_are_finite_differences(arranged: str, p: float) -> None:
    """A location's contribution is how the score grows as its features do."""
    random = torch.Generator().manual_seed(0)
    arrange, pool = ARRANGED[arranged]
    net = DescriptorNet(Pixels(arrange), pool(p), nn.Linear(5, 4)).double().eval()
    images = torch.randn(2, 5, 3, 4, dtype=torch.float64, generator=random)  # negative ones are clamped by the pooling
    others = nn.functional.normalize(torch.randn(2, 4, dtype=torch.float64, generator=random), dim=1)
    with torch.no_grad():
        seen = attribute_features(net, images)
        found = seen.contributions(others)
        step, slow = 1e-6, torch.empty(2, 3, 4, dtype=torch.float64)
        for row in range(3):
            for column in range(4):
                scores = []
                for sign in (1, -1):
                    changed = images.clone()
                    changed[:, :, row, column] *= 1 + sign * step
                    scores.append(fixed_length_score(attribute_features(net, changed).vectors, seen.vectors, others))
                slow[:, row, column] = (scores[0] - scores[1]) / (2 * step)
        whole = (seen.descriptors * others).sum(dim=1)
        bias = others @ net.projection.bias / seen.vectors.norm(dim=1)
    torch.testing.assert_close(found, slow, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(found.sum(dim=(1, 2)), whole - bias)
    torch.testing.assert_close(seen.activation, images.clamp(min=0).norm(dim=1))


def timm_net(name: str, pool: Callable[[int, int], nn.Module], **smaller: Any) -> DescriptorNet:
    """A narrow, shallow timm model with random weights for 64 × 96 pixels, in double precision."""
    define_missing_operators()
    import timm

    torch.manual_seed(0)
    backbone = timm.create_model(name, **smaller)
    backbone.reset_classifier(0)
    shape = examine_features(backbone, 64, 96)
    return DescriptorNet(backbone, pool(shape.channels, shape.prefix_tokens)).double().eval()


TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": (64, 96)}
NETS: dict[str, tuple[Callable[[], DescriptorNet], tuple[int, int]]] = {
    "resnet": (lambda: timm_net("test_resnet", lambda c, t: GeM()), (2, 3)),
    "swin": (
        lambda: timm_net(
            "swin_tiny_patch4_window7_224",
            lambda c, t: ChannelsLastGeM(),
            **{"embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "img_size": (64, 96), "window_size": 4},
        ),
        (8, 12),
    ),
    "vit patches": (lambda: timm_net("vit_tiny_patch16_224", lambda c, t: PatchGeM(t), **TINY), (4, 6)),
    "vit": (lambda: timm_net("vit_tiny_patch16_224", lambda c, t: ClassToken(), **TINY), (4, 6)),
    "deit": (
        lambda: timm_net("deit_tiny_distilled_patch16_224", lambda c, t: DistilledHeads(c, 8), **TINY),
        (4, 6),
    ),
    "registers": (
        lambda: timm_net("vit_small_patch16_dinov3", lambda c, t: ClassToken(), **TINY),
        (4, 6),
    ),
    "cait": (lambda: timm_net("cait_xxs24_224", lambda c, t: ClassToken(), **TINY), (4, 6)),
    "xcit": (
        lambda: timm_net(
            "xcit_nano_12_p16_224", lambda c, t: ClassToken(), **{"embed_dim": 24, "depth": 2, "num_heads": 2}
        ),
        (4, 6),
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_every_pooling_of_timm(name: str) -> None:
    """Attribution gives the net's own descriptors, without a trace left behind, on a grid as wide as the photo."""
    build, grid = NETS[name]
    net = build()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = net(images)
        seen = attribute_features(net, images)
        contributions = seen.contributions(expected.flip(0))
    torch.testing.assert_close(seen.descriptors, expected)
    assert seen.activation.shape == contributions.shape == (2, *grid)
    assert contributions.isfinite().all()
    assert contributions.abs().sum() > 0
    assert seen.activation.min() >= 0
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())
    alone = attribute_features(net, images[1:])
    torch.testing.assert_close(alone.activation, seen.activation[1:])


@pytest.mark.parametrize("name", ["vit", "deit"])
def test_attention_agrees_with_finite_differences(name: str) -> None:
    """Scale one patch where it enters the last attention, and the score grows by its contribution."""
    net = NETS[name][0]()
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    others = nn.functional.normalize(torch.arange(1.0, len(net(images)[0]) + 1, dtype=torch.float64), dim=0)[None]
    prefix = net.backbone.num_prefix_tokens

    def score_at(place: nn.Module, patch: int, factor: float, before: Tensor) -> Tensor:
        def scale(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            tokens = arguments[0].clone()
            tokens[:, prefix + patch] *= factor
            return (tokens, *arguments[1:])

        hook = place.register_forward_pre_hook(scale)
        vectors = net.projection(net.pool(net.backbone.forward_features(images)))
        hook.remove()
        return fixed_length_score(vectors, before, others)

    with torch.no_grad():
        seen = attribute_features(net, images)
        found = seen.contributions(others).flatten()
        block, step = net.backbone.blocks[-1], 1e-5
        for patch in (0, 7, 23):
            for place, expected in ((block.attn, found[patch]), (block, torch.zeros((), dtype=torch.float64))):
                up, down = (score_at(place, patch, 1 + sign * step, seen.vectors) for sign in (1, -1))
                # Before its norm a patch's length does not matter: only the class token is read after this block.
                assert ((up - down) / (2 * step)).item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-7)


def photos(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 96, 3), dtype=np.uint8)


@pytest.mark.parametrize("overrides", [(), ("network.l2_before_pool=true",), ("network.gem_p=40",)])
def test_an_encoders_maps_add_up_to_the_score(overrides: tuple[str, ...]) -> None:
    encoder = small_encoder(small_recipe(*overrides))
    a, b = photos(3), photos(3, seed=1)
    maps = heat_maps(encoder, a, b)
    net = encoder.net
    with torch.no_grad():
        inputs = [encoder.normalisation.apply(torch.from_numpy(side).permute(0, 3, 1, 2)) for side in (a, b)]
        described = [net(images) for images in inputs]
        lengths = net.projection(net.pool(net.backbone.forward_features(inputs[0]))).norm(dim=1)
        bias = (described[1] @ net.projection.bias / lengths).numpy()
    np.testing.assert_allclose(maps.scores, (described[0] * described[1]).sum(dim=1), atol=1e-6)
    np.testing.assert_allclose(maps.match_a.sum(axis=(1, 2)), maps.scores - bias, atol=1e-5)
    assert all(side.dtype == np.float32 for side in (maps.scores, maps.match_a, maps.match_b, maps.activation_a))


def test_channels_that_are_off_everywhere_do_no_harm() -> None:
    """p-th powers of the smallest value GeM knows leave the range of float32 here."""
    encoder = as_encoder(DescriptorNet(Pixels(), GeM(9.0)))
    own, _ = match_maps(encoder, A, A)
    assert np.isfinite(own).all()
    assert own.sum() == pytest.approx(1.0, abs=1e-5)
    black = pixels((0, 0, 0), (0, 0, 0))
    assert np.isfinite(match_maps(encoder, black, B)[0]).all()


def test_many_photos_give_the_same_as_each_alone() -> None:
    encoder = small_encoder(small_recipe())
    a, b = photos(18), photos(18, seed=1)
    maps = heat_maps(encoder, a, b)
    alone = heat_maps(encoder, a[17:], b[17:])
    np.testing.assert_allclose(maps.match_a[17:], alone.match_a, atol=1e-6)
    np.testing.assert_allclose(maps.activation_b[17:], alone.activation_b, rtol=1e-4)
    np.testing.assert_array_equal(activation_maps(encoder, a), maps.activation_a)
    np.testing.assert_array_equal(match_maps(encoder, a, b)[1], maps.match_b)
    np.testing.assert_array_equal(heat_maps(encoder, a, b).match_a, maps.match_a)
    assert activation_maps(encoder, a[:0]).shape == (0, 2, 3)


@pytest.mark.parametrize("network", [(), ("network.backbone=test_vit", "network.pooling=class_token")])
def test_the_net_is_left_as_it_was(network: tuple[str, ...]) -> None:
    """Any mode of any module, any mode of gradients around, and frozen photos: the same maps, nothing changed."""
    encoder = small_encoder(small_recipe(*network))
    a, b = photos(2), photos(2, seed=1)
    expected = heat_maps(encoder, a, b)
    a.flags.writeable = False
    weights = {name: value.clone() for name, value in encoder.net.state_dict().items()}
    encoder.net.train()
    encoder.net.pool.eval()
    modes = [module.training for module in encoder.net.modules()]
    for around in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with around:
            enabled = torch.is_grad_enabled()
            found = heat_maps(encoder, a, b)
            assert torch.is_grad_enabled() == enabled
        np.testing.assert_array_equal(found.match_a, expected.match_a)
        np.testing.assert_array_equal(found.activation_b, expected.activation_b)
    assert [module.training for module in encoder.net.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in encoder.net.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.net.parameters())
    assert any(parameter.requires_grad for parameter in encoder.net.parameters())


def test_what_heat_maps_refuse() -> None:
    encoder = small_encoder(small_recipe())
    with pytest.raises(ValueError, match=r"\(N, H, W, 3\) uint8, not \(64, 96, 3\) uint8"):
        activation_maps(encoder, photos(1)[0])
    with pytest.raises(ValueError, match="float64"):
        activation_maps(encoder, photos(1).astype(float))
    with pytest.raises(ValueError, match="2 photos cannot be paired with 1"):
        match_maps(encoder, photos(2), photos(1))
    blind = as_encoder(DescriptorNet(Pixels(lambda x: x.flatten(2).transpose(1, 2)), ClassToken()))
    with pytest.raises(ParameterError, match="class token from layers that heat maps do not know"):
        activation_maps(blind, A)


def test_patches_on_no_grid_are_refused() -> None:
    ragged = as_encoder(DescriptorNet(Pixels(lambda x: x.flatten(2)[..., :5].transpose(1, 2)), PatchGeM(0)))
    with pytest.raises(ParameterError, match="5 patches do not lie on a grid over 4 × 4 pixels"):
        activation_maps(ragged, np.ones((1, 4, 4, 3), np.uint8))
