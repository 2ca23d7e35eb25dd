import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from retrieval.bundle import Bundle, open_bundle
from retrieval.describer import Describer
from retrieval.engines import choosing
from retrieval.engines.engine import EngineDescription
from retrieval.errors import BundleError, MissingExtraError, ParameterError, ProviderUnavailableError
from tests.places import pattern
from tests.retrieval.mean_colour import mean_colour_graph
from tests.retrieval.other_bundle import change_manifest, copy_bundle, record_again
from tests.retrieval.refusal import refused


@pytest.fixture(scope="module")
def photos(bundle: Bundle) -> np.ndarray:
    size = (bundle.preprocessing.width, bundle.preprocessing.height)
    return np.stack([np.asarray(pattern(seed, size)) for seed in range(7)])


@pytest.fixture(scope="module")
def describer(bundle: Bundle) -> Describer:
    """One that remembers nothing."""
    return Describer(bundle)


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


def test_threads_below_1_are_refused(bundle: Bundle) -> None:
    with refused(ParameterError, "threads 0 is below 1.", "validation_error"):
        Describer(bundle, threads=0)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA"
)
def test_cuda_where_there_is_none_is_an_error_and_no_fallback(bundle: Bundle) -> None:
    what = f"the installed ONNX Runtime {onnxruntime.__version__} was built without the provider cuda"
    remedy = "Install sightfix[gpu] in an environment without sightfix[cpu], on a machine with an NVIDIA GPU"
    with refused(ProviderUnavailableError, f"{what}. {remedy}.", "provider_unavailable"):
        Describer(bundle, provider="cuda")
    describer = Describer(bundle, provider="cuda", allow_cpu_fallback=True)
    assert (describer.provider, describer.passed_over) == ("cpu", (f"cuda: {what}",))


def test_the_describer_says_what_computes(bundle: Bundle) -> None:
    describer = Describer(bundle, threads=1)
    runtime = f"ONNX Runtime {onnxruntime.__version__}"
    assert describer.description == EngineDescription("cpu", "fp32", runtime, "CPU, 1 thread")
    assert (describer.provider, describer.passed_over) == ("cpu", ())


def test_openvino_describes_the_same(bundle: Bundle, photos: np.ndarray, described: np.ndarray) -> None:
    describer = Describer(bundle, provider="openvino", threads=1, max_batch=4)
    describer.warm_up()
    assert cosines(describer.describe(photos), described).min() > 0.999999


class Recording:
    """An engine that takes note of its batches, and of two callers at once."""

    def __init__(self, provider: str, dim: int) -> None:
        self.description = EngineDescription(provider, "fp32", "made up", "made up")  # type: ignore[arg-type]
        self.dim = dim
        self.batches: list[int] = []
        self.inside = 0
        self.most_inside = 0
        self.all_contiguous = True

    def run(self, images: np.ndarray) -> np.ndarray:
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        time.sleep(0.002)
        self.all_contiguous &= images.flags.c_contiguous
        self.batches.append(len(images))
        self.inside -= 1
        return np.ones((len(images), self.dim), np.float32)


@pytest.fixture
def recording(bundle: Bundle, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Recording:
    """In place of the provider that the test asks for."""
    provider = getattr(request, "param", "cpu")
    engine = Recording(provider, bundle.descriptor_dim)
    monkeypatch.setitem(choosing._OPEN, provider, lambda _: engine)  # type: ignore[misc]
    return engine


@pytest.mark.parametrize(
    ("recording", "batches"), [("tensorrt", [1, 2, 4, 6]), ("cuda", [1, 2, 4, 6]), ("cpu", [1])], indirect=["recording"]
)
def test_every_batch_size_that_a_gpu_may_see_is_warmed_up(
    bundle: Bundle, recording: Recording, batches: list[int]
) -> None:
    Describer(bundle, provider=recording.description.provider, max_batch=6).warm_up()
    assert recording.batches == batches


def test_an_engine_has_one_caller_at_a_time(bundle: Bundle, recording: Recording, photos: np.ndarray) -> None:
    describer = Describer(bundle)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: describer.describe(photos[:1]), range(12)))
    assert (len(recording.batches), recording.most_inside) == (12, 1)


def test_an_engine_is_given_bytes_in_the_order_of_their_pixels(
    bundle: Bundle, recording: Recording, photos: np.ndarray
) -> None:
    Describer(bundle, max_batch=4).describe(photos[:, :, ::-1])
    assert (recording.batches, recording.all_contiguous) == ([4, 3], True)


def test_a_missing_onnx_runtime_is_told(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    text = "ONNX Runtime is not installed. Run: pip install 'sightfix[cpu]' (or [gpu] beside CUDA)."
    with refused(MissingExtraError, text, "missing_extra"):
        Describer(bundle)


def test_a_precision_the_bundle_lacks_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"the bundle has no fp16 graph\. Choose among fp32; or make one"):
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
    inputs = [("images", "uint8", [preprocessing.height, preprocessing.width, 3])]
    outputs = [("descriptors", "float32", [bundle.descriptor_dim])]
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
