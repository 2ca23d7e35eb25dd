import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from retrieval.bundle import Bundle, open_bundle
from retrieval.engines import openvino as openvino_engine
from retrieval.engines.engine import EngineDescription
from retrieval.engines.onnx_runtime import OnnxRuntimeEngine
from retrieval.engines.openvino import OpenVinoEngine, load_openvino
from retrieval.errors import BundleError, MissingExtraError, ProviderUnavailableError
from retrieval.machine import sums_bytes_exactly
from tests.retrieval.mean_colour import mean_colour_graph
from tests.retrieval.other_bundle import copy_bundle, record_again
from tests.retrieval.refusal import refused

REPOSITORY = Path(__file__).resolve().parents[3]


def worst_cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float((one.astype(np.float64) * other).sum(axis=1).min())


def test_openvino_agrees_with_onnx_runtime_whatever_the_batch(bundle: Bundle, photos: np.ndarray) -> None:
    """On processors with AMX its default would be bf16, at a cosine below 0.999."""
    openvino, onnxruntime = OpenVinoEngine(bundle, "fp32", 1), OnnxRuntimeEngine(bundle, "fp32", 1)
    for count in (1, 3, 2):
        found = openvino.run(photos[:count])
        assert (found.shape, found.dtype) == ((count, bundle.descriptor_dim), np.float32)
        assert worst_cosine(found, onnxruntime.run(photos[:count])) > 0.999999


def test_the_engine_says_what_computes(small: Bundle) -> None:
    description = OpenVinoEngine(small, "fp32", 1).description
    version = load_openvino().get_version().partition("-")[0]
    assert description == EngineDescription("openvino", "fp32", f"OpenVINO {version}", "CPU, 1 thread")


def test_threads_and_precision_are_those_asked_for(small: Bundle) -> None:
    compiled = OpenVinoEngine(small, "fp32", 1)._compiled
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    assert compiled.get_property("ENABLE_CPU_PINNING") is False


@pytest.mark.skipif(not sums_bytes_exactly(), reason="this processor clips sums of bytes")
def test_an_int8_graph_runs_in_integers(small: Bundle, photos: np.ndarray) -> None:
    engine = OpenVinoEngine(small, "int8", 1)
    assert precision_of_convolution(engine) in ("u8", "i8")
    assert precision_of_convolution(OpenVinoEngine(small, "fp32", 1)) == "f32"
    assert worst_cosine(engine.run(photos), OnnxRuntimeEngine(small, "int8", 1).run(photos)) > 0.99999


def test_a_processor_that_clips_sums_has_no_int8(small: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_engine, "sums_bytes_exactly", lambda: False)
    text = (
        "OpenVINO would clip the sums of an int8 graph on this processor, which has no VNNI, and describe wrongly. "
        "Choose the provider cpu, whose int8 is exact, or the precision fp32."
    )
    with refused(ProviderUnavailableError, text, "provider_unavailable"):
        OpenVinoEngine(small, "int8", 1)
    assert OpenVinoEngine(small, "fp32", 1).description.precision == "fp32"


def precision_of_convolution(engine: OpenVinoEngine) -> str:
    nodes = [node.get_rt_info() for node in engine._compiled.get_runtime_model().get_ops()]
    kinds = {str(info["layerType"].astype(str)): str(info["runtimePrecision"].astype(str)) for info in nodes}
    return kinds["Convolution"]


def test_the_next_run_leaves_the_descriptors_alone(small: Bundle, photos: np.ndarray) -> None:
    engine = OpenVinoEngine(small, "fp32", 1)
    first = engine.run(photos[:2])
    kept = first.copy()
    engine.run(photos[2:4])
    assert np.array_equal(first, kept)


@pytest.fixture
def copied(small: Bundle, tmp_path: Path) -> Path:
    return copy_bundle(small, tmp_path / "copy")


def test_a_graph_that_is_no_graph_is_refused(copied: Path) -> None:
    path = copied / "model.onnx"
    path.write_bytes(b"no graph")
    record_again(copied, "model.onnx")
    with pytest.raises(BundleError) as caught:
        OpenVinoEngine(open_bundle(copied), "fp32", 1)
    text = str(caught.value)
    assert text.startswith(f"{path}: OpenVINO cannot load the graph (")
    assert text.endswith("). Export the bundle again, or choose the provider cpu.")
    assert "\n" not in text


def test_a_graph_of_another_size_is_refused(small: Bundle, copied: Path) -> None:
    height, width = small.preprocessing.height, small.preprocessing.width
    onnx.save(mean_colour_graph(height, width + 1), copied / "model.onnx")
    record_again(copied, "model.onnx")
    text = (
        f"{copied}: the graph has input [('images', 'uint8', [{height}, {width + 1}, 3])] and output "
        "[('descriptors', 'float32', [3])], which is not the bundle's contract. Export the bundle again."
    )
    with refused(BundleError, text, "bundle_damaged"):
        OpenVinoEngine(open_bundle(copied), "fp32", 1)


def test_a_missing_openvino_is_reported(small: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    text = "OpenVINO is not installed. Run: pip install 'sightfix[openvino]'."
    with refused(MissingExtraError, text, "missing_extra"):
        OpenVinoEngine(small, "fp32", 1)


def test_no_telemetry() -> None:
    """Importing OpenVINO sends its use over the network, unless its telemetry package is out of sight."""
    script = """
import sys
from retrieval.engines.openvino import load_openvino
load_openvino()
print("openvino._pyopenvino" in sys.modules, [name for name in sys.modules if name.startswith("openvino_telemetry")])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "True []\n"), done.stderr
