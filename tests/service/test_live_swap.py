"""A newly published version serves without a restart, and only the version in the answers shows it."""

import asyncio
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from index_builder.update import build_index
from retrieval.describer import Describer
from retrieval.index.folder import activate_version, current_version
from retrieval.localize.localizer import LocalizeOptions
from service.answer import LocalizeAnswer, answer_of
from service.http.app import create_app
from service.serving import live_localizer
from service.serving.localization import LocalizationService
from service.settings import ServerSettings
from tests.places import Places, make_places

JPEG = {"Content-Type": "image/jpeg"}


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return make_places(tmp_path, 6)


@pytest.fixture
def localization(places: Places, tmp_path: Path, describer: Describer) -> Iterator[LocalizationService]:
    build_index(places, describer, tmp_path / "indexes", "places")
    # The tests look at CURRENT themselves, when they want to.
    localization = LocalizationService(ServerSettings(indexes=tmp_path / "indexes", watch_interval_s=3600, threads=1))
    localization.start()
    localization.live.wait_until_loaded(60)
    assert localization.live.readiness.state == "ready", localization.live.readiness.reason
    yield localization
    localization.stop()


def publish(tmp_path: Path, describer: Describer, count: int) -> str:
    build_index(make_places(tmp_path, count), describer, tmp_path / "indexes", "places")
    return current_version(tmp_path / "indexes" / "places")


async def ask(localization: LocalizationService, photo: bytes, request_id: str) -> LocalizeAnswer:
    options = LocalizeOptions(top_k=20)
    return answer_of(await localization.localize(photo, options, request_id, localization.urgency()))


def look(localization: LocalizationService) -> None:
    localization.live.look_for_new_version()


def test_every_answer_under_load_names_one_whole_version(
    localization: LocalizationService, places: Places, tmp_path: Path, describer: Describer
) -> None:
    versions = {localization.live.require().place_index.version: 6}
    for count in (7, 8):
        versions[publish(tmp_path, describer, count)] = count
    names = list(versions)
    swaps = 20

    async def load() -> list[tuple[str, int, str]]:
        photo = places.rows[2].path.read_bytes()
        answers = []

        async def robot(number: int) -> None:
            for turn in range(25):
                answer = await ask(localization, photo, f"{number}-{turn}")
                answers.append((answer.index.version, answer.index.size, answer.matches[0].reference_id))
                assert len(answer.matches) == answer.index.size

        def swap() -> None:
            for turn in range(swaps):
                activate_version(tmp_path / "indexes" / "places", names[turn % 3])
                look(localization)
                time.sleep(0.01)

        swapping = threading.Thread(target=swap)
        swapping.start()
        await asyncio.gather(*(robot(number) for number in range(8)))
        swapping.join()
        return answers

    answers = asyncio.run(load())
    assert len(answers) == 200
    assert all(versions[version] == size for version, size, _ in answers)
    assert {best for _, _, best in answers} == {"photos/0002.jpg"}
    assert len({version for version, _, _ in answers}) == 3


def test_a_damaged_version_is_refused_and_the_old_one_serves(
    localization: LocalizationService, places: Places, tmp_path: Path, describer: Describer
) -> None:
    before = localization.live.require().place_index.version
    version = publish(tmp_path, describer, 7)
    vectors = tmp_path / "indexes" / "places" / "versions" / version / "vectors.faiss"
    data = bytearray(vectors.read_bytes())
    data[-5] ^= 1
    vectors.write_bytes(data)
    look(localization)
    assert localization.live.require().place_index.version == before
    assert localization.live.last_swap is not None
    assert localization.live.last_swap.result == "refused"
    assert "damaged" in (localization.live.last_swap.reason or "")
    # Without the lifespan, which would load anew.
    assert "damaged" in TestClient(create_app(localization)).get("/info").json()["last_swap"]


def test_a_version_whose_photos_have_changed_fails_its_probe(
    localization: LocalizationService, places: Places, tmp_path: Path, describer: Describer
) -> None:
    before = localization.live.require().place_index.version
    publish(tmp_path, describer, 7)
    for number in range(7):
        shutil.copy(tmp_path / "photos" / f"{(number + 1) % 7:04d}.jpg", tmp_path / f"{number}.jpg")
    for number in range(7):
        shutil.move(tmp_path / f"{number}.jpg", tmp_path / "photos" / f"{number:04d}.jpg")
    look(localization)
    assert localization.live.require().place_index.version == before
    assert localization.live.last_swap is not None
    assert "the health probe failed" in (localization.live.last_swap.reason or "")


def test_without_photos_the_stored_descriptors_are_probed(
    localization: LocalizationService, tmp_path: Path, describer: Describer
) -> None:
    version = publish(tmp_path, describer, 7)
    shutil.rmtree(tmp_path / "photos")
    look(localization)
    assert localization.live.require().place_index.version == version
    assert localization.live.probed is not None
    assert not localization.live.probed.described
    assert localization.live.probed.score == pytest.approx(1, abs=1e-3)


