"""`search_device`: an index is put on the GPU, swapped there, and freed; without a GPU the server says why."""

from collections.abc import Callable
from pathlib import Path

import pytest

from index_builder.update import build_index
from retrieval.describer import Describer
from retrieval.index.vectors.candidates import StoredVectors
from retrieval.index.vectors.gpu import GpuVectors
from service.serving.localization import LocalizationService
from service.settings import ServerSettings
from tests.places import make_places
from tests.retrieval.vectors.fake_faiss_gpu import FakeFaissGpu


@pytest.fixture
def load(tmp_path: Path, describer: Describer) -> Callable[[], LocalizationService]:
    def loaded() -> LocalizationService:
        build_index(make_places(tmp_path, 6), describer, tmp_path / "indexes", "places")
        settings = ServerSettings(indexes=tmp_path / "indexes", watch_interval_s=3600, threads=1, search_device="gpu")
        localization = LocalizationService(settings)
        localization.start()
        localization.live.wait_until_loaded(60)
        return localization

    return loaded


def on(monkeypatch: pytest.MonkeyPatch, fake: FakeFaissGpu) -> None:
    monkeypatch.setattr("service.serving.loading.GpuVectors", lambda vectors: GpuVectors(vectors, fake))
    monkeypatch.setattr("service.serving.live_localizer.free_device", lambda index: index.vectors.close())


def test_a_server_without_a_gpu_says_why(
    load: Callable[[], LocalizationService], monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, FakeFaissGpu(gpus=0))
    localization = load()
    assert localization.live.readiness.state == "failed"
    assert "finds no GPU" in localization.live.readiness.reason
    localization.stop()


def test_a_swap_frees_the_old_version(
    load: Callable[[], LocalizationService], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, describer: Describer
) -> None:
    on(monkeypatch, FakeFaissGpu())
    localization = load()
    old: StoredVectors = localization.live.require().place_index.vectors
    build_index(make_places(tmp_path, 7), describer, tmp_path / "indexes", "places")
    localization.live.look_for_new_version()
    new = localization.live.require().place_index.vectors
    assert isinstance(old, GpuVectors)
    assert isinstance(new, GpuVectors)
    assert old._gpu_index is None
    assert new._gpu_index is not None
    localization.stop()
