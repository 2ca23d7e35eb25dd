"""A server whose place index lies in Milvus answers as one whose index lies in a folder."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from index_builder.push import PushSettings, push_version
from index_builder.update import build_index
from retrieval.describer import Describer
from retrieval.errors import ParameterError, StoreUnavailableError
from retrieval.index.folder import current_version
from retrieval.index.milvus.store import MilvusStore
from retrieval.index.stores import FolderStore
from service.configuration import check_settings
from service.http.app import create_app
from service.jobs.settings import JobSettings
from service.serving.localization import LocalizationService
from service.settings import ServerSettings
from tests.places import Places, make_places

pytestmark = pytest.mark.usefixtures("milvus_polled_often")

JPEG = {"Content-Type": "image/jpeg"}


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return make_places(tmp_path, 6)


@pytest.fixture
def settings(places: Places, tmp_path: Path, describer: Describer) -> ServerSettings:
    build_index(places, describer, tmp_path / "indexes", "places")
    settings = ServerSettings(
        indexes=tmp_path / "indexes", store=f"milvus://{tmp_path}/milvus.db", watch_interval_s=3600, threads=1
    )
    store = settings.open_store()
    assert isinstance(store, MilvusStore)
    push_version(FolderStore(settings.indexes).open("places"), store)
    store.close()
    return settings


@pytest.fixture
def localization(settings: ServerSettings) -> Iterator[LocalizationService]:
    localization = serving(settings)
    yield localization
    localization.stop()


def serving(settings: ServerSettings) -> LocalizationService:
    localization = LocalizationService(settings)
    localization.start()
    localization.live.wait_until_loaded(60)
    assert localization.live.readiness.state == "ready", localization.live.readiness.reason
    return localization


def ask(localization: LocalizationService, photo: Path, query: str = "") -> dict:
    answer = TestClient(create_app(localization)).post(f"/localize{query}", content=photo.read_bytes(), headers=JPEG)
    assert answer.status_code == 200, answer.text
    told: dict = answer.json()
    assert told["index"].pop("type") == ("milvus:FLAT" if localization.settings.store else "exact")
    return {name: told[name] for name in ("status", "fix", "matches", "index", "model")}


def test_answers_are_those_of_the_folder(
    localization: LocalizationService, settings: ServerSettings, places: Places
) -> None:
    folder = serving(settings.model_copy(update={"store": None}))
    try:
        for query in ("", "?top_k=3&geo_prior=48.0,11.0,250", "?geo_prior=10,10,50"):
            here, there = (ask(one, places.rows[2].path, query) for one in (folder, localization))
            for match_here, match_there in zip(here["matches"], there["matches"], strict=True):
                # The folder stores halves of the descriptors' numbers; Milvus got those halves.
                assert match_there.pop("score") == pytest.approx(match_here.pop("score"), abs=2e-3)
            if here["fix"] is not None:
                for name in ("lat", "lon", "radius_m", "confidence"):
                    assert there["fix"].pop(name) == pytest.approx(here["fix"].pop(name), rel=1e-2)
                covariances = [np.array(one["fix"].pop("covariance_enu")) for one in (here, there)]
                np.testing.assert_allclose(*covariances, rtol=5e-2)
            assert there == here
    finally:
        folder.stop()


def test_a_version_pushed_while_it_serves_is_taken_over_and_back(
    localization: LocalizationService, tmp_path: Path, describer: Describer, settings: ServerSettings
) -> None:
    first = localization.live.require().place_index.version
    build_index(make_places(tmp_path, 8), describer, tmp_path / "indexes", "places")
    second = current_version(tmp_path / "indexes" / "places")
    localization.live.look_for_new_version()
    assert localization.live.require().place_index.version == first  # the folder is not what it reads from
    assert isinstance(localization.live.store, MilvusStore)
    push_version(FolderStore(settings.indexes).open("places"), localization.live.store, PushSettings())
    localization.live.look_for_new_version()
    assert (localization.live.require().place_index.version, localization.live.require().place_index.count) == (
        second,
        8,
    )
    client = TestClient(create_app(localization))
    listing = client.get("/indexes/places").json()
    assert (listing["current"], listing["served"]) == (second, second)
    assert [one["version"] for one in listing["versions"]] == [first, second]
    back = client.post("/indexes/places/activate", json={"version": first})
    assert (back.status_code, back.json()["served"]) == (200, first)
    thumbnail = client.get("/references/photos/0001.jpg/image")
    assert (thumbnail.status_code, thumbnail.headers["content-type"]) == (200, "image/jpeg")


def test_a_store_that_goes_away_is_a_503_that_says_so_and_comes_back(
    localization: LocalizationService, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise StoreUnavailableError("Milvus does not answer as it should (deadline)", where="milvus://m")

    client = TestClient(create_app(localization), raise_server_exceptions=False)
    with monkeypatch.context() as broken:
        broken.setattr("retrieval.index.milvus.collection.MilvusCollection.search", away)
        answer = client.post("/localize", content=places.rows[2].path.read_bytes(), headers=JPEG)
    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert ask(localization, places.rows[2].path)["matches"][0]["reference_id"] == "photos/0002.jpg"


def test_check_config_opens_the_store(settings: ServerSettings) -> None:
    found = {one.what: one for one in check_settings(settings)}
    assert found["place index"].ok
    assert found["place index"].detail.endswith("6 references, milvus:FLAT")
    away = settings.model_copy(update={"store": "milvus://127.0.0.1:9"})
    found = {one.what: one for one in check_settings(away)}
    assert "cannot be reached" in found["place index"].detail


def test_jobs_are_told_of_the_store_and_refused_beside_a_file(settings: ServerSettings, tmp_path: Path) -> None:
    told = JobSettings.model_validate_json(settings.jobs.model_dump_json())
    assert told.store == settings.store
    with pytest.raises(ParameterError, match="one process at a time can open a file of milvus-lite"):
        settings.model_copy(update={"source_roots": (tmp_path,)}).open_store()


def test_a_version_is_tried_again_when_the_store_was_away_for_a_moment(
    localization: LocalizationService,
    tmp_path: Path,
    describer: Describer,
    settings: ServerSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert isinstance(localization.live.store, MilvusStore)
    first = localization.live.require().place_index.version
    build_index(make_places(tmp_path, 8), describer, tmp_path / "indexes", "places")
    push_version(FolderStore(settings.indexes).open("places"), localization.live.store)

    def away(*_: object) -> None:
        raise StoreUnavailableError("Milvus does not answer as it should (deadline)", where="milvus://m")

    with monkeypatch.context() as broken:
        broken.setattr(localization.live.store, "open", away)
        localization.live.look_for_new_version()
    assert localization.live.require().place_index.version == first
    assert localization.live.last_swap is not None
    assert localization.live.last_swap.result == "refused"
    localization.live.look_for_new_version()
    assert (localization.live.require().place_index.count, localization.live.last_swap.result) == (8, "served")
