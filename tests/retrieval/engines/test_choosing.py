import logging
import sys
from dataclasses import replace

import onnxruntime
import pytest

from retrieval.bundle import Bundle
from retrieval.engines import choosing
from retrieval.engines import openvino as openvino_engine
from retrieval.engines.choosing import choose_engine
from retrieval.engines.compiled import default_profiles
from retrieval.engines.engine import Engine, EngineDescription, EngineRequest
from retrieval.errors import BundleError, DeviceError, MissingExtraError, ParameterError, ProviderUnavailableError
from tests.retrieval.refusal import refused

without_gpu = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA"
)
BUILT_WITHOUT = f"the installed ONNX Runtime {onnxruntime.__version__} was built without the provider"


@pytest.fixture
def request_(small: Bundle) -> EngineRequest:
    return EngineRequest(small, threads=1, profiles=default_profiles(4))


class Working:
    """An engine that is there."""

    def __init__(self, provider: str) -> None:
        self.description = EngineDescription(provider, "fp32", "made up", "made up")  # type: ignore[arg-type]


@without_gpu
def test_auto_says_why_not_the_better_ones(request_: EngineRequest, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    chosen = choose_engine(request_, "auto")
    assert chosen.engine.description.provider == "cpu"
    assert chosen.passed_over == (f"tensorrt: {BUILT_WITHOUT} tensorrt", f"cuda: {BUILT_WITHOUT} cuda")
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert caplog.messages[0] == (
        f"provider cpu (asked for: auto): fp32 graph, ONNX Runtime {onnxruntime.__version__}, CPU, 1 thread; "
        f"not tensorrt: {BUILT_WITHOUT} tensorrt; not cuda: {BUILT_WITHOUT} cuda"
    )


@pytest.mark.parametrize(
    ("have", "expected"), [({"tensorrt", "cuda"}, "tensorrt"), ({"cuda"}, "cuda"), ({"tensorrt"}, "tensorrt")]
)
def test_auto_takes_the_best_there_is(
    request_: EngineRequest, monkeypatch: pytest.MonkeyPatch, have: set[str], expected: str
) -> None:
    def opener(provider: str) -> object:
        def open_(_: EngineRequest) -> Engine:
            if provider not in have:
                raise DeviceError("out of memory")
            return Working(provider)  # type: ignore[return-value]

        return open_

    for provider in ("tensorrt", "cuda"):
        monkeypatch.setitem(choosing._OPEN, provider, opener(provider))  # type: ignore[misc]
    chosen = choose_engine(request_, "auto")
    assert chosen.engine.description.provider == expected
    assert chosen.passed_over == (() if expected == "tensorrt" else ("tensorrt: out of memory",))


@without_gpu
def test_auto_on_the_cpu_takes_openvino_for_integers(request_: EngineRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    integers = replace(request_, precision="int8")
    monkeypatch.setattr(openvino_engine, "sums_bytes_exactly", lambda: True)
    assert choose_engine(integers, "auto").engine.description.provider == "openvino"
    monkeypatch.setattr(openvino_engine, "sums_bytes_exactly", lambda: False)
    chosen = choose_engine(integers, "auto")
    assert chosen.engine.description.provider == "cpu"
    assert chosen.passed_over[-1].startswith("openvino: OpenVINO would clip the sums")
    monkeypatch.setitem(sys.modules, "openvino", None)
    chosen = choose_engine(integers, "auto")
    assert chosen.engine.description.provider == "cpu"
    assert chosen.passed_over[-1] == "openvino: OpenVINO is not installed"


@without_gpu
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_named_provider_that_is_missing_is_an_error(request_: EngineRequest, provider: str) -> None:
    text = (
        f"{BUILT_WITHOUT} {provider}. "
        "Install sightfix[gpu] in an environment without sightfix[cpu], on a machine with an NVIDIA GPU."
    )
    with refused(ProviderUnavailableError, text, "provider_unavailable"):
        choose_engine(request_, provider)  # type: ignore[arg-type]


@without_gpu
def test_a_fallback_must_be_allowed_and_is_logged(request_: EngineRequest, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    chosen = choose_engine(request_, "cuda", allow_cpu_fallback=True)
    assert chosen.engine.description.provider == "cpu"
    assert chosen.passed_over == (f"cuda: {BUILT_WITHOUT} cuda",)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert caplog.messages[0].startswith(f"the CPU describes in place of the provider cuda: {BUILT_WITHOUT} cuda. ")


def test_a_missing_package_is_an_error_or_an_allowed_fallback(
    request_: EngineRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"sightfix\[openvino\]"):
        choose_engine(request_, "openvino")
    assert choose_engine(request_, "openvino", allow_cpu_fallback=True).engine.description.provider == "cpu"


def test_without_onnx_runtime_there_is_nothing_to_fall_back_to(
    request_: EngineRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for choice in ("cpu", "auto", "cuda"):
        with pytest.raises(MissingExtraError, match="ONNX Runtime is not installed"):
            choose_engine(request_, choice, allow_cpu_fallback=True)  # type: ignore[arg-type]


def test_openvino_by_name(request_: EngineRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_engine, "sums_bytes_exactly", lambda: True)
    chosen = choose_engine(replace(request_, precision="int8"), "openvino")
    assert (chosen.engine.description.provider, chosen.engine.description.precision) == ("openvino", "int8")
    assert chosen.passed_over == ()


def test_a_missing_graph_is_reported_before_any_provider(request_: EngineRequest) -> None:
    for choice in ("auto", "cuda"):
        with pytest.raises(BundleError, match=r"the bundle has no fp16 graph\. Choose among fp32, int8; or make one"):
            choose_engine(replace(request_, precision="fp16"), choice)  # type: ignore[arg-type]


def test_an_unknown_provider_lists_the_choices(request_: EngineRequest) -> None:
    text = "the provider 'gpu' is unknown. Choose auto, tensorrt, cuda, openvino or cpu."
    with refused(ParameterError, text, "validation_error"):
        choose_engine(request_, "gpu")  # type: ignore[arg-type]
