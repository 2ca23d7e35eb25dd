"""A graph that resizes a camera's frames gives the pixels, and so the descriptors, that Pillow's resize gives."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.shape_inference import infer_shapes

from export.camera import resize_matrices, resizes_rows_first, take_camera_frames, with_resize
from retrieval.bundle import Bundle
from retrieval.bundle.exportable import ExportableModel, compare_with_original, run_on_cpu
from retrieval.errors import ParameterError
from retrieval.images import Preprocessing, fit_image
from tests.retrieval.encoded import smooth


def frame(height: int, width: int, seed: int = 0) -> np.ndarray:
    grain = np.random.default_rng(seed).integers(-30, 31, (height, width, 3))
    return np.clip(np.asarray(smooth(width, height, seed)).astype(int) + grain, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("image_filter", ["bicubic", "bilinear"])
@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize(("camera", "size"), [((120, 160), (48, 40)), ((97, 61), (32, 48)), ((64, 64), (64, 33))])
def test_matrices_resize_as_pillow_does(camera, size, fit, image_filter) -> None:
    to = Preprocessing(height=size[0], width=size[1], fit=fit, filter=image_filter)
    rows, columns = resize_matrices(*camera, to)
    assert rows.shape == (size[0], camera[0])
    assert columns.shape == (size[1], camera[1])
    image = frame(*camera)
    passes = [("wW,hWc->hwc", columns), ("hH,Hwc->hwc", rows)]
    resized = image
    for equation, matrix in reversed(passes) if resizes_rows_first(*camera, to) else passes:
        resized = np.floor(np.clip(np.einsum(equation, matrix, resized), 0, 255) + 0.5)
    difference = np.abs(resized.astype(int) - fit_image(image, to).astype(int))
    # Pillow computes with 22-bit whole numbers; halves may round the other way.
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_halving_by_hand() -> None:
    """Bilinear, 4 → 2: a triangle of weights 3, 3, 1 over its own two pixels and the next, 1/7 each."""
    rows, _ = resize_matrices(4, 32, Preprocessing(height=16, width=16, filter="bilinear"))
    assert rows.shape == (16, 4)
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-6)
    _, columns = resize_matrices(16, 32, Preprocessing(height=16, width=16, filter="bilinear"))
    np.testing.assert_allclose(columns[0, :4], [3 / 7, 3 / 7, 1 / 7, 0], atol=1e-6)
    np.testing.assert_allclose(columns[5, 9:13], [1 / 8, 3 / 8, 3 / 8, 1 / 8], atol=1e-6)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_the_graph_describes_frames_as_it_describes_resized_photos(bundle: Bundle, fit: str) -> None:
    inner = bundle.preprocessing.model_copy(update={"fit": fit})
    model = onnx.load(bundle.graph_path("fp32"))
    frames = np.stack([frame(300, 400, seed) for seed in range(3)])
    ours = run_on_cpu(with_resize(model, 300, 400, inner))(frames)
    theirs = run_on_cpu(model)(np.stack([fit_image(image, inner) for image in frames]))
    assert (ours * theirs).sum(axis=1).min() > 0.99999


def test_only_a_cast_reads_the_frames_and_bytes_come_nowhere_else(bundle: Bundle) -> None:
    model = with_resize(cast_first(bundle), 300, 400, bundle.preprocessing)
    assert [node.op_type for node in model.graph.node if "images" in node.input] == ["Cast"]
    types = {value.name: value.type.tensor_type.elem_type for value in infer_shapes(model).graph.value_info}
    assert TensorProto.UINT8 not in types.values()
    frames = np.stack([frame(300, 400, seed) for seed in range(2)])
    theirs = run_on_cpu(cast_first(bundle))(np.stack([fit_image(image, bundle.preprocessing) for image in frames]))
    assert (run_on_cpu(model)(frames) * theirs).sum(axis=1).min() > 0.99999


def cast_first(bundle: Bundle) -> onnx.ModelProto:
    return onnx.load(bundle.graph_path("fp32"))


def test_a_model_for_a_camera_states_its_size_and_keeps_its_original(bundle: Bundle) -> None:
    model = onnx.load(bundle.graph_path("fp32"))
    source = ExportableModel(
        name="default",
        graph=model,
        preprocessing=bundle.preprocessing,
        descriptor_dim=bundle.descriptor_dim,
        provenance=bundle.manifest.provenance,
        licence=bundle.manifest.licence,
        original=run_on_cpu(model),
        original_name="the bundle",
    )
    camera = take_camera_frames(source, 270, 480)
    assert (camera.preprocessing.height, camera.preprocessing.width) == (270, 480)
    assert camera.preprocessing.fit == bundle.preprocessing.fit
    assert compare_with_original(camera).min_cosine >= 0.99999
    with pytest.raises(ParameterError, match="200×480 is smaller than the model's input, 256×256"):
        take_camera_frames(source, 200, 480)
