import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from retrieval.bundle import Bundle
from retrieval.engines import onnx_runtime
from retrieval.engines.compiled import default_profiles
from retrieval.engines.engine import EngineDescription, EngineRequest
from retrieval.engines.onnx_runtime import (
    OnnxRuntimeEngine,
    check_installed,
    check_placement,
    check_providers,
    open_session,
    placement,
)
from retrieval.engines.onnx_runtime_gpu import DeviceBoundEngine, cuda_provider_options, open_cuda_provider
from retrieval.errors import DeviceError, ParameterError, ProviderUnavailableError
from tests.retrieval.engines.small_graphs import byte_product_graph
from tests.retrieval.refusal import refused


def test_the_engine_says_what_computes(small: Bundle) -> None:
    description = OnnxRuntimeEngine(small, "int8", 1).description
    runtime = f"ONNX Runtime {onnxruntime.__version__}"
    assert description == EngineDescription("cpu", "int8", runtime, "CPU, 1 thread")


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_are_what_is_asked_for_and_do_not_spin(small: Bundle, threads: int) -> None:
    session = open_session(onnxruntime, small.graph_path("fp32"), [("CPUExecutionProvider", {})], threads)
    options = session.get_session_options()
    assert options.intra_op_num_threads == threads
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_sums_of_int8_products_are_not_clipped(tmp_path: Path) -> None:
    """On x86 without VNNI, 255·127 + 255·127 would become 32,767 wherever two bytes are neighbours."""
    weights = np.full((16, 8), 127)
    weights[8:] = -126
    onnx.save(byte_product_graph(weights), tmp_path / "product.onnx")
    session = open_session(onnxruntime, tmp_path / "product.onnx", [("CPUExecutionProvider", {})], 1)
    images = np.full((4, 16), 255, np.uint8)
    exact = images.astype(np.int64) @ weights  # 2,040
    [product] = session.run(None, {"images": images})
    np.testing.assert_array_equal(product, np.round(exact / 256) * 256)


@pytest.mark.parametrize("exact", [True, False])
def test_only_a_processor_that_clips_gives_up_its_fast_sums(
    exact: bool, small: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_runtime, "sums_bytes_exactly", lambda: exact)
    session = open_session(onnxruntime, small.graph_path("int8"), [("CPUExecutionProvider", {})], 1)
    key = "session.x64quantprecision"
    if exact:
        with pytest.raises(RuntimeError, match=key):
            session.get_session_options().get_session_config_entry(key)
    else:
        assert session.get_session_options().get_session_config_entry(key) == "1"


@pytest.mark.parametrize("module", ["retrieval.engines.onnx_runtime", "retrieval.bundle.exportable"])
def test_no_telemetry_and_nothing_in_the_home_folder(module: str, tmp_path: Path) -> None:
    script = f"import {module}; from retrieval.engines.onnx_runtime import load_onnxruntime, open_session; "
    script += "from retrieval.bundle import open_bundle; import os; "
    script += "graph = open_bundle().graph_path('fp32'); "
    script += "open_session(load_onnxruntime(), graph, [('CPUExecutionProvider', {})], 1); "
    script += "print([link for fd in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{fd}') "
    script += "for link in [os.readlink(f'/proc/self/fd/{fd}')] if 'onnxruntime' in link or 'socket' in link])"
    # Continuous integration is left alone by ONNX Runtime, so none of its variables may help here.
    plain = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", script], env=plain, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert not list(tmp_path.rglob("*onnxruntime*"))


