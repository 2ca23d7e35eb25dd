from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from export import default_bundle
from export.default_bundle import DEFAULT_PREPROCESSING, NAME, make_default_bundle, outputs_of_layers
from export.from_pytorch import DescriptionGraph
from retrieval.bundle import Bundle
from retrieval.bundle.adapted_graph import dense_describer
from retrieval.describer import Describer
from retrieval.errors import BundleError
from retrieval.images import read_image
from tests.places import pattern
from training.backbones import (
    EFFICIENTNET_LITE0,
    EFFICIENTNET_LITE0_MEAN,
    EFFICIENTNET_LITE0_STD,
    load_efficientnet_lite0_weights,
    timm_backbone,
)
from training.descriptor_net import DescriptorNet, GeM


def worst_cosine(one: Describer, other: Describer, images: np.ndarray) -> float:
    return float((one.describe(images) * other.describe(images)).sum(axis=1).min())


def test_a_rebuilt_bundle_describes_as_the_committed_one(rebuilt: Bundle, bundle: Bundle, describer: Describer) -> None:
    assert rebuilt.preprocessing == bundle.preprocessing == DEFAULT_PREPROCESSING
    size = (bundle.preprocessing.width, bundle.preprocessing.height)
    images = np.stack([np.asarray(pattern(seed, size)) for seed in range(4)])
    assert worst_cosine(Describer(rebuilt), describer, images) >= 0.999


@pytest.mark.photos
def test_a_rebuilt_bundle_describes_real_photos_as_the_committed_one(
    rebuilt: Bundle, bundle: Bundle, describer: Describer, photos_root: Path
) -> None:
    photos = sorted((photos_root / "lund_exif" / "images").iterdir())[:3]
    images = np.stack([read_image(photo, bundle.preprocessing) for photo in photos])
    assert len(images) == 3
    assert worst_cosine(Describer(rebuilt), describer, images) >= 0.999


def test_both_state_the_same(rebuilt: Bundle, bundle: Bundle) -> None:
    ours, theirs = rebuilt.manifest.model_dump(), bundle.manifest.model_dump()
    for value in ("name", "kind", "format_version", "descriptor_dim", "preprocessing", "graphs", "weight_storage",
                  "provenance", "licence", "dense_outputs"):  # fmt: skip
        assert ours[value] == theirs[value], value
    assert theirs["name"] == NAME
    assert set(ours["files"]) == set(theirs["files"])


def test_the_committed_bundle_is_at_most_8_mb(bundle: Bundle) -> None:
    assert sum(path.stat().st_size for path in bundle.folder.iterdir()) <= 8_000_000


def test_the_committed_bundle_says_how_close_it_is_to_pytorch(bundle: Bundle) -> None:
    parity = bundle.manifest.parity
    assert parity is not None
    assert parity.reference.startswith("PyTorch ")
    assert parity.images == 8
    assert 0.9999 <= parity.min_cosine <= 1.0 + 1e-6


def test_the_graph_keeps_the_contract(bundle: Bundle) -> None:
    graph = onnx.load(bundle.graph_path("fp32")).graph
    (images,), (descriptors,) = graph.input, graph.output
    height, width = bundle.preprocessing.height, bundle.preprocessing.width
    assert (images.name, images.type.tensor_type.elem_type) == ("images", TensorProto.UINT8)
    assert (descriptors.name, descriptors.type.tensor_type.elem_type) == ("descriptors", TensorProto.FLOAT)
    batch, *rest = images.type.tensor_type.shape.dim
    assert [side.dim_value for side in rest] == [height, width, 3]
    assert batch.dim_param != ""
    batch, length = descriptors.type.tensor_type.shape.dim
    assert batch.dim_param != ""
    assert length.dim_value == bundle.descriptor_dim


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_batch_is_dynamic(bundle: Bundle, describer: Describer, count: int) -> None:
    images = np.zeros((count, bundle.preprocessing.height, bundle.preprocessing.width, 3), np.uint8)
    assert describer.describe(images).shape == (count, bundle.descriptor_dim)


