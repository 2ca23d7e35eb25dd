"""ResNet50-GeM-1024, DeiT-S-256 and EfficientNet-Lite0-GeM: the graph is the encoder, and nothing but the encoder."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from export.exportable import MIN_COSINE, noise
from export.exporting import write_export
from export.from_pytorch import encoder_model
from retrieval.bundle import Bundle
from retrieval.describer import Describer
from retrieval.images import decode_image
from tests.retrieval.encoded import STORED_AS, encode, smooth
from training.encoder import Encoder, build_encoder
from training.objectives.registry import build_objective
from training.recipe import load_recipe

# Small: the graph does not depend on the size, and ResNet50 takes seconds an image at the paper's.
NETS = {
    "simclr-resnet50": [(96, 128), (130, 90)],
    "simclr-deit-small": [(96, 128)],
    "simclr-efficientnet-lite0": [(256, 256), (97, 161)],
}
CASES = [(name, size) for name, sizes in NETS.items() for size in sizes]


@pytest.fixture(scope="module", params=CASES, ids=[f"{name} {size[0]}x{size[1]}" for name, size in CASES])
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
