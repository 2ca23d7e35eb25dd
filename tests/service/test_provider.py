"""Where the model computes: what readiness, /info and a failure say of it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import onnxruntime
import pytest
from fastapi.testclient import TestClient

from retrieval.engines import choosing
from retrieval.engines.engine import Engine, EngineRequest
from retrieval.engines.onnx_runtime import OnnxRuntimeEngine
from service.http.app import create_app
from service.serving.localization import LocalizationService
from service.settings import ServerSettings
from tests.conftest import PublishedPlaces

BUILD = "TensorRT builds the engine for sm90, fp32 (first start only, some minutes)"
without_gpu = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA"
)


@contextmanager
def client_of(localization: LocalizationService) -> Iterator[TestClient]:
    with TestClient(create_app(localization), raise_server_exceptions=False) as client:
        yield client


def test_info_names_provider_runtime_and_device(published: PublishedPlaces) -> None:
    localization = LocalizationService(ServerSettings(indexes=published.indexes, provider="openvino", threads=1))
    with client_of(localization) as client:
        localization.live.wait_until_loaded(60.0)
        info = client.get("/info").json()
    assert (info["model"]["provider"], info["model"]["device"]) == ("openvino", "CPU, 1 thread")
    assert info["model"]["runtime"].startswith("OpenVINO 20")
    assert info["passed_over"] == []


@without_gpu
def test_a_provider_that_cannot_be_had_stops_the_server(published: PublishedPlaces) -> None:
    localization = LocalizationService(ServerSettings(indexes=published.indexes, provider="cuda"))
    with client_of(localization) as client:
        localization.live.wait_until_loaded(60.0)
        ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["state"]) == (503, "failed")
    assert "was built without the provider cuda" in ready.json()["reason"]
    assert localization.live.failure is not None
    assert localization.live.failure.code == "provider_unavailable"


@without_gpu
def test_an_allowed_fallback_is_told_in_info(published: PublishedPlaces) -> None:
    settings = ServerSettings(indexes=published.indexes, provider="cuda", allow_cpu_fallback=True)
    localization = LocalizationService(settings)
    with client_of(localization) as client:
        localization.live.wait_until_loaded(60.0)
        info = client.get("/info").json()
    assert info["model"]["provider"] == "cpu"
    assert len(info["passed_over"]) == 1
    assert info["passed_over"][0].startswith("cuda: the installed ONNX Runtime")


def test_a_build_is_told_while_it_lasts(published: PublishedPlaces, monkeypatch: pytest.MonkeyPatch) -> None:
    building, built = threading.Event(), threading.Event()

    def build(request: EngineRequest) -> Engine:
        request.on_build(BUILD)
        building.set()
        assert built.wait(30.0)
        return OnnxRuntimeEngine(request.bundle, request.precision, 1)

    monkeypatch.setitem(choosing._OPEN, "tensorrt", build)  # type: ignore[misc]
    localization = LocalizationService(ServerSettings(indexes=published.indexes, provider="tensorrt"))
    with client_of(localization) as client:
        try:
            assert building.wait(30.0)
            ready = client.get("/readyz")
            assert (ready.status_code, ready.json()) == (503, {"state": "loading", "reason": BUILD})
            assert client.get("/livez").status_code == 200
        finally:
            built.set()
        localization.live.wait_until_loaded(60.0)
        assert client.get("/readyz").json() == {"state": "ready", "reason": None}


def test_every_setting_is_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"PROVIDER": "openvino", "PRECISION": "int8", "ALLOW_CPU_FALLBACK": "1", "GPU_MEM_LIMIT": "1073741824"}
    for name, value in {**values, "ENGINE_CACHE": "/engines"}.items():
        monkeypatch.setenv(f"SIGHTFIX_{name}", value)
    settings = ServerSettings()
    assert (settings.provider, settings.precision, settings.allow_cpu_fallback) == ("openvino", "int8", True)
    assert (settings.gpu_mem_limit, str(settings.engine_cache)) == (1 << 30, "/engines")
