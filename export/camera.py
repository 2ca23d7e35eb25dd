"""Take a camera's whole frames: the resize to the model's size becomes part of the graph.

For robots and model servers that hand over raw frames of one fixed size. Resampling along one side is a matrix, so the
resize is two matrix products with Pillow's own coefficients, rounded to 8 bit after each as Pillow rounds: every
runtime can run it (TensorRT has no antialiased Resize), and it gives the pixels that `retrieval.images` gives.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from retrieval.bundle import INPUT_NAME
from retrieval.bundle.exportable import ExportableModel
from retrieval.bundle.onnx_graph import replace_nodes
from retrieval.errors import ParameterError
from retrieval.images import Preprocessing, fit_image

_FILTERS: Final = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_RESIZED = "images.resized"


def take_camera_frames(model: ExportableModel, height: int, width: int) -> ExportableModel:
    """The same model for frames of a camera, which its name says; its original's frames are resized with Pillow.

    Args:
        model: of any input size.
        height, width: of the camera's frames, pixels.

    Raises:
        ParameterError: the frame is smaller than the model's input.
    """
    model_size = model.preprocessing
    if height < model_size.height or width < model_size.width:
        raise ParameterError(
            f"a camera frame of {height}×{width} is smaller than the model's input, "
            f"{model_size.height}×{model_size.width}",
            remedy="Leave the camera size out: photos are resized before they reach the model",
        )
    original = model.original

    def resized_original(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        return original(np.stack([fit_image(frame, model_size) for frame in frames]))

    return replace(
        model,
        name=f"{model.name}-camera-{width}x{height}",
        graph=with_resize(model.graph, height, width, model_size),
        preprocessing=model_size.model_copy(update={"height": height, "width": width}),
        original=resized_original,
        original_name=f"{model.original_name}, resized by Pillow",
    )


def with_resize(model: onnx.ModelProto, height: int, width: int, inner: Preprocessing) -> onnx.ModelProto:
    """A copy of a graph that takes (N, height, width, 3) uint8 and resizes to `inner` itself.

    Args:
        model: with the bundle's contract, for images of `inner`.
        height, width: of the new input, pixels.
        inner: size, fit and filter.
    """
    resizing = onnx.ModelProto()
    resizing.CopyFrom(model)
    graph = resizing.graph
    rows, columns = resize_matrices(height, width, inner)
    rows_first = resizes_rows_first(height, width, inner)
    constants = {
        "camera.columns": columns.T,  # (width, inner.width): multiplied from the right
        "camera.rows": rows,  # (inner.height, height): multiplied from the left
        "camera.half": np.float32(0.5),
        "camera.black": np.float32(0),
        "camera.white": np.float32(255),
    }
    graph.initializer.extend(numpy_helper.from_array(np.ascontiguousarray(v), k) for k, v in constants.items())
    # Bytes are read by a Cast and come nowhere else: TensorRT allows neither.
    nodes = [
        helper.make_node("Cast", [INPUT_NAME], ["camera.float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["camera.float"], ["camera.0"], perm=[0, 3, 1, 2]),
        *(_down("camera.0", "camera.1") if rows_first else _across("camera.0", "camera.1")),
        *(_across("camera.1", "camera.2") if rows_first else _down("camera.1", "camera.2")),
        helper.make_node("Transpose", ["camera.2"], [_RESIZED], perm=[0, 2, 3, 1]),
    ]
    for number, node in enumerate(nodes):
        node.name = f"camera/{number}_{node.op_type}"
    replace_nodes(resizing, [*nodes, *_reading_floats(graph.node)])
    for dim, size in zip(graph.input[0].type.tensor_type.shape.dim[1:3], (height, width), strict=True):
        dim.dim_value = size
    onnx.checker.check_model(resizing, full_check=True)
    return resizing


def _reading_floats(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The model's nodes, reading resized floats where they read bytes; its own Cast of them is left out."""
    kept = list(nodes)
    renamed = {INPUT_NAME: _RESIZED}
    for node in kept:
        if node.op_type == "Cast" and node.input[0] == INPUT_NAME and node.attribute[0].i == TensorProto.FLOAT:
            renamed[node.output[0]] = _RESIZED
    for node in kept:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    return [node for node in kept if not (node.op_type == "Cast" and node.output[0] in renamed)]


