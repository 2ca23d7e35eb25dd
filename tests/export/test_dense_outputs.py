"""Dense outputs: layers of a backbone as tensors inside the graph, equal to what PyTorch computes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.exporting import ExportSettings, WhiteningSettings, write_export
from export.from_pytorch import timm_model
from retrieval.bundle import Bundle, open_bundle
from retrieval.bundle.adaptation import adapt_bundle
from retrieval.bundle.adapted_graph import dense_describer
from retrieval.bundle.exportable import bundle_model, noise
from retrieval.bundle.onnx_graph import restore_fp32_weights
from retrieval.describer import Describer
from retrieval.images import fit_image
from tests.places import make_places, pattern
from training.backbones import set_image_size, timm_backbone
from training.encoder import timm_encoder

# Name, size, layers as users write them, and the layers that come out.
SMALL = [
    ("test_resnet", (96, 64), None, ["layer3", "layer4"]),
    ("tf_efficientnet_lite0", (64, 64), None, ["blocks.3", "blocks.4", "blocks.5.2"]),
    ("test_efficientnet", (64, 96), "0,blocks.1.0", ["blocks.0", "blocks.1.0"]),
    ("test_vit", (64, 96), "3:token,4:value", ["blocks.3", "blocks.4:value"]),
]
BIG = [
    ("resnet50", (224, 224), "3,4", ["layer3", "layer4"]),
    ("resnet50", (322, 322), None, ["layer3", "layer4"]),
    ("deit_small_distilled_patch16_224", (224, 224), "9:value,11", ["blocks.9:value", "blocks.11"]),
    ("deit_small_distilled_patch16_224", (224, 320), None, ["blocks.9:value"]),
    ("vit_small_patch14_dinov2", (224, 224), "9:token", ["blocks.9"]),
    ("vit_small_patch14_reg4_dinov2", (322, 322), None, ["blocks.9:value"]),
]
CASES = [*SMALL, *(pytest.param(case, marks=pytest.mark.nightly) for case in BIG)]


def by_hand(net: torch.nn.Module, layer: str, images: torch.Tensor) -> torch.Tensor:
    """(N, C, h, w): the output of one module, or of a block's values from the block's input, written out."""
    backbone = net.backbone
    name, _, facet = layer.partition(":")
    found = {}
    module = backbone.get_submodule(name)
    hook = module.register_forward_hook(lambda _module, inputs, output: found.update(before=inputs[0], after=output))
    with torch.no_grad():
        backbone.forward_features(images)
    hook.remove()
    if not hasattr(backbone, "num_prefix_tokens"):
        return found["after"]
    tokens = found["after"]
    if facet:
        normed = module.norm1(found["before"])
        _, _, rows = module.attn.qkv.weight.detach().chunk(3)
        _, _, bias = module.attn.qkv.bias.detach().chunk(3)
        tokens = (normed @ rows.T + bias).detach()
    patches = tokens[:, backbone.num_prefix_tokens :]
    height, width = backbone.patch_embed.grid_size
    assert patches.shape[1] == height * width
    return torch.stack([patches[:, row * width : (row + 1) * width] for row in range(height)], 1).permute(0, 3, 1, 2)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]} {case[1][0]}x{case[1][1]}")
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    name, size, layers, expected = request.param
    torch.manual_seed(0)
    encoder = timm_encoder(name, "none", size)
    torch.manual_seed(0)
    model = timm_model(name, "none", size, None if layers is None else layers.split(","))
    return encoder, write_export(model, tmp_path_factory.mktemp("bundle") / "bundle"), expected


def dense(bundle: Bundle, images: np.ndarray) -> list[np.ndarray]:
    graph = restore_fp32_weights(onnx.load(bundle.graph_path("fp32")))
    return dense_describer(graph, bundle.manifest.dense_outputs)(images)


def test_every_cell_is_as_in_pytorch_whatever_the_batch(exported) -> None:
    encoder, bundle, layers = exported
    outputs = bundle.manifest.dense_outputs
    assert [output.layer for output in outputs] == layers
    images = noise(bundle.preprocessing.height, bundle.preprocessing.width)[3:]
    encoder.net.eval()
    normalised = encoder.normalisation.apply(torch.from_numpy(images).permute(0, 3, 1, 2))
    for count in (1, 2, 5):
        for output, ours in zip(outputs, dense(bundle, images[:count]), strict=True):
            theirs = by_hand(encoder.net, output.layer, normalised[:count]).numpy()
            assert ours.shape == theirs.shape
            assert ours.shape[1] == output.channels
            lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
            assert lengths.min() > 0
            assert ((ours * theirs).sum(axis=1) / lengths).min() >= 0.9999


def test_efficientnet_lite0_of_timm_adapts_with_what_the_shipped_bundle_does(exported) -> None:
    _, bundle, layers = exported
    shipped = {output.layer: output.weight for output in open_bundle().manifest.dense_outputs}
    expected = shipped if layers == list(shipped) else dict.fromkeys(layers, 1.0)
    assert {output.layer: output.weight for output in bundle.manifest.dense_outputs} == expected


def test_the_graph_has_one_output_and_the_tensors_inside(exported) -> None:
    _, bundle, layers = exported
    graph = onnx.load(bundle.graph_path("fp32")).graph
    assert [output.name for output in graph.output] == ["descriptors"]
    made = [name for node in graph.node for name in node.output]
    tensors = [output.tensor for output in bundle.manifest.dense_outputs]
    assert tensors == [f"dense.{number}" for number in range(len(layers))]
    assert set(tensors) <= set(made)
    shown = {value.name: [side.dim_value for side in value.type.tensor_type.shape.dim] for value in graph.value_info}
    for output in bundle.manifest.dense_outputs:
        assert shown[output.tensor][1] == output.channels


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.manual_seed(0)
    model = timm_model("test_vit", "none", (32, 48))
    return write_export(model, tmp_path_factory.mktemp("small") / "bundle")


@pytest.mark.parametrize(
    "settings", [ExportSettings(weight_storage="fp16"), ExportSettings(camera=(96, 120))], ids=["fp16", "camera"]
)
def test_what_is_made_of_the_bundle_keeps_them(small: Bundle, settings: ExportSettings, tmp_path: Path) -> None:
    made = write_export(bundle_model(small.folder), tmp_path / "made", settings)
    assert made.manifest.dense_outputs == small.manifest.dense_outputs
    height, width, _ = made.image_shape
    images = noise(height, width)[:3]
    (values,) = dense(made, images)
    assert values.shape == (3, 64, 2, 3)


def test_the_card_names_the_layers(small: Bundle) -> None:
    assert "| adapts to a place with | `blocks.4:value` |" in (small.folder / "MODEL_CARD.md").read_text()


def test_position_embeddings_are_resampled_to_the_grid() -> None:
    backbone = timm_backbone("test_vit")
    before = backbone.pos_embed.shape[1]
    set_image_size(backbone, 64, 96)
    assert (before, backbone.pos_embed.shape[1]) == (1 + 100, 1 + 4 * 6)


def test_what_is_made_of_an_adapted_bundle_says_how_it_was_adapted(small: Bundle, tmp_path: Path) -> None:
    images = noise(32, 48)
    adapted = adapt_bundle(small, [images], tmp_path / "adapted", "noise")
    made = write_export(bundle_model(adapted.folder), tmp_path / "made", ExportSettings(name="renamed"))
    assert made.manifest.adaptation == adapted.manifest.adaptation is not None
    assert made.manifest.dense_outputs == small.manifest.dense_outputs


def test_a_whitened_bundle_adapts_no_more(small: Bundle, tmp_path: Path) -> None:
    photos = make_places(tmp_path, 6).rows
    settings = ExportSettings(whitening=WhiteningSettings(4, photos, "a line of places"))
    made = write_export(bundle_model(small.folder), tmp_path / "made", settings)
    assert made.manifest.dense_outputs == ()


def test_a_bundle_for_a_camera_is_adapted_for_the_camera(small: Bundle, tmp_path: Path) -> None:
    camera = write_export(bundle_model(small.folder), tmp_path / "camera", ExportSettings(camera=(96, 120)))
    frames = np.stack([np.asarray(pattern(seed, (120, 96))) for seed in range(12)])
    adapted = adapt_bundle(camera, [frames], tmp_path / "adapted", "patterns")
    assert adapted.image_shape == (96, 120, 3)
    assert adapted.manifest.camera_model_input == small.preprocessing
    assert adapted.name.startswith(f"{small.name}-camera-120x96-adapted-")
    card = (adapted.folder / "MODEL_CARD.md").read_text()
    assert "96 × 120 RGB: whole camera frames, which the graph resizes to 32 × 48" in card
    # It is what the bundle for photos, adapted to the same resized, says of them.
    resized = np.stack([fit_image(frame, small.preprocessing) for frame in frames])
    plain = adapt_bundle(small, [resized], tmp_path / "plain", "patterns")
    ours, theirs = Describer(adapted).describe(frames), Describer(plain).describe(resized)
    assert float((ours * theirs).sum(axis=1).min()) >= 0.999
    again = adapt_bundle(adapted, [frames[:6]], tmp_path / "again", "fewer patterns")
    assert again.manifest.camera_model_input == small.preprocessing
    assert again.name.startswith(f"{small.name}-camera-120x96-adapted-")
    assert again.name != adapted.name


def test_an_adapted_bundle_becomes_one_for_a_camera(small: Bundle, tmp_path: Path) -> None:
    adapted = adapt_bundle(small, [noise(32, 48)], tmp_path / "adapted", "noise")
    camera = write_export(bundle_model(adapted.folder), tmp_path / "camera", ExportSettings(camera=(96, 120)))
    assert camera.name == f"{adapted.name}-camera-120x96"
    again = adapt_bundle(camera, [noise(96, 120)[2:]], tmp_path / "again", "noise")
    assert again.name.startswith(f"{small.name}-camera-120x96-adapted-")
