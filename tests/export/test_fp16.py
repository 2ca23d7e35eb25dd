"""fp16: what computes in half precision, what does not, and that a damaged graph is refused."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from export.from_pytorch import DescriptionGraph, export_graph
from export.precision import check_precision, measure_precision, nodes_kept_in_fp32, to_fp16
from retrieval.bundle.exportable import run_on_cpu
from retrieval.bundle.onnx_graph import head, tail, tidied
from retrieval.errors import BundleError
from tests.export.lowering_nets import initializer, pictures, small_graph, with_weight


@pytest.fixture(scope="module")
def fp32() -> onnx.ModelProto:
    return small_graph()


@pytest.fixture(scope="module")
def fp16(fp32: onnx.ModelProto) -> onnx.ModelProto:
    return to_fp16(fp32)


def stored(model: onnx.ModelProto, name: str) -> int:
    return next(tensor.data_type for tensor in model.graph.initializer if tensor.name == name)


def test_weights_are_halved_and_the_ends_are_not(fp32: onnx.ModelProto, fp16: onnx.ModelProto) -> None:
    for part in ("stem", "depthwise", "pointwise", "last"):
        assert stored(fp16, f"net.backbone.{part}.weight") == TensorProto.FLOAT16
    for name in ("mean", "std", "net.projection.weight", "net.pool.p"):
        assert stored(fp16, name) == TensorProto.FLOAT
    assert fp16.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert fp16.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert [value.name for value in fp16.graph.output] == ["descriptors"]
    assert {entry.key: entry.value for entry in fp16.metadata_props} == {"sightfix.name": "small"}
    # The fp32 graph was not touched.
    assert stored(fp32, "net.backbone.last.weight") == TensorProto.FLOAT


def test_one_cast_into_fp16_and_one_out_of_it(fp16: onnx.ModelProto) -> None:
    casts = [node for node in fp16.graph.node if node.op_type == "Cast"]
    targets = [node.attribute[0].i for node in casts]
    assert casts[0].input[0] == "images"
    assert targets == [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.FLOAT]


def test_head_and_tail(fp32: onnx.ModelProto) -> None:
    tidy = tidied(fp32)
    kinds = {node.name: node.op_type for node in tidy.graph.node}
    assert sorted(kinds[name] for name in head(tidy)) == ["Cast", "Div", "Sub", "Transpose"]
    assert {"Pow", "ReduceMean", "Gemm", "ReduceL2"} <= {kinds[name] for name in tail(tidy)}
    assert "Conv" not in {kinds[name] for name in head(tidy) | tail(tidy)}


def test_describes_as_fp32(fp32: onnx.ModelProto, fp16: onnx.ModelProto) -> None:
    images = pictures(64)
    report = measure_precision("fp16", run_on_cpu(fp32)(images), run_on_cpu(fp16)(images))
    assert report.min_cosine > 0.99999
    assert check_precision("fp16", report) == report


@pytest.mark.parametrize(
    ("part", "damage"),
    [
        ("backbone.last.weight", lambda weight: weight + np.random.default_rng(0).normal(0, 0.02, weight.shape)),
        ("backbone.stem.weight", lambda weight: weight * np.where(np.arange(16) == 3, 4, 1)[:, None, None, None]),
    ],
    ids=["noise on a layer's weights", "one channel too large"],
)
def test_a_damaged_graph_is_refused(fp32: onnx.ModelProto, fp16: onnx.ModelProto, part: str, damage) -> None:
    images = pictures(64)
    broken = with_weight(fp16, initializer(fp16, part), damage)
    report = measure_precision("fp16", run_on_cpu(fp32)(images), run_on_cpu(broken)(images))
    with pytest.raises(BundleError, match=r"fp16 graph is too far from fp32.*wanted 0\.9999") as refused:
        check_precision("fp16", report)
    assert refused.value.code == "precision_gate_failed"


def foreign(nodes: list[onnx.NodeProto], **constants: np.ndarray) -> onnx.ModelProto:
    """images → flat (N, 12) fp32 → the given nodes → y → unit rows."""
    values = {"flat_shape": np.array([0, 12], np.int64), "axis": np.array([1], np.int64), **constants}
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["pixels", "flat_shape"], ["flat"]),
            *nodes,
            helper.make_node("ReduceL2", ["y", "axis"], ["length"], keepdims=1),
            helper.make_node("Div", ["y", "length"], ["descriptors"]),
        ],
        "foreign",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 2, 2, 3])],
        [helper.make_tensor_value_info("descriptors", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def test_values_beyond_fp16_stay_in_fp32() -> None:
    """A layer with a huge weight, one with a mask of -3e38, an epsilon, unnamed nodes and a Constant node."""
    rng = np.random.default_rng(0)
    huge = rng.normal(0, 1, (12, 5)).astype(np.float32)
    huge[0, 0] = 3e5
    fifth = helper.make_node(
        "Constant", [], ["scale"], value=numpy_helper.from_array(np.full(5, 1e-5, np.float32), "scale")
    )
    model = foreign(
        [
            fifth,
            helper.make_node("MatMul", ["flat", "huge"], ["large"]),
            helper.make_node("Mul", ["large", "scale"], ["small"]),
            helper.make_node("Add", ["small", "mask"], ["masked"]),
            helper.make_node("Softmax", ["masked"], ["weights"], axis=1),
            helper.make_node("Add", ["weights", "epsilon"], ["shifted"]),
            helper.make_node("Unsqueeze", ["shifted", "axis"], ["row"]),
            helper.make_node("MatMul", ["row", "plain"], ["product"]),
            helper.make_node("Squeeze", ["product", "axis"], ["y"]),
        ],
        huge=huge,
        mask=np.array([0, 0, 0, 0, -3e38], np.float32),
        epsilon=np.float32(1e-7),
        plain=rng.normal(0, 1, (5, 4)).astype(np.float32),
    )
    half = to_fp16(model)
    assert stored(half, "plain") == TensorProto.FLOAT16
    for name in ("huge", "mask", "epsilon"):
        assert stored(half, name) == TensorProto.FLOAT
    images = rng.integers(0, 256, (4, 2, 2, 3), dtype=np.uint8)
    found = run_on_cpu(half)(images)
    assert np.isfinite(found).all()
    assert (found * run_on_cpu(model)(images)).sum(axis=1).min() > 0.9999


def test_a_norm_made_of_many_nodes_does_not_overflow() -> None:
    """Some exporters write LayerNorm as means and powers: values of 700 have squares beyond fp16."""

    class Decomposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 1)
            nn.init.constant_(self.conv.weight[:4], 250.0)
            self.last = nn.Conv2d(8, 6, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            found = self.conv(images)
            centred = found - found.mean(dim=1, keepdim=True)
            normed = centred / (centred.pow(2.0).mean(dim=1, keepdim=True) + 1e-6).sqrt()
            return nn.functional.normalize(self.last(normed).mean(dim=(2, 3)))

    torch.manual_seed(0)
    graph = export_graph(DescriptionGraph(Decomposed(), 127.0, 128.0).eval(), 8, 8, {})
    tidy = tidied(graph)
    kept = {node.op_type for node in tidy.graph.node if node.name in nodes_kept_in_fp32(tidy)}
    assert "Sqrt" in kept
    images = pictures(8, (8, 8))
    cosine = (run_on_cpu(to_fp16(graph))(images) * run_on_cpu(graph)(images)).sum(axis=1)
    assert cosine.min() > 0.999


def test_a_graph_the_converter_cannot_take() -> None:
    model = foreign([helper.make_node("Gemm", ["flat", "plain"], ["y"])], plain=np.eye(12, 4, dtype=np.float32))
    model.graph.node[2].input[0] = "made by no node"
    with pytest.raises(BundleError, match="cannot be converted to fp16") as refused:
        to_fp16(model)
    assert refused.value.code == "precision_not_possible"
