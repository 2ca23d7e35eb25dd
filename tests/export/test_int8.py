"""int8: what is quantised, how the layers that suffer are found, and that a damaged graph is refused."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from export.int8 import (
    QuantisedGraph,
    bias_shift,
    fewest_in_fp32,
    measure_activations,
    nodes_between,
    quantisable_layers,
    quantise,
    quantised_graph,
)
from export.precision import check_precision, measure_precision
from retrieval.bundle.exportable import bundle_model, run_on_cpu
from retrieval.bundle.onnx_graph import constants, tidied
from retrieval.errors import BundleError, ParameterError
from retrieval.images import read_image
from tests.export.lowering_nets import initializer, pictures, small_graph, with_weight


@pytest.fixture(scope="module")
def fp32() -> onnx.ModelProto:
    return small_graph()


@pytest.fixture(scope="module")
def quantised(fp32: onnx.ModelProto) -> QuantisedGraph:
    return quantise(fp32, pictures(64), target=0.5)


def test_layers_before_the_pooling_are_int8(fp32: onnx.ModelProto, quantised: QuantisedGraph) -> None:
    assert len(quantisable_layers(tidied(fp32))) == 4
    stored = {tensor.name: tensor.data_type for tensor in quantised.model.graph.initializer}
    assert stored["net.backbone.last.weight_quantized"] == TensorProto.INT8
    assert stored["net.projection.weight"] == TensorProto.FLOAT
    scales = {tensor.name: tensor.dims for tensor in quantised.model.graph.initializer if "weight_scale" in tensor.name}
    assert list(scales["net.backbone.last.weight_scale"]) == [64]  # one for each channel
    assert quantised.range_photos == 32
    assert {entry.key: entry.value for entry in quantised.model.metadata_props} == {"sightfix.name": "small"}
    onnx.checker.check_model(quantised.model, full_check=True)


def test_describes_nearly_as_fp32(fp32: onnx.ModelProto, quantised: QuantisedGraph) -> None:
    images = pictures(64)
    report = measure_precision("int8", run_on_cpu(fp32)(images), run_on_cpu(quantised.model)(images))
    assert report.min_cosine > 0.99
    assert check_precision("int8", report) == report
    judged = (run_on_cpu(fp32)(images[1::2]) * run_on_cpu(quantised.model)(images[1::2])).sum(axis=1)
    assert quantised.worst_cosine == pytest.approx(judged.min(), abs=1e-5)


@pytest.mark.parametrize(
    ("part", "damage"),
    [
        ("last.weight_quantized", lambda weight: np.roll(weight, 1, axis=1)),
        ("stem.weight_scale", lambda scale: np.where(np.arange(len(scale)) == 3, 4, 1) * scale),
    ],
    ids=["weights in the wrong place", "one channel's scale broken"],
)
def test_a_damaged_graph_is_refused(fp32: onnx.ModelProto, quantised: QuantisedGraph, part: str, damage) -> None:
    images = pictures(64)
    broken = with_weight(quantised.model, initializer(quantised.model, part), damage)
    report = measure_precision(
        "int8", run_on_cpu(fp32)(images), run_on_cpu(broken)(images), range_photos=quantised.range_photos
    )
    with pytest.raises(BundleError, match=r"wanted 0\.99\..*Give more than 64 photos") as refused:
        check_precision("int8", report)
    assert refused.value.code == "precision_gate_failed"


def test_activation_statistics_by_hand(fp32: onnx.ModelProto) -> None:
    """A range is the mean of each photo's extremes; a bias takes back what rounding does to the mean output."""
    tidy, photos = tidied(fp32), pictures(4)
    found = measure_activations(tidy, photos, ["Conv"])
    normalised = (
        photos.astype(np.float32).transpose(0, 3, 1, 2) - np.reshape([120, 115, 100], (3, 1, 1))
    ) / np.reshape([58, 57, 56], (3, 1, 1))
    stem = next(node for node in tidy.graph.node if node.op_type == "Conv")
    low, high = found.ranges[stem.input[0]].range_value
    assert low == pytest.approx(normalised.min(axis=(1, 2, 3)).mean(), rel=1e-5)
    assert high == pytest.approx(normalised.max(axis=(1, 2, 3)).mean(), rel=1e-5)
    weight = constants(tidy)[stem.input[1]]
    scale = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 127
    error = np.round(weight / scale) * scale - weight
    means = normalised.mean(axis=(0, 2, 3))
    by_hand = [-sum(error[out, channel].sum() * means[channel] for channel in range(3)) for out in range(16)]
    np.testing.assert_allclose(found.bias_shifts[stem.name], by_hand, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_bias_shifts_of_grouped_layers(groups: int) -> None:
    """Against loops: an output sees the inputs of its group only."""
    rng = np.random.default_rng(groups)
    weight = rng.normal(size=(8, 4 // groups, 3, 3)).astype(np.float32)
    means = rng.normal(size=4).astype(np.float32)
    expected = np.zeros(8)
    for out in range(8):
        scale = np.abs(weight[out]).max() / 127
        for place in range(4 // groups):
            channel = (out // (8 // groups)) * (4 // groups) + place
            for value in weight[out, place].flat:
                expected[out] -= (np.round(value / scale) * scale - value) * means[channel]
    np.testing.assert_allclose(bias_shift(weight, means, groups), expected, rtol=1e-3, atol=1e-5)


def test_the_shifts_assume_what_the_quantiser_does(fp32: onnx.ModelProto, quantised: QuantisedGraph) -> None:
    """Symmetric, one scale a channel, rounded to the nearest."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantised.model.graph.initializer}
    weight = constants(fp32)["net.backbone.last.weight"]
    scale = np.abs(weight).max(axis=(1, 2, 3)) / 127
    np.testing.assert_allclose(stored["net.backbone.last.weight_scale"], scale, rtol=1e-5)
    rounded = np.round(weight / scale[:, None, None, None])
    assert np.abs(stored["net.backbone.last.weight_quantized"] - rounded).max() <= 1


class Ledger:
    """Stands for quantisation: each layer that is quantised turns the descriptor by an angle of its own."""

    def __init__(self, angles: dict[str, float]) -> None:
        self.angles = angles
        self.built: list[tuple[str, ...]] = []

    def build(self, names: Collection[str]) -> onnx.ModelProto:
        self.built.append(tuple(names))
        angle = sum(self.angles[name] for name in names)
        return turned(angle)


def turned(angle: float) -> onnx.ModelProto:
    """(N, 1, 1, 3) → (cos, sin) of the angle, whatever the image."""
    vector = np.array([[np.cos(angle), np.sin(angle)]], np.float32)
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (uint8[N, 1, 1, 3] images) => (float[N, 2] descriptors) {
        batch = Shape<end = 1>(images)
        two = Constant<value_ints = [2]>()
        shape = Concat<axis = 0>(batch, two)
        descriptors = Expand(vector, shape)
    }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(vector, "vector"))
    return model


@pytest.mark.parametrize(
    ("target", "skipped"),
    [
        (np.cos(0.6), ()),  # all four turn by 0.51 radians
        (np.cos(0.22), ("c",)),  # the others by 0.21
        (np.cos(0.1), ("b", "c")),  # by 0.01
        (1.0, ("b", "c")),  # unreachable: half of the layers at most, the best is kept
    ],
)
def test_the_worst_layers_are_left_out_and_no_more(target: float, skipped: tuple[str, ...]) -> None:
    ledger = Ledger({"a": 0.005, "b": 0.2, "c": 0.3, "d": 0.005})
    photos = np.zeros((4, 1, 1, 3), np.uint8)
    found = fewest_in_fp32(ledger.build, list(ledger.angles), photos, run_on_cpu(turned(0.0))(photos), target)
    assert found.kept_in_fp32 == skipped
    left = sum(angle for name, angle in ledger.angles.items() if name not in skipped)
    assert found.worst_cosine == pytest.approx(np.cos(left), abs=1e-6)
    if skipped:
        assert ledger.built[1:5] == [("a",), ("b",), ("c",), ("d",)]  # each alone, once


def test_a_layer_left_out_is_not_quantised_by_the_runtime(fp32: onnx.ModelProto) -> None:
    """ONNX Runtime quantises fp32 weights between int8 layers by itself, unless something stands in front of them."""
    photos = pictures(8)
    kept = next(name for name in quantisable_layers(tidied(fp32)) if "depthwise" in weight_of(fp32, name))

    # Channels of very different size that all matter: one scale for them all, as the runtime would take, is hopeless.
    sizes = np.geomspace(1, 1e-3, 16)
    graph = with_weight(fp32, initializer(fp32, "depthwise.weight"), lambda weight: weight * sizes[:, None, None, None])
    graph = with_weight(graph, initializer(fp32, "depthwise.bias"), lambda bias: bias * sizes)
    graph = with_weight(graph, initializer(fp32, "pointwise.weight"), lambda weight: weight / sizes[:, None, None])
    found = all_but(graph, photos, kept)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = onnxruntime.InferenceSession(found.SerializeToString(), options, providers=["CPUExecutionProvider"])
    unoptimised = plain.run(None, {"images": photos})[0]
    assert (run_on_cpu(found)(photos) * unoptimised).sum(axis=1).min() > 0.9999


def weight_of(model: onnx.ModelProto, name: str) -> str:
    return next(node.input[1] for node in model.graph.node if node.name == name)


def all_but(graph: onnx.ModelProto, photos: np.ndarray, kept: str) -> onnx.ModelProto:
    tidy = tidied(graph)
    layers = quantisable_layers(tidy)
    statistics = measure_activations(tidy, photos, ["Add", "Clip", "Conv"])
    chosen = [name for name in layers if name != kept]
    return quantised_graph(tidy, statistics, chosen, nodes_between(tidy, layers), symmetric=False)


def test_symmetric_has_no_zero_points(fp32: onnx.ModelProto) -> None:
    """What TensorRT demands."""
    model = quantise(fp32, pictures(16), target=0.5, symmetric=True).model
    zeros = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer if "zero_point" in tensor.name]
    assert zeros
    assert all(not array.any() for array in zeros)
    assert {str(array.dtype) for array in zeros} == {"int8"}


def test_errors(fp32: onnx.ModelProto) -> None:
    with pytest.raises(ParameterError, match="others to judge by"):
        quantise(fp32, pictures(1))
    with pytest.raises(BundleError, match="cannot be quantised to int8: it has no convolution") as refused:
        quantise(turned(0.0), np.zeros((4, 1, 1, 3), np.uint8))
    assert refused.value.code == "precision_not_possible"
    with pytest.raises(BundleError, match="cannot be quantised to int8"):
        quantise(fp32, np.zeros((4, 5, 5, 3), np.uint8))


@pytest.mark.photos
def test_the_shipped_bundle_on_real_photos(photos_root: Path) -> None:
    """EfficientNet-Lite0 on 64 photos of the campus: passes, and fails with noise on one layer's integers."""
    source = bundle_model(None)
    paths = sorted((photos_root / "bgu_campus" / "images").glob("*.jpg"))[::23][:64]
    photos = np.stack([read_image(path, source.preprocessing) for path in paths])
    found = quantise(source.graph, photos, target=0.99)
    truth = run_on_cpu(source.graph)(photos)

    def judge(model: onnx.ModelProto):
        return measure_precision("int8", truth, run_on_cpu(model)(photos), range_photos=found.range_photos)

    report = judge(found.model)
    assert (report.images, report.calibration_images) == (64, 32)
    assert not check_precision("int8", report).accepted_loss
    noise = np.random.default_rng(0).integers(-40, 41, (80, 240, 1, 1))
    broken = with_weight(
        found.model,
        initializer(found.model, "blocks.3.0.conv_pwl.weight_quantized"),
        lambda weight: (weight.astype(int) + noise).clip(-127, 127),
    )
    with pytest.raises(BundleError, match="int8 graph is too far from fp32"):
        check_precision("int8", judge(broken))