@pytest.mark.parametrize("threads", [1, 3, 7])
def test_large_batches_are_run_in_small_pieces(
    small: Bundle, photos: np.ndarray, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = OnnxRuntimeEngine(small, "fp32", threads)
    whole = np.concatenate([photos] * 3)
    single = np.concatenate([engine.run(image[None]) for image in whole])
    session, sizes = engine._session, []

    class Counting:
        def run(self, outputs: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            sizes.extend(len(batch) for batch in inputs.values())
            found: list[np.ndarray] = session.run(outputs, inputs)
            return found

    monkeypatch.setattr(engine, "_session", Counting())
    assert np.allclose(engine.run(whole), single, atol=1e-6)
    assert sum(sizes) == len(whole)
    assert max(sizes) == min(len(whole), max(4, threads))


def test_a_failing_provider_is_never_replaced_within_a_request(small: Bundle) -> None:
    session = open_session(onnxruntime, small.graph_path("fp32"), [("CPUExecutionProvider", {})], 1)
    assert session._enable_fallback is False


def test_the_next_run_leaves_the_descriptors_alone(small: Bundle, photos: np.ndarray) -> None:
    engine = OnnxRuntimeEngine(small, "fp32", 1)
    first = engine.run(photos[:2])
    kept = first.copy()
    engine.run(photos[2:4])
    assert np.array_equal(first, kept)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA"
)
def test_onnx_runtime_falls_back_without_an_error_and_is_found_out(small: Bundle) -> None:
    with pytest.warns(UserWarning, match="not in available provider names"):
        session = open_session(onnxruntime, small.graph_path("fp32"), [("CUDAExecutionProvider", {})], 1)
    text = (
        "ONNX Runtime fell back from CUDAExecutionProvider to CPUExecutionProvider. "
        "Check the GPU driver, CUDA 13 and cuDNN 9 (and TensorRT for tensorrt), or choose the provider cpu."
    )
    with refused(ProviderUnavailableError, text, "provider_unavailable"):
        check_providers("cuda", session.get_providers())
    with refused(ProviderUnavailableError, text.replace("CUDAE", "TensorrtE"), "provider_unavailable"):
        check_providers("tensorrt", session.get_providers())


def test_what_was_asked_for_first_is_no_fallback() -> None:
    check_providers("cuda", ["CUDAExecutionProvider", "CPUExecutionProvider"])
    check_providers("tensorrt", ["TensorrtExecutionProvider", "CUDAExecutionProvider"])
    with pytest.raises(ProviderUnavailableError, match="from TensorrtExecutionProvider to CUDAExecutionProvider"):
        check_providers("tensorrt", ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(ProviderUnavailableError, match="to nothing"):
        check_providers("cpu", [])


def test_every_node_of_a_session_is_accounted_for(small: Bundle) -> None:
    session = open_session(onnxruntime, small.graph_path("fp32"), [("CPUExecutionProvider", {})], 1)
    placed = placement(session)
    assert list(placed) == ["CPUExecutionProvider"]
    assert placed["CPUExecutionProvider"]["Div"] == 1
    check_placement("cpu", placed)


def test_a_provider_that_computes_nothing_is_refused() -> None:
    text = (
        "TensorrtExecutionProvider computes none of the graph's 9 nodes, CPUExecutionProvider and "
        "CUDAExecutionProvider would. Choose another provider or precision."
    )
    placed = {"CUDAExecutionProvider": Counter(Conv=8), "CPUExecutionProvider": Counter(Shape=1)}
    with refused(ProviderUnavailableError, text, "provider_unavailable"):
        check_placement("tensorrt", placed)


@pytest.mark.parametrize(
    ("left", "level"), [(Counter(Shape=1, Concat=1), "INFO"), (Counter(Shape=1, Resize=1), "WARNING")]
)
def test_nodes_left_to_the_cpu_are_logged(left: Counter[str], level: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    check_placement("cuda", {"CUDAExecutionProvider": Counter(Conv=8), "CPUExecutionProvider": left})
    assert [record.levelname for record in caplog.records] == [level]
    names = ", ".join(sorted(left))
    assert caplog.messages == [f"CUDAExecutionProvider computes 8 of 10 nodes; CPUExecutionProvider: {names}"]


def test_unknown_placement_is_not_checked(caplog: pytest.LogCaptureFixture) -> None:
    check_placement("tensorrt", placement(object()))
    assert not caplog.messages


@pytest.mark.skipif(
    "TensorrtExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime has TensorRT"
)
def test_a_provider_that_was_not_built_in_is_reported() -> None:
    text = (
        f"the installed ONNX Runtime {onnxruntime.__version__} was built without the provider tensorrt. "
        "Install sightfix[gpu] in an environment without sightfix[cpu], on a machine with an NVIDIA GPU."
    )
    with refused(ProviderUnavailableError, text, "provider_unavailable"):
        check_installed(onnxruntime, "tensorrt")


def test_the_memory_of_a_shared_gpu_is_not_taken_in_powers_of_two() -> None:
    assert cuda_provider_options()["arena_extend_strategy"] == "kSameAsRequested"
    assert "gpu_mem_limit" not in cuda_provider_options()
    assert cuda_provider_options(1 << 30)["gpu_mem_limit"] == "1073741824"


def test_fp32_on_cuda_is_not_rounded_to_tf32() -> None:
    assert cuda_provider_options()["use_tf32"] == "0"


@pytest.fixture
def bound(small: Bundle) -> DeviceBoundEngine:
    """The engine of a GPU on the CPU's memory: the same buffers, bindings and padding."""
    session = open_session(onnxruntime, small.graph_path("fp32"), [("CPUExecutionProvider", {})], 1)
    description = EngineDescription("cuda", "fp32", "ONNX Runtime", "memory")
    return DeviceBoundEngine(onnxruntime, [session] * 2, small, default_profiles(6), description, device="cpu")


def test_padding_to_bound_buffers_changes_no_descriptor(
    small: Bundle, bound: DeviceBoundEngine, photos: np.ndarray
) -> None:
    expected = OnnxRuntimeEngine(small, "fp32", 1).run(photos)
    for count in (6, 1, 3, 5, 2, 4):
        found = bound.run(photos[:count])
        assert found.shape == (count, 16)
        np.testing.assert_allclose(found, expected[:count], atol=1e-6)


def test_bound_buffers_are_not_handed_out(bound: DeviceBoundEngine, photos: np.ndarray) -> None:
    first = bound.run(photos[:2])
    kept = first.copy()
    bound.run(photos[2:4])
    assert np.array_equal(first, kept)
    assert first.base is None


def test_more_than_the_profiles_hold_is_refused(bound: DeviceBoundEngine, photos: np.ndarray) -> None:
    with pytest.raises(ParameterError, match="a batch of 7 images, and the engine takes 1 to 6"):
        bound.run(photos)


def test_each_profile_runs_in_its_own_session(small: Bundle, photos: np.ndarray) -> None:
    """ONNX Runtime's TensorRT provider never leaves the first profile of an engine."""

    class Session:
        def __init__(self) -> None:
            self.sizes: list[int] = []
            self.real = open_session(onnxruntime, small.graph_path("fp32"), [("CPUExecutionProvider", {})], 1)

        def io_binding(self) -> object:
            return self.real.io_binding()

        def run_with_iobinding(self, binding: object) -> None:
            self.real.run_with_iobinding(binding)
            self.sizes.append(binding.get_outputs()[0].shape()[0])

    single, several = Session(), Session()
    description = EngineDescription("tensorrt", "fp32", "ONNX Runtime", "memory")
    engine = DeviceBoundEngine(onnxruntime, [single, several], small, default_profiles(6), description, device="cpu")
    for count in (1, 3, 6, 1):
        engine.run(photos[:count])
    assert (single.sizes, several.sizes) == ([1, 1], [4, 6])


def test_a_failure_of_the_device_is_reported_and_not_worked_around(
    bound: DeviceBoundEngine, photos: np.ndarray
) -> None:
    with pytest.raises(DeviceError, match=r"failed to describe 2 images.*Check nvidia-smi"):
        bound.run(photos[:2, 1:])


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu(bundle: Bundle, photos: np.ndarray) -> None:
    engine = open_cuda_provider(EngineRequest(bundle, threads=1, profiles=default_profiles(4)))
    expected = OnnxRuntimeEngine(bundle, "fp32", 1).run(photos[:3])
    assert (engine.run(photos[:3]) * expected).sum(axis=1).min() > 0.9999
    assert engine.description.provider == "cuda"
