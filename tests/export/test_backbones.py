"""ResNet50-GeM-1024, DeiT-S-256 and EfficientNet-Lite0-GeM: the graph is the encoder, and nothing but the encoder."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from export.exporting import write_export
from export.from_pytorch import encoder_model
from export.int8 import quantisable_layers, quantise
from export.precision import to_fp16
from retrieval.bundle import Bundle
from retrieval.bundle.exportable import MIN_COSINE, noise, run_on_cpu
from retrieval.bundle.onnx_graph import tidied
from retrieval.describer import Describer
from retrieval.images import decode_image
from tests.export.lowering_nets import pictures
from tests.retrieval.encoded import STORED_AS, encode, smooth
from training.encoder import Encoder, build_encoder
from training.objectives.registry import build_objective
from training.recipe import load_recipe

# Small: the graph does not depend on the size, and ResNet50 takes seconds an image at the paper's.
RESNET50, DEIT = ("simclr-resnet50", (96, 128)), ("simclr-deit-small", (96, 128))
CASES = [RESNET50, DEIT, ("simclr-efficientnet-lite0", (97, 161))]
NIGHTLY = [("simclr-resnet50", (130, 90)), ("simclr-efficientnet-lite0", (256, 256))]


def name_of(case: tuple[str, tuple[int, int]]) -> str:
    name, (height, width) = case
    return f"{name} {height}x{width}"


@pytest.fixture(
    scope="module",
    params=[*CASES, *(pytest.param(case, marks=pytest.mark.nightly) for case in NIGHTLY)],
    ids=[name_of(case) for case in CASES + NIGHTLY],
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Encoder, Bundle]:
    name, (height, width) = request.param
    torch.manual_seed(0)
    recipe = load_recipe(name, ["network.pretrained=none", f"image.height={height}", f"image.width={width}"])
    encoder = build_encoder(recipe.network, recipe.image)
    encoder.net.eval()
    return encoder, write_export(encoder_model(encoder, name), tmp_path_factory.mktemp("bundle") / "bundle")


def in_pytorch(encoder: Encoder, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return encoder.net(encoder.normalisation.apply(torch.from_numpy(images).permute(0, 3, 1, 2))).numpy()


def test_every_batch_size_describes_as_pytorch(exported: tuple[Encoder, Bundle]) -> None:
    encoder, bundle = exported
    images = np.concatenate([noise(bundle.preprocessing.height, bundle.preprocessing.width)] * 4)
    theirs = in_pytorch(encoder, images[:8])
    describer = Describer(bundle, max_batch=32)
    for count in (1, 2, 7, 32):
        ours = describer.describe(images[:count])
        worst = (ours * np.concatenate([theirs] * 4)[:count]).sum(axis=1).min()
        assert worst >= MIN_COSINE, count


def test_turned_and_odd_photos_describe_as_pytorch(exported: tuple[Encoder, Bundle]) -> None:
    """Each EXIF orientation and odd sizes; PyTorch is given the upright picture, decoded without its EXIF."""
    encoder, bundle = exported
    upright = smooth(301, 203, seed=3)
    plain = decode_image(encode(upright, "PNG"), bundle.preprocessing)
    turned = [decode_image(encode(upright, "PNG", orientation), bundle.preprocessing) for orientation in STORED_AS]
    odd = [decode_image(encode(smooth(*size, seed=size[0]), "JPEG"), bundle.preprocessing) for size in
           [(17, 333), (1, 1), (640, 479), (77, 75)]]  # fmt: skip
    ours = Describer(bundle).describe([*turned, *odd])
    theirs = in_pytorch(encoder, np.stack([*[plain] * len(turned), *odd]))
    assert (ours * theirs).sum(axis=1).min() >= MIN_COSINE


def test_the_projection_head_is_not_in_the_graph(exported: tuple[Encoder, Bundle]) -> None:
    encoder, bundle = exported
    graph = onnx.load(bundle.graph_path("fp32")).graph
    weights = [numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT]
    in_graph = sum(array.size for array in weights)
    in_encoder = sum(parameter.numel() for parameter in encoder.net.parameters())
    head = build_objective("byol", encoder.descriptor_dim, {})
    in_head = sum(parameter.numel() for parameter in head.parameters())
    # Batch norms are folded into convolutions; a few constants (mean, std, exponents) come with the input and the norm.
    assert in_head > 1_000_000
    assert abs(in_graph - in_encoder) < 0.1 * in_head


def test_only_a_cast_reads_the_bytes(exported: tuple[Encoder, Bundle]) -> None:
    """TensorRT refuses graphs in which anything else does."""
    graph = onnx.load(exported[1].graph_path("fp32")).graph
    assert [node.op_type for node in graph.node if "images" in node.input] == ["Cast"]
    assert graph.node[0].op_type == "Cast"


def test_opset_and_metadata(exported: tuple[Encoder, Bundle]) -> None:
    model = onnx.load(exported[1].graph_path("fp32"))
    assert [(opset.domain, opset.version >= 20) for opset in model.opset_import] == [("", True)]
    stated = {entry.key: entry.value for entry in model.metadata_props}
    assert stated["sightfix.descriptor_dim"] == str(exported[0].descriptor_dim)


@pytest.mark.parametrize("exported", [RESNET50, DEIT], ids=name_of, indirect=True)
def test_fp16_describes_as_fp32(exported: tuple[Encoder, Bundle]) -> None:
    _, bundle = exported
    graph = onnx.load(bundle.graph_path("fp32"))
    half = to_fp16(graph)
    assert len(half.SerializeToString()) < 0.6 * len(graph.SerializeToString())
    images = pictures(8, (bundle.preprocessing.height, bundle.preprocessing.width))
    cosine = (run_on_cpu(half)(images) * run_on_cpu(graph)(images)).sum(axis=1)
    assert cosine.min() >= 0.9999
    norms = [node for node in half.graph.node if node.op_type == "LayerNormalization"]
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(half).graph.value_info
    }
    assert {types[node.output[0]] for node in norms} <= {TensorProto.FLOAT}


@pytest.mark.parametrize("exported", [DEIT], ids=name_of, indirect=True)
def test_int8_of_a_vision_transformer_keeps_patches_and_attention(exported: tuple[Encoder, Bundle]) -> None:
    _, bundle = exported
    graph = onnx.load(bundle.graph_path("fp32"))
    tidy = tidied(graph)
    layers = quantisable_layers(tidy)
    weights = {node.name: node.input[1] for node in tidy.graph.node if node.name in layers}
    assert len(layers) == 48  # four products in each of twelve blocks; no patches, no attention
    assert all(weight.startswith("val_") for weight in weights.values())
    found = quantise(graph, pictures(8, (bundle.preprocessing.height, bundle.preprocessing.width)), target=0.5)
    assert found.worst_cosine > 0.9
    assert len(found.model.SerializeToString()) < 0.4 * len(graph.SerializeToString())