def test_weights_are_stored_as_fp16_and_small_tensors_as_fp32(bundle: Bundle) -> None:
    assert bundle.manifest.weight_storage == "fp16"
    tensors = onnx.load(bundle.graph_path("fp32")).graph.initializer
    stored = {TensorProto.FLOAT16: 0, TensorProto.FLOAT: 0}
    for tensor in tensors:
        if tensor.data_type in stored:
            count = int(np.prod(tensor.dims))
            assert (count >= 1024) == (tensor.data_type == TensorProto.FLOAT16), tensor.name
            stored[tensor.data_type] += count
    assert stored[TensorProto.FLOAT16] > 3_000_000
    assert stored[TensorProto.FLOAT] < 50_000


@pytest.mark.parametrize("which", ["committed", "rebuilt"])
def test_the_files_hold_no_machine_paths(which: str, rebuilt: Bundle, bundle: Bundle) -> None:
    folder = (bundle if which == "committed" else rebuilt).folder
    for path in folder.iterdir():
        data = path.read_bytes()
        for trace in (b"site-packages", b"/home/", b"/root/", b"/work/", b"/tmp/", b".py"):
            assert trace not in data, (path.name, trace)


def test_the_model_card_names_licence_weights_and_training(bundle: Bundle) -> None:
    card = (bundle.folder / "MODEL_CARD.md").read_text()
    assert card.startswith(f"# {NAME}\n")
    assert "Apache-2.0" in card
    assert "| trained for places | no |" in card
    assert f"{bundle.preprocessing.height} × {bundle.preprocessing.width}" in card


def test_dense_outputs_are_what_the_layers_give_in_pytorch(bundle: Bundle) -> None:
    backbone = timm_backbone(EFFICIENTNET_LITE0)
    load_efficientnet_lite0_weights(backbone)
    images = np.stack([np.asarray(pattern(seed, (256, 256))) for seed in range(3)])
    graph = DescriptionGraph(DescriptorNet(backbone, GeM()), EFFICIENTNET_LITE0_MEAN, EFFICIENTNET_LITE0_STD).eval()
    outputs = bundle.manifest.dense_outputs
    assert [output.layer for output in outputs] == ["blocks.3", "blocks.4", "blocks.5.2"]
    expected = outputs_of_layers(graph, [output.layer for output in outputs], images)
    described = dense_describer(onnx.load(bundle.graph_path("fp32")), outputs)(images)
    for output, values in zip(outputs, described, strict=True):
        wanted = expected[output.layer]
        assert values.shape == wanted.shape
        assert values.shape[:2] == (3, output.channels)
        lengths = np.linalg.norm(values, axis=1) * np.linalg.norm(wanted, axis=1)
        # Of each cell; the graph's weights are stored as fp16.
        assert ((values * wanted).sum(axis=1) / lengths).min() > 0.995


def test_a_graph_that_differs_from_pytorch_is_not_written(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The committed graph with four filters doubled."""
    damaged = onnx.load(bundle.graph_path("fp32"))
    weights = next(tensor for tensor in damaged.graph.initializer if len(tensor.dims) == 4 and tensor.dims[1] > 1)
    values = numpy_helper.to_array(weights)
    weights.CopyFrom(
        numpy_helper.from_array(
            np.where(np.arange(len(values)) < 4, 2, 1)[:, None, None, None].astype(values.dtype) * values, weights.name
        )
    )
    monkeypatch.setattr(default_bundle, "export_graph", lambda *_: damaged)
    with pytest.raises(BundleError) as caught:
        make_default_bundle(tmp_path / "bundle")
    assert caught.value.code == "parity_failed"
    assert str(caught.value).startswith("the tensor add_586 of the graph is not the output of blocks.3")
    assert list(tmp_path.iterdir()) == []
