import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from export.from_pytorch import DescriptionGraph, export_graph
from retrieval.bundle.onnx_graph import store_weights_as_fp16
from training.descriptor_net import DescriptorNet, GeM


class SmallBackbone(nn.Module):
    """Two convolutions with a weight large enough to be halved."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2)
        self.second = nn.Conv2d(8, 32, 3, stride=2)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.second(self.first(images).relu())


@pytest.fixture(scope="module")
def graph() -> DescriptionGraph:
    torch.manual_seed(0)
    net = DescriptorNet(SmallBackbone(), GeM(p=3.0, learnable=False), nn.Linear(32, 12))
    return DescriptionGraph(net, (120.0, 115.0, 100.0), (58.0, 57.0, 56.0)).eval()


@pytest.fixture(scope="module")
def exported(graph: DescriptionGraph) -> onnx.ModelProto:
    return export_graph(graph, 20, 28, {"sightfix.name": "small"})


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["descriptors"], {"images": images})[0]


def photos(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 20, 28, 3), dtype=np.uint8)


def test_normalisation_by_hand() -> None:
    """(x - mean) / std for each channel, in units of 8-bit RGB, channels first."""
    seen: list[Tensor] = []
    graph = DescriptionGraph(nn.Identity(), (10.0, 20.0, 30.0), (1.0, 2.0, 4.0))
    graph.net.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    graph(torch.tensor([[[[11, 24, 38], [12, 20, 30], [10, 22, 34]]]], dtype=torch.uint8))
    assert seen[0].tolist() == [[[[1.0, 2.0, 0.0]], [[2.0, 0.0, 1.0]], [[2.0, 0.0, 1.0]]]]


def test_a_scalar_mean_serves_all_channels() -> None:
    graph = DescriptionGraph(nn.Identity(), 127.0, 128.0)
    assert graph(torch.full((1, 1, 1, 3), 255, dtype=torch.uint8)).flatten().tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_exported_graph_equals_pytorch_for_any_batch(
    graph: DescriptionGraph, exported: onnx.ModelProto, count: int
) -> None:
    images = photos(count)
    with torch.inference_mode():
        expected = graph(torch.from_numpy(images)).numpy()
    found = run(exported, images)
    assert (found.shape, found.dtype) == ((count, 12), np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)


def test_the_exported_graph_names_its_contract_and_metadata(exported: onnx.ModelProto) -> None:
    (images,), (descriptors,) = exported.graph.input, exported.graph.output
    assert (images.name, images.type.tensor_type.elem_type) == ("images", TensorProto.UINT8)
    assert [side.dim_value for side in images.type.tensor_type.shape.dim] == [0, 20, 28, 3]
    assert (descriptors.name, descriptors.type.tensor_type.elem_type) == ("descriptors", TensorProto.FLOAT)
    assert [side.dim_value for side in descriptors.type.tensor_type.shape.dim] == [0, 12]
    assert {entry.key: entry.value for entry in exported.metadata_props} == {"sightfix.name": "small"}


def test_the_exported_graph_holds_no_source_paths(exported: onnx.ModelProto) -> None:
    data = exported.SerializeToString()
    assert b".py" not in data
    assert b"site-packages" not in data


def test_large_weights_are_stored_as_fp16_and_computed_with_in_fp32(exported: onnx.ModelProto) -> None:
    halved = onnx.ModelProto()
    halved.CopyFrom(exported)
    store_weights_as_fp16(halved)
    kinds = {tensor.name: (tensor.data_type, int(np.prod(tensor.dims))) for tensor in halved.graph.initializer}
    assert {kind for kind, count in kinds.values() if count >= 1024} == {TensorProto.FLOAT16}
    assert TensorProto.FLOAT16 not in {kind for kind, count in kinds.values() if count < 1024}
    assert len(halved.SerializeToString()) < len(exported.SerializeToString())
    images = photos(3)
    cosines = (run(halved, images) * run(exported, images)).sum(axis=1)
    assert cosines.min() > 0.9999
    # Each stored value is the nearest half of the exact one.
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in exported.graph.initializer}
    for tensor in halved.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            exact = before[tensor.name.removesuffix(".fp16")]
            assert np.array_equal(numpy_helper.to_array(tensor), exact.astype(np.float16))