def _across(name: str, result: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("MatMul", [name, "camera.columns"], [f"{name}.across"]),
        *_rounded(f"{name}.across", result),
    ]


def _down(name: str, result: str) -> list[onnx.NodeProto]:
    return [helper.make_node("MatMul", ["camera.rows", name], [f"{name}.down"]), *_rounded(f"{name}.down", result)]


def _rounded(name: str, result: str) -> list[onnx.NodeProto]:
    """Round half up and cut to 0..255, as Pillow does between its two passes (ONNX's Round is half to even)."""
    return [
        helper.make_node("Add", [name, "camera.half"], [f"{name}.raised"]),
        helper.make_node("Floor", [f"{name}.raised"], [f"{name}.whole"]),
        helper.make_node("Clip", [f"{name}.whole", "camera.black", "camera.white"], [result]),
    ]


def resizes_rows_first(height: int, width: int, to: Preprocessing) -> bool:
    """Whether Pillow resizes this size along its columns of pixels first (it picks the cheaper order, by version).

    Pixels are rounded between the passes, so the order shows in one pixel of five; it is found by trying both.
    """
    rows, columns = resize_matrices(height, width, to)
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = fit_image(frame, to)
    planes = frame.transpose(2, 0, 1).astype(np.float32)
    across_first = _eight_bit(rows @ _eight_bit(planes @ columns.T))
    down_first = _eight_bit(_eight_bit(rows @ planes) @ columns.T)
    wrong = [int((planes.transpose(1, 2, 0) != expected).sum()) for planes in (across_first, down_first)]
    return wrong[1] < wrong[0]


def _eight_bit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    rounded: NDArray[np.float32] = np.clip(np.floor(values + np.float32(0.5)), 0, 255)
    return rounded


def resize_matrices(height: int, width: int, to: Preprocessing) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The resize of `retrieval.images` as matrices along each side.

    Args:
        height, width: of what is resized, pixels.
        to: size, fit and filter.

    Returns:
        (to.height, height) and (to.width, width) float32. Rows that show padding are zero.
    """
    resample = _FILTERS[to.filter]
    if to.fit == "stretch":
        return _matrix(height, to.height, resample), _matrix(width, to.width, resample)
    if to.fit == "crop":
        # As ImageOps.fit: what exceeds the target's aspect ratio is cut evenly on both sides.
        ratio, wanted = width / height, to.width / to.height
        cut_rows = 0.0 if ratio >= wanted else height - width / wanted
        cut_columns = 0.0 if ratio <= wanted else width - wanted * height
        return (
            _matrix(height, to.height, resample, cut_rows / 2),
            _matrix(width, to.width, resample, cut_columns / 2),
        )
    # As ImageOps.pad: contained in the target, centred, the rest black.
    scale_by_width = width / height > to.width / to.height
    tall = round(height / width * to.width) if scale_by_width else to.height
    wide = to.width if scale_by_width else round(width / height * to.height)
    return (
        _padded(_matrix(height, tall, resample), to.height),
        _padded(_matrix(width, wide, resample), to.width),
    )


def _matrix(size: int, to: int, resample: Image.Resampling, cut: float = 0.0) -> NDArray[np.float32]:
    """(to, size) float32: Pillow's coefficients, read off a resized identity; `cut` pixels left out at each end."""
    identity = Image.fromarray(np.eye(size, dtype=np.float32))
    resized = identity.resize((size, to), resample, box=(0, cut, size, size - cut))
    return np.asarray(resized, np.float32)


def _padded(matrix: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    before = round((size - len(matrix)) * 0.5)
    return np.pad(matrix, ((before, size - len(matrix) - before), (0, 0)))
