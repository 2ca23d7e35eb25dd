import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from retrieval.bundle import Bundle, open_bundle
from retrieval.describer import Describer
from retrieval.errors import BundleError, MissingExtraError, ParameterError
from tests.places import pattern
from tests.retrieval.mean_colour import mean_colour_graph
from tests.retrieval.other_bundle import change_manifest, copy_bundle, record_again
from tests.retrieval.refusal import refused


@pytest.fixture(scope="module")
def photos(bundle: Bundle) -> np.ndarray:
    size = (bundle.preprocessing.width, bundle.preprocessing.height)
    return np.stack([np.asarray(pattern(seed, size)) for seed in range(7)])


@pytest.fixture(scope="module")
def described(describer: Describer, photos: np.ndarray) -> np.ndarray:
    return describer.describe(photos)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one.astype(np.float64) * other).sum(axis=1)


def test_descriptors_are_unit_rows_of_float32(bundle: Bundle, described: np.ndarray) -> None:
    assert described.shape == (7, bundle.descriptor_dim)
    assert described.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(described, axis=1), 1.0, atol=1e-5)


def test_different_pictures_have_different_descriptors(described: np.ndarray) -> None:
    table = described @ described.T
    assert (table[~np.eye(7, dtype=bool)] < 0.99).all()


def test_an_empty_batch_has_no_descriptors(bundle: Bundle, describer: Describer, photos: np.ndarray) -> None:
    for nothing in ([], photos[:0]):
        empty = describer.describe(nothing)
        assert empty.shape == (0, bundle.descriptor_dim)
        assert empty.dtype == np.float32


def test_a_batch_equals_its_single_pictures(describer: Describer, photos: np.ndarray, described: np.ndarray) -> None:
    single = np.concatenate([describer.describe(photo[None]) for photo in photos])
    assert cosines(single, described).min() > 0.99999


def test_more_than_max_batch_is_described_in_pieces(bundle: Bundle, photos: np.ndarray, described: np.ndarray) -> None:
    pieces = Describer(bundle, max_batch=3).describe(list(photos))
    assert pieces.shape == described.shape
    assert cosines(pieces, described).min() > 0.99999


def test_a_list_of_pictures_is_as_good_as_an_array(
    describer: Describer, photos: np.ndarray, described: np.ndarray
) -> None:
    assert np.array_equal(describer.describe(list(photos)), described)


def test_many_threads_get_the_same_descriptors(describer: Describer, photos: np.ndarray) -> None:
    alone = describer.describe(photos[:1])
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda _: describer.describe(photos[:1]), range(8)))
    assert all(np.array_equal(alone, other) for other in together)


def test_warming_up_changes_nothing(describer: Describer, photos: np.ndarray, described: np.ndarray) -> None:
    describer.warm_up()
    assert np.array_equal(describer.describe(photos), described)


def test_another_size_is_refused(bundle: Bundle, describer: Describer, photos: np.ndarray) -> None:
    height, width = bundle.preprocessing.height, bundle.preprocessing.width
    remedy = "Decode it with the bundle's preprocessing (retrieval.images.decode_image)."
    text = f"an image is ({height - 1}, {width}, 3) uint8, the bundle wants ({height}, {width}, 3) uint8. {remedy}"
    with refused(ParameterError, text, "validation_error"):
        describer.describe(photos[:, 1:])
    with refused(ParameterError, text, "validation_error"):
        describer.describe([photos[0], photos[1][1:]])


def test_another_type_is_refused(bundle: Bundle, describer: Describer, photos: np.ndarray) -> None:
    height, width = bundle.preprocessing.height, bundle.preprocessing.width
    text = (
        f"an image is ({height}, {width}, 3) float32, the bundle wants ({height}, {width}, 3) uint8. "
        "Decode it with the bundle's preprocessing (retrieval.images.decode_image)."
    )
    with refused(ParameterError, text, "validation_error"):
        describer.describe(photos.astype(np.float32))


