"""What other servers' users complain about, where no other test is about it: see docs/explanation/failures.md."""

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from index_builder.update import build_index
from retrieval.bundle import Bundle
from retrieval.describer import Describer
from retrieval.index.folder import activate_version, published_versions
from retrieval.index.place_index import PlaceIndex
from retrieval.machine import available_cores
from service.http.app import create_app
from service.serving.localization import LocalizationService
from service.settings import ServerSettings
from tests.conftest import PublishedPlaces
from tests.forked import sightfix
from tests.places import make_places
from tests.running_server import running_server

JPEG = {"Content-Type": "image/jpeg"}


def test_a_server_has_the_threads_of_its_budget_and_one_openmp_and_no_torch(
    published: PublishedPlaces, tmp_path: Path
) -> None:
    """The table in docs/how-to/operate.md: who may have how many threads."""
    photo = published.places.rows[0].path.read_bytes()
    environment = {"SIGHTFIX_DECODE_THREADS": "2", "SIGHTFIX_METRICS": "off", "OPENBLAS_NUM_THREADS": "1"}
    given = ["--indexes", str(published.indexes), "--threads", "3"]
    with running_server(tmp_path / "log", given, environment) as running:
        running.wait_until_ready()
        with ThreadPoolExecutor(8) as pool:
            asked = [
                pool.submit(httpx.post, f"{running.url}/localize", content=photo, headers=JPEG, timeout=60)
                for _ in range(40)
            ]
            assert {one.result().status_code for one in asked} <= {200, 429}
        httpx.get(f"{running.url}/indexes").raise_for_status()
        threads = sum(1 for _ in Path(f"/proc/{running.process.pid}/task").iterdir())
        libraries = Path(f"/proc/{running.process.pid}/maps").read_text()
    event_loop, own, decoders, files, model, allocator = 1, 4, 2, min(32, (os.cpu_count() or 1) + 4), 3 - 1, 1
    assert threads <= event_loop + own + decoders + files + model + allocator
    assert len({line.split()[-1] for line in libraries.splitlines() if "libgomp" in line or "libiomp" in line}) == 1
    assert "libtorch" not in libraries


def test_the_model_takes_as_many_threads_as_the_container_grants(published: PublishedPlaces) -> None:
    localization = LocalizationService(ServerSettings(indexes=published.indexes, metrics="off"))
    localization.start()
    localization.live.wait_until_loaded(60)
    assert localization.live.require().describer.threads == available_cores() >= 1
    assert localization._decoders._max_workers == available_cores()
    localization.stop()


def test_search_sets_the_blas_threshold_and_one_thread_where_it_is_called(
    published: PublishedPlaces, bundle: Bundle
) -> None:
    index = PlaceIndex.open(published.indexes / "places")
    seen = []

    def search() -> None:
        faiss.omp_set_num_threads(2)
        faiss.cvar.distance_compute_blas_threshold = 128_000
        index.search(np.eye(3, bundle.descriptor_dim, dtype=np.float32), 5)
        seen.append((faiss.omp_get_max_threads(), faiss.cvar.distance_compute_blas_threshold))

    caller = threading.Thread(target=search)
    caller.start()
    caller.join()
    ((threads, threshold),) = seen
    assert threads == 1
    assert threshold <= 16 * bundle.descriptor_dim


def test_while_a_new_version_is_opened_the_old_one_serves_and_the_server_is_ready(
    tmp_path: Path, describer: Describer, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = make_places(tmp_path, 5)
    build_index(places, describer, tmp_path / "indexes", "places")
    build_index(make_places(tmp_path, 6), describer, tmp_path / "indexes", "places")
    index = tmp_path / "indexes" / "places"
    old, new = published_versions(index)
    activate_version(index, old)
    settings = ServerSettings(indexes=tmp_path / "indexes", watch_interval_s=0.05, threads=1, metrics="off")
    localization = LocalizationService(settings)
    opening, go_on = threading.Event(), threading.Event()
    with TestClient(create_app(localization)) as client:
        localization.live.wait_until_loaded(60)
        open_index = PlaceIndex.open

        def slowly(folder: Path, **options: bool) -> PlaceIndex:
            opening.set()
            assert go_on.wait(60)
            return open_index(folder, **options)

        monkeypatch.setattr("retrieval.index.place_index.PlaceIndex.open", slowly)
        activate_version(index, new)
        assert opening.wait(60)
        for _ in range(3):
            assert client.get("/readyz").status_code == 200
            answer = client.post("/localize", content=places.rows[1].path.read_bytes(), headers=JPEG).json()
            assert answer["index"]["version"] == old
        go_on.set()
        for _ in range(1000):
            if localization.live.require().place_index.version == new:
                break
            threading.Event().wait(0.02)
        assert localization.live.require().place_index.version == new


def test_a_batch_is_counted_photo_by_photo_where_single_photos_are_counted(published: PublishedPlaces) -> None:
    settings = ServerSettings(indexes=published.indexes, threads=1, max_waiting=8, metrics="off")
    localization = LocalizationService(settings)
    photo = published.places.rows[0].path.read_bytes()
    with TestClient(create_app(localization)) as client:
        localization.live.wait_until_loaded(60)
        files = [("image", ("a.jpg", photo, "image/jpeg"))] * 32
        items = client.post("/localize/batch", files=files).json()["items"]
        refused = [item for item in items if item["status"] == 429]
        # The bulk lane stops at half of the limit; all 32 ask at once, before any of them is decoded.
        assert len(refused) == 32 - 4
        assert {item["status"] for item in items} == {200, 429}
        assert "4 photos are waiting already" in refused[0]["problem"]["detail"]
        assert localization._batcher.queue.admitted == 0
        assert client.post("/localize", content=photo, headers=JPEG).status_code == 200


def test_one_process_serves_whatever_is_asked_for() -> None:
    """Each further process would load the model again, and count for itself."""
    done = sightfix("serve", "--workers", "2")
    assert done.returncode == 2
    assert "--workers" in done.stderr
    assert not [name for name in ServerSettings.model_fields if "workers" in name]


def test_however_many_ask_model_and_index_have_one_caller(published: PublishedPlaces) -> None:
    """FAISS and ONNX Runtime never see two at a time."""
    localization = LocalizationService(ServerSettings(indexes=published.indexes, threads=1, metrics="off"))
    localization.start()
    localization.live.wait_until_loaded(60)
    callers: set[str] = set()
    describe = localization.live.require().describer.describe

    def noted(images: object) -> object:
        callers.add(threading.current_thread().name)
        return describe(images)  # type: ignore[arg-type]

    localization.live.require().describer.describe = noted  # type: ignore[method-assign,assignment]
    photo = published.places.rows[0].path.read_bytes()

    async def ask() -> None:
        await asyncio.gather(*(localization.describe(photo, localization.urgency()) for _ in range(12)))

    asyncio.run(ask())
    localization.stop()
    assert callers == {"localize"}
