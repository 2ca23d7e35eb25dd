"""VLAD and backbones that end early: the numbers, what learns, what is left out, and the way to a bundle."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from export.exporting import write_export
from export.from_pytorch import checkpoint_model, encoder_model
from export.int8 import quantisable_layers
from export.precision import nodes_kept_in_fp32
from retrieval.bundle import DenseOutput
from retrieval.bundle.adaptation import adapt_bundle
from retrieval.bundle.adapted_graph import dense_describer
from retrieval.bundle.exportable import noise
from retrieval.bundle.onnx_graph import restore_fp32_weights, tidied
from retrieval.bundle.vlad import AdaptationSettings, aggregated, fit_vocabulary
from retrieval.describer import Describer
from retrieval.errors import ParameterError
from retrieval.images import Preprocessing
from tests.places import pattern
from tests.retrieval.refusal import refused
from tests.training.small_encoder import small_encoder, small_recipe
from training.checkpoint import load_encoder, save_encoder
from training.dense_layers import DenseLayer, dense_layers
from training.descriptor_net import Vlad, VladOfLayers
from training.encoder import Encoder, build_encoder
from training.heat_maps import heat_maps
from training.recipe import RecipeError
from training.recipe_settings import NetworkSettings

SMALL = Preprocessing(height=64, width=96)
VLAD = ["network.aggregation=vlad", "network.layers=layer2,layer3", "network.centroids=4"]


def small(backbone: str, **changes: object) -> NetworkSettings:
    settings = {"backbone": backbone, "pretrained": "none", "aggregation": "vlad", "centroids": 3}
    return NetworkSettings.model_validate({**settings, **changes})


def slow_vlad(
    cells: np.ndarray, mean: np.ndarray, deviation: np.ndarray, centroids: np.ndarray, sharpness: float
) -> np.ndarray:
    """(P, C) local descriptors of one photo → (K·C,), one cell and one centroid after another, float64."""
    residuals = np.zeros_like(centroids)
    for cell in cells:
        standard = (cell - mean) / deviation
        unit = standard / np.linalg.norm(standard)
        exponents = [sharpness * (float(c @ unit) - float(c @ c) / 2) for c in centroids]
        shares = np.exp(np.array(exponents) - max(exponents))
        for place, share in enumerate(shares / shares.sum()):
            residuals[place] += share * (unit - centroids[place])
    rows = [row / max(float(np.linalg.norm(row)), 0.1) for row in residuals]
    return np.concatenate(rows) / len(centroids) ** 0.5


@pytest.mark.parametrize("sharpness", [0.5, 10.0, 100.0])
@pytest.mark.parametrize(("channels", "centroids", "grid"), [(5, 1, (1, 1)), (5, 3, (3, 4)), (16, 8, (2, 7))])
def test_it_is_the_slow_sum(channels: int, centroids: int, grid: tuple[int, int], sharpness: float) -> None:
    torch.manual_seed(0)
    vlad = Vlad(channels, centroids, sharpness, share=0.25).double()
    maps = torch.randn(3, channels, *grid, dtype=torch.float64)
    vlad.mean.copy_(torch.randn(channels))
    vlad.deviation.copy_(torch.rand(channels) + 0.5)
    fitted = [vlad.mean.numpy(), vlad.deviation.numpy(), vlad.centroids.detach().numpy()]
    with torch.no_grad():
        found = vlad(maps).numpy()
    for photo, ours in zip(maps.numpy(), found, strict=True):
        expected = 0.25 * slow_vlad(photo.reshape(channels, -1).T, *fitted, sharpness)
        np.testing.assert_allclose(ours, expected, atol=1e-12)


@pytest.mark.parametrize("sharpness", [10.0, AdaptationSettings.sharpness])
def test_it_is_what_adapting_computes(sharpness: float) -> None:
    """On fitted vocabularies of three layers, one of them of so many channels that it is reduced; with weights."""
    rng = np.random.default_rng(0)
    sizes = [(12, (4, 6), 0.5), (600, (3, 5), 1.0), (20, (2, 3), 2.0)]
    settings = AdaptationSettings(centroids=5, sharpness=sharpness)
    maps, vocabularies, layers = [], [], []
    for number, (channels, (height, width), weight) in enumerate(sizes):
        names = {"layer": f"blocks.{number}", "channels": channels, "weight": weight}
        values = rng.gamma(1.0, size=(40, channels, height, width)) * rng.gamma(2.0, size=(channels, 1, 1)) - 0.2
        maps.append(values.astype(np.float32))
        vocabularies.append(fit_vocabulary(DenseOutput(tensor="x", **names), [maps[-1][:25], maps[-1][25:]], settings))
        place = {"name": names["layer"], "module": names["layer"], "grid": (height, width)}
        layers.append(DenseLayer(**place, channels=channels, layout="channels_first", weight=weight))
    expected, _ = aggregated(vocabularies, maps, sharpness)

    pool = VladOfLayers(layers, 5, sharpness)
    for part, vocabulary in zip(pool.parts, vocabularies, strict=True):
        part.begin_with(vocabulary)
    with torch.no_grad():
        found = pool([torch.from_numpy(values) for values in maps]).numpy()
    assert found.shape == (40, pool.width) == (40, 5 * (12 + 256 + 20))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # The weights of the layers show; a part is a little shorter where a photo has too few cells for all centroids.
    lengths = [np.linalg.norm(part, axis=1).mean() for part in np.split(found, [60, 60 + 1280], axis=1)]
    assert lengths == pytest.approx([weight / 5.25**0.5 for _, _, weight in sizes], rel=0.2)


def test_it_is_exactly_what_an_adapted_bundle_computes_by_default() -> None:
    network = small("test_resnet")
    assert network.sharpness == AdaptationSettings().sharpness
    assert NetworkSettings.model_fields["centroids"].default == AdaptationSettings().centroids


def test_by_hand() -> None:
    """Centroids (1, 0) and (0, 0.5). Cells (3, 4) → (0.6, 0.8) and (0, 2) → (0, 1), assigned almost hard.

    (0.6, 0.8): nearness 0.6 - 0.5 = 0.1 and 0.4 - 0.125 = 0.275, so the second; (0, 1): -0.5 and 0.375, the second too.
    Residual of the second: (0.6, 0.3) + (0, 0.5) = (0.6, 0.8), of length 1; of the first nothing. All by the root of 2.
    """
    vlad = Vlad(2, 2, 1000.0)
    with torch.no_grad():
        vlad.centroids.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.5]]))
        found = vlad(torch.tensor([[[[3.0, 0.0]], [[4.0, 2.0]]]]))
    assert found.tolist()[0] == pytest.approx([0.0, 0.0, 0.6 / 2**0.5, 0.8 / 2**0.5], abs=1e-6)
    # Between both centroids at equal distance a cell counts half for each: (0.6, 0.8) with (1, 0) and (0.2, 1.6) / 2...
    with torch.no_grad():
        vlad.centroids.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        halves = vlad(torch.tensor([[[[0.0]], [[7.0]]]]))
    # Residuals ½ (-1, 1) and ½ (1, 1), each made unit length, then both by the root of 2.
    assert halves.tolist()[0] == pytest.approx([-0.5, 0.5, 0.5, 0.5], abs=1e-6)


def test_short_residuals_are_not_stretched() -> None:
    vlad = Vlad(2, 2, 1000.0)
    with torch.no_grad():
        vlad.centroids.copy_(torch.tensor([[1.0, 0.05], [0.0, 0.0]]))
        found = vlad(torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]]))
    # (0, -0.05) is divided by 0.1 and (0, 1) by 1, and both by the root of 2.
    assert found.tolist()[0] == pytest.approx([0.0, -0.5 / 2**0.5, 0.0, 1 / 2**0.5], abs=1e-5)


@pytest.mark.parametrize(
    ("network", "dim", "layers"),
    [
        (small("test_resnet"), 3 * 96, ["layer4"]),
        (small("test_resnet", layers="layer2,3"), 720, ["layer2", "layer3"]),
        (small("test_resnet", truncate_after="layer3", descriptor_dim=8), 8, ["layer3"]),
        (small("test_efficientnet", truncate_after="2", layers="0,2", descriptor_dim=8), 8, ["blocks.0", "blocks.2"]),
        (small("test_vit"), 3 * 64, ["blocks.5"]),
        (small("test_vit", layers="2,blocks.3:value"), 3 * 128, ["blocks.2", "blocks.3:value"]),
    ],
)  # fmt: skip
def test_centroids_and_backbone_learn_whatever_the_layers(
    network: NetworkSettings, dim: int, layers: list[str]
) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(network, SMALL)
    assert [layer.name for layer in encoder.net.layers] == layers
    descriptors = encoder.net(torch.randn(3, 3, 64, 96))
    assert descriptors.shape == (3, dim) == (3, encoder.descriptor_dim)
    torch.testing.assert_close(descriptors.norm(dim=1), torch.ones(3))
    (descriptors * torch.randn(3, dim)).sum().backward()
    trained = {name: value for name, value in encoder.net.named_parameters() if value.requires_grad}
    assert all(value.grad is not None for value in trained.values())
    centroids = [value for name, value in trained.items() if name.endswith("centroids")]
    assert len(centroids) == len(layers)
    assert all(value.grad.abs().max() > 0 for value in centroids)
    first = next(value for name, value in trained.items() if name.startswith("backbone"))
    assert first.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("backbone", "layer", "behind"),
    [
        ("test_resnet", "layer3", ("layer4",)),
        ("test_efficientnet", "blocks.1", ("blocks.2", "blocks.3", "conv_head", "bn2")),
        ("test_vit", "3", ("blocks.4", "blocks.5", "norm")),
        ("test_convnext", "stages.1", ("stages.2", "stages.3")),
    ],
)
@pytest.mark.parametrize("aggregation", ["pooled", "vlad"])
def test_nothing_behind_the_last_layer_is_left(
    backbone: str, layer: str, behind: tuple[str, ...], aggregation: str
) -> None:
    whole_pooling = "patch_gem" if backbone == "test_vit" else "gem"
    pooling = whole_pooling if aggregation == "pooled" else "gem"
    cut = small(backbone, truncate_after=layer, aggregation=aggregation, pooling=pooling)
    torch.manual_seed(0)
    encoder = build_encoder(cut, SMALL)
    torch.manual_seed(0)
    whole = build_encoder(
        cut.model_copy(update={"truncate_after": None, "aggregation": "pooled", "pooling": whole_pooling}), SMALL
    )
    names = [name for name, _ in encoder.net.backbone.named_parameters()]
    assert names
    assert not any(name.startswith(behind) for name in names)
    assert any(name.startswith(behind) for name, _ in whole.net.backbone.named_parameters())
    # What is left gives what the layer of the whole net gives.
    images = torch.randn(2, 3, 64, 96)
    (place,) = dense_layers(whole.net.backbone, 64, 96, [layer])
    given: list[torch.Tensor] = []
    whole.net.backbone.get_submodule(place.module).register_forward_hook(lambda *call: given.append(call[2]))
    with torch.no_grad():
        whole.net.eval().backbone.forward_features(images)
        assert torch.equal(encoder.net.eval().backbone.forward_features(images), given[0])


def test_class_and_register_tokens_are_left_out() -> None:
    torch.manual_seed(0)
    net = build_encoder(small("test_vit", layers="blocks.2"), SMALL).net.eval()
    images = torch.randn(1, 3, 64, 96)
    tokens: list[torch.Tensor] = []

    def change_the_class_token(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        tokens.append(output)
        return torch.cat([output[:, :1] + 5, output[:, 1:]], dim=1)

    with torch.no_grad():
        before = net(images)
        net.backbone.get_submodule("blocks.2").register_forward_hook(change_the_class_token)
        assert torch.equal(net(images), before)
        (spatial,) = net.local_descriptors(images)
    assert spatial.shape == (1, 64, 4, 6)
    assert torch.equal(spatial[0].flatten(1).T, tokens[0][0, 1:])


def test_a_layer_behind_the_end_names_those_before() -> None:
    text = (
        "the backbone has no layer 'layer4' that gives one map. Choose among layer1, layer2, layer3."
    )  # fmt: skip
    with refused(ParameterError, text, "unknown_layer"):
        build_encoder(small("test_resnet", truncate_after="layer3", layers="layer4"), SMALL)


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(RecipeError, match=r"network.pooling and network.l2_before_pool are for"):
        small_recipe("network.aggregation=vlad", "network.l2_before_pool=true")
    with pytest.raises(RecipeError, match=r"network.layers is for network.aggregation=vlad"):
        small_recipe("network.layers=layer3")
    with pytest.raises(RecipeError, match=r"the weight '0' of layer3 is not a number above 0 and up to 1000"):
        small_recipe(*VLAD[:1], "network.layers=layer2,layer3:0")
    with pytest.raises(RecipeError, match=r"network.truncate_after is one layer without a weight"):
        small_recipe("network.truncate_after=layer3:0.5")


def test_an_encoder_says_what_it_aggregates() -> None:
    assert small_encoder(small_recipe(*VLAD)).provenance.aggregation == "VLAD of layer2 and layer3, 4 centroids"
    weighted = small_encoder(small_recipe(*VLAD, "network.layers=layer2:0.5,layer3"))
    assert weighted.provenance.aggregation == "VLAD of layer2:0.5 and layer3, 4 centroids"
    cut = small_encoder(small_recipe("network.truncate_after=layer3"))
    assert cut.provenance.aggregation == "GeM from p=3, of layer3"


def test_descriptors_stay_exact_under_autocast() -> None:
    torch.manual_seed(0)
    vlad = Vlad(16, 8, 100.0)
    maps = torch.randn(2, 16, 3, 4)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        under = vlad(maps)
    with torch.no_grad():
        assert torch.equal(under, vlad(maps))


def described(encoder: Encoder, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        normalised = encoder.normalisation.apply(torch.from_numpy(images).permute(0, 3, 1, 2))
        return encoder.net.eval()(normalised).numpy()


@pytest.mark.parametrize(
    ("overrides", "adapts"),
    [
        ([*VLAD, "network.layers=layer2:0.5,layer3"], True),
        ([*VLAD[:1], "network.backbone=test_vit", "network.layers=2,blocks.3:value", "network.centroids=5"], True),
        # The layers that a ViT adapts with by itself are no longer there.
        (["network.backbone=test_vit", "network.truncate_after=blocks.2", "network.pooling=patch_gem"], False),
    ],
    ids=["vlad of maps", "vlad of tokens", "truncated"],
)
def test_from_a_checkpoint_to_a_bundle(overrides: list[str], adapts: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = small_recipe(*overrides)
    encoder = small_encoder(recipe)
    checkpoint = save_encoder(tmp_path / "checkpoint", encoder, recipe).folder
    images = noise(64, 96)
    expected = described(encoder, images)
    again = load_encoder(checkpoint)
    assert np.array_equal(described(again, images), expected)
    assert {name for name, _ in again.net.named_parameters()} == {name for name, _ in encoder.net.named_parameters()}

    bundle = write_export(checkpoint_model(checkpoint), tmp_path / "bundle")
    for count in (1, 3, 8):
        ours = Describer(bundle).describe(images[:count])
        assert float((ours * expected[:count]).sum(axis=1).min()) >= 0.99999
    assert bundle.is_adaptable == adapts == bool(encoder.net.layers)
    if not adapts:
        return
    outputs = [(output.layer, output.weight) for output in bundle.manifest.dense_outputs]
    assert outputs == [(layer.name, layer.weight) for layer in encoder.net.layers]
    graph = restore_fp32_weights(onnx.load(bundle.graph_path("fp32")))
    with torch.no_grad():
        normalised = encoder.normalisation.apply(torch.from_numpy(images).permute(0, 3, 1, 2))
        maps = encoder.net.local_descriptors(normalised)
    for ours, theirs in zip(dense_describer(graph, bundle.manifest.dense_outputs)(images), maps, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-3, rtol=1e-3)
    photos = np.stack([np.asarray(pattern(seed, (96, 64))) for seed in range(24)])
    adapted = adapt_bundle(bundle, [photos], tmp_path / "adapted", "patterns")
    assert np.isfinite(Describer(adapted).describe(images)).all()


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_in_lower_precisions_aggregation_stays_fp32(backbone: str) -> None:
    torch.manual_seed(0)
    layers = {"test_resnet": "layer2:0.5,layer3", "test_vit": "2,3:value"}[backbone]
    model = encoder_model(build_encoder(small(backbone, layers=layers, descriptor_dim=8), SMALL), "vlad")
    graph = tidied(model.graph)
    aggregating = {node.name: node.op_type for node in graph.graph.node if node.name.startswith("aggregation/")}
    # Of each layer one product for the assignment and one for the sums.
    assert list(aggregating.values()).count("MatMul") == 4
    assert list(aggregating.values()).count("Softmax") == 2
    assert aggregating.keys() <= nodes_kept_in_fp32(graph)
    assert not set(quantisable_layers(graph)) & aggregating.keys()
    assert quantisable_layers(graph)


def test_a_heat_map_adds_up_to_the_score() -> None:
    torch.manual_seed(0)
    encoder = small_encoder(small_recipe(*VLAD))
    assert isinstance(encoder.net.projection, nn.Linear)
    with torch.no_grad():
        encoder.net.projection.bias.zero_()
    images = noise(64, 96)
    maps = heat_maps(encoder, images[:3], images[3:6])
    np.testing.assert_allclose(maps.match_a.sum(axis=(1, 2)), maps.scores, atol=1e-4)
    np.testing.assert_allclose(maps.match_b.sum(axis=(1, 2)), maps.scores, atol=1e-4)
    assert maps.match_a.shape == (3, 8, 12)