def test_one_picture_without_a_batch_is_refused(describer: Describer, photos: np.ndarray) -> None:
    with pytest.raises(ParameterError, match="the bundle wants"):
        describer.describe(photos[0])


def test_max_batch_below_1_is_refused(bundle: Bundle) -> None:
    with refused(ParameterError, "max_batch 0 is below 1.", "validation_error"):
        Describer(bundle, max_batch=0)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA"
)
def test_cuda_where_there_is_none_is_an_error_and_no_fallback(bundle: Bundle) -> None:
    text = (
        "the provider cuda is not available to the installed ONNX Runtime. "
        "Install sightfix[gpu] on a machine with a GPU, or choose the provider cpu."
    )
    with refused(ParameterError, text, "validation_error"):
        Describer(bundle, provider="cuda")


def test_a_missing_onnx_runtime_is_told(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    text = "ONNX Runtime is not installed. Run: pip install 'sightfix[cpu]' (or [gpu] beside CUDA)."
    with refused(MissingExtraError, text, "missing_extra"):
        Describer(bundle)


def test_a_precision_the_bundle_lacks_is_refused(bundle: Bundle) -> None:
    text = f"{bundle.folder}: the bundle has no fp16 graph. Choose among fp32."
    with refused(BundleError, text, "precision_not_found"):
        Describer(bundle, precision="fp16")


def test_a_graph_worked_out_on_paper(bundle: Bundle, copied: Path) -> None:
    height, width = bundle.preprocessing.height, bundle.preprocessing.width
    onnx.save(mean_colour_graph(height, width), copied / "model.onnx")
    change_manifest(copied, {"descriptor_dim": 3})
    record_again(copied, "model.onnx")
    describer = Describer(open_bundle(copied), threads=1)
    picture = np.zeros((1, height, width, 3), np.uint8)
    picture[:, : height // 2] = [60, 0, 80]
    np.testing.assert_allclose(describer.describe(picture), [[0.6, 0.0, 0.8]], rtol=1e-6)
    with refused(BundleError, f"{copied}: the graph returned a descriptor that is not finite.", "bundle_damaged"):
        describer.describe(np.zeros_like(picture))


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Path:
    return copy_bundle(bundle, tmp_path / "copy")


def test_a_graph_that_is_no_graph_is_refused(copied: Path) -> None:
    path = copied / "model.onnx"
    path.write_bytes(path.read_bytes()[: 1 << 20])
    record_again(copied, "model.onnx")
    text = (
        f"{path}: ONNX Runtime cannot load the graph ([ONNXRuntimeError] : 7 : INVALID_PROTOBUF : "
        f"Load model from {path} failed:Protobuf parsing failed.). Export the bundle again."
    )
    with refused(BundleError, text, "bundle_damaged"):
        Describer(open_bundle(copied))


def test_a_graph_of_another_length_than_the_manifest_says_is_refused(bundle: Bundle, copied: Path) -> None:
    change_manifest(copied, {"descriptor_dim": 7})
    preprocessing = bundle.preprocessing
    inputs = [("images", "tensor(uint8)", [preprocessing.height, preprocessing.width, 3])]
    outputs = [("descriptors", "tensor(float)", [bundle.descriptor_dim])]
    text = (
        f"{copied}: the graph has input {inputs} and output {outputs}, which is not the bundle's contract. "
        "Export the bundle again."
    )
    with refused(BundleError, text, "bundle_damaged"):
        Describer(open_bundle(copied))


def test_a_graph_of_another_input_size_is_refused(bundle: Bundle, copied: Path) -> None:
    change_manifest(copied, {"preprocessing/width": bundle.preprocessing.width + 16})
    record_again(copied, "model.onnx")
    with pytest.raises(BundleError, match="which is not the bundle's contract"):
        Describer(open_bundle(copied))
