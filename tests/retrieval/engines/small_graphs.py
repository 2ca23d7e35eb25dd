"""Bundles of graphs that load in a moment: a convolution in fp32, and the same with quantised integers."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from retrieval.bundle import Bundle, BundleManifest, open_bundle
from tests.retrieval.other_bundle import copy_bundle

CHANNELS = 16


def write_small_bundle(bundle: Bundle, folder: Path) -> Bundle:
    """A bundle for pictures of the shipped one's size, whose descriptor is the mean of one convolution."""
    copy_bundle(bundle, folder)
    height, width = bundle.preprocessing.height, bundle.preprocessing.width
    onnx.save(convolution_graph(height, width, quantised=False), folder / "model.onnx")
    onnx.save(convolution_graph(height, width, quantised=True), folder / "model.int8.onnx")
    return reseal(bundle, folder, {"fp32": "model.onnx", "int8": "model.int8.onnx"})


def reseal(bundle: Bundle, folder: Path, graphs: dict[str, str]) -> Bundle:
    """Write the manifest for other graphs of 16 channels, and open the bundle."""
    from retrieval.artefact import record_files
    from retrieval.bundle import bundle_fingerprint

    files = record_files(folder, sorted({*graphs.values(), "MODEL_CARD.md"}))
    update = {
        "graphs": graphs,
        "files": files,
        "descriptor_dim": CHANNELS,
        "fingerprint": bundle_fingerprint(files[graphs["fp32"]], bundle.preprocessing),
    }
    BundleManifest.model_validate({**bundle.manifest.model_dump(), **update}).write(folder)
    return open_bundle(folder)


def convolution_graph(height: int, width: int, *, quantised: bool) -> onnx.ModelProto:
    """images → /255 → conv 3×3 to 16 channels → ReLU → mean over the picture → unit length."""
    rng = np.random.default_rng(7)
    weights = rng.normal(0, 0.5, (CHANNELS, 3, 3, 3)).astype(np.float32)
    constants = {
        "scale": np.float32(1 / 255),
        "axes": np.array([2, 3], np.int64),
        "last": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["nchw"], perm=[0, 3, 1, 2]),
    ]
    if quantised:
        step = np.float32(np.abs(weights).max() / 127)
        constants |= {
            "in_step": np.float32(1 / 255),
            "in_zero": np.uint8(0),
            "weight": np.clip(np.round(weights / step), -127, 127).astype(np.int8),
            "weight_step": step,
            "weight_zero": np.int8(0),
        }
        nodes += [
            helper.make_node("QuantizeLinear", ["nchw", "in_step", "in_zero"], ["in_int"]),
            helper.make_node("DequantizeLinear", ["in_int", "in_step", "in_zero"], ["conv_in"]),
            helper.make_node("DequantizeLinear", ["weight", "weight_step", "weight_zero"], ["conv_weight"]),
        ]
    else:
        constants["conv_weight"] = weights
        nodes.append(helper.make_node("Identity", ["nchw"], ["conv_in"]))
    nodes += [
        helper.make_node("Conv", ["conv_in", "conv_weight"], ["conv"], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("ReduceMean", ["relu", "axes"], ["mean"], keepdims=0),
        helper.make_node("ReduceL2", ["mean", "last"], ["length"], keepdims=1),
        helper.make_node("Div", ["mean", "length"], ["descriptors"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", height, width, 3])
    descriptors = helper.make_tensor_value_info("descriptors", TensorProto.FLOAT, ["N", CHANNELS])
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "convolution", [images], [descriptors], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def byte_product_graph(weights: np.ndarray) -> onnx.ModelProto:
    """images (N, k) uint8 → their product with weights (k, n) int8, as a QDQ graph whose every scale is 1.

    The output is clipped to 0 to 255 when it is quantised; a scale of 256 keeps it from that: it is a multiple of 256.
    """
    constants = {
        "one": np.float32(1),
        "coarse": np.float32(256),
        "zero": np.uint8(0),
        "weights": weights.astype(np.int8),
        "weights_zero": np.int8(0),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["images", "one", "zero"], ["floats"]),
        helper.make_node("DequantizeLinear", ["weights", "one", "weights_zero"], ["weight_floats"]),
        helper.make_node("MatMul", ["floats", "weight_floats"], ["product"]),
        helper.make_node("QuantizeLinear", ["product", "coarse", "zero"], ["bytes"]),
        helper.make_node("DequantizeLinear", ["bytes", "coarse", "zero"], ["descriptors"]),
    ]
    graph = helper.make_graph(
        nodes,
        "byte product",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", weights.shape[0]])],
        [helper.make_tensor_value_info("descriptors", TensorProto.FLOAT, ["N", weights.shape[1]])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