def test_activation_over_http_and_rollback(
    localization: LocalizationService, tmp_path: Path, describer: Describer
) -> None:
    first = localization.live.require().place_index.version
    second = publish(tmp_path, describer, 7)
    app = create_app(localization)
    client = TestClient(app)  # without the lifespan: the fixture has loaded it
    for version, size in ((second, 7), (first, 6), (second, 7)):
        listing = client.post("/indexes/places/activate", json={"version": version}).json()
        assert (listing["current"], listing["served"]) == (version, version)
        assert localization.live.require().place_index.count == size


def test_a_version_that_cannot_be_served_is_not_activated(
    localization: LocalizationService, tmp_path: Path, describer: Describer
) -> None:
    first = localization.live.require().place_index.version
    second = publish(tmp_path, describer, 7)
    activate_version(tmp_path / "indexes" / "places", first)
    (tmp_path / "indexes" / "places" / "versions" / second / "vectors.faiss").write_bytes(b"")
    response = TestClient(create_app(localization)).post("/indexes/places/activate", json={"version": second})
    assert (response.status_code, response.json()["code"]) == (409, "version_conflict")
    assert f"Version '{first}' is current again" in response.json()["detail"]
    assert current_version(tmp_path / "indexes" / "places") == first
    assert localization.live.require().place_index.version == first


def test_a_swap_that_was_cancelled_never_happens(
    localization: LocalizationService, tmp_path: Path, describer: Describer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is busy for too long: the version is refused, and must not serve once the model is idle."""
    monkeypatch.setattr(live_localizer, "_SWAP_WAIT_S", 0.05)
    first = localization.live.require().place_index.version
    publish(tmp_path, describer, 7)
    busy, idle = threading.Event(), threading.Event()
    localization._batcher.on_owner_thread(lambda: busy.wait(30.0) and None)
    look(localization)
    assert localization.live.last_swap is not None
    assert localization.live.last_swap.result == "refused"
    busy.set()
    localization._batcher.on_owner_thread(idle.set)
    assert idle.wait(30.0)
    assert localization.live.require().place_index.version == first


def test_a_failed_activation_leaves_alone_what_a_job_published_meanwhile(
    localization: LocalizationService, tmp_path: Path, describer: Describer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = localization.live.require().place_index.version
    second, third = publish(tmp_path, describer, 7), publish(tmp_path, describer, 8)
    index = tmp_path / "indexes" / "places"
    activate_version(index, first)
    seen = localization.live.look_for_new_version

    def published_by_a_job(*, again: bool = False) -> None:
        activate_version(index, third)
        seen(again=again)

    monkeypatch.setattr(localization.live, "look_for_new_version", published_by_a_job)
    response = TestClient(create_app(localization)).post("/indexes/places/activate", json={"version": second})
    assert (response.status_code, response.json()["code"]) == (409, "version_conflict")
    assert "published meanwhile" in response.json()["detail"]
    assert current_version(index) == third == localization.live.require().place_index.version


def test_activation_mends_a_current_that_names_nothing(
    localization: LocalizationService, tmp_path: Path, describer: Describer
) -> None:
    second = publish(tmp_path, describer, 7)
    (tmp_path / "indexes" / "places" / "CURRENT").write_text("gone")
    response = TestClient(create_app(localization)).post("/indexes/places/activate", json={"version": second})
    assert response.status_code == 200, response.text
    assert response.json()["served"] == second


def test_every_id_has_a_thumbnail(places: Places, tmp_path: Path, describer: Describer) -> None:
    """A table beside the folder of photos names them ``../photos/a.jpg``; clients resolve dots before they ask."""
    ids = ["../a.jpg", "/abs/b.jpg", "c//d.jpg", "./e.jpg", "f..g/h?i#j.jpg", "k.jpg"]
    places.rows = [replace(row, id=name) for row, name in zip(places.rows, ids, strict=True)]
    build_index(places, describer, tmp_path / "indexes", "places")
    localization = LocalizationService(ServerSettings(indexes=tmp_path / "indexes", threads=1))
    with TestClient(create_app(localization)) as client:
        localization.live.wait_until_loaded(60)
        for row in places.rows:
            answer = client.post("/localize", content=row.path.read_bytes(), headers=JPEG).json()
            assert answer["matches"][0]["reference_id"] == row.id
            image = client.get(answer["matches"][0]["thumbnail"])
            assert (image.status_code, image.headers["content-type"]) == (200, "image/jpeg"), row.id
        missing = client.get("/references/image", params={"id": "../../etc/passwd"})
        assert (missing.status_code, missing.json()["code"]) == (404, "reference_not_found")


def test_the_watch_finds_a_new_version_by_itself(places: Places, tmp_path: Path, describer: Describer) -> None:
    build_index(places, describer, tmp_path / "indexes", "places")
    localization = LocalizationService(ServerSettings(indexes=tmp_path / "indexes", watch_interval_s=0.05, threads=1))
    localization.start()
    localization.live.wait_until_loaded(60)
    try:
        version = publish(tmp_path, describer, 7)
        for _ in range(400):
            if localization.live.require().place_index.version == version:
                break
            time.sleep(0.02)
        assert localization.live.require().place_index.version == version
    finally:
        localization.stop()
