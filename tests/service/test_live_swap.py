"""A newly published version serves without a restart, and nobody notices but by the version in the answer."""

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
from service.http.app import create_app
from service.serving import live_localizer
from service.serving.live_localizer import LiveLocalizer
from service.settings import ServerSettings
from tests.places import Places, make_places

JPEG = {"Content-Type": "image/jpeg"}


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return make_places(tmp_path, 6)


@pytest.fixture
def live(places: Places, tmp_path: Path, describer: Describer) -> Iterator[LiveLocalizer]:
    build_index(places, describer, tmp_path / "indexes", "places")
    # The tests look at CURRENT themselves, when they want to.
    live = LiveLocalizer(ServerSettings(indexes=tmp_path / "indexes", watch_interval_s=3600, threads=1))
    live.start_loading()
    live.wait_until_loaded(60)
    assert live.readiness.state == "ready", live.readiness.reason
    yield live
    live.stop()


def publish(tmp_path: Path, describer: Describer, count: int) -> str:
    build_index(make_places(tmp_path, count), describer, tmp_path / "indexes", "places")
    return current_version(tmp_path / "indexes" / "places")


def look(live: LiveLocalizer) -> None:
    assert live.watch is not None
    live.watch.look()


def test_every_answer_under_load_names_one_whole_version(
    live: LiveLocalizer, places: Places, tmp_path: Path, describer: Describer
) -> None:
    versions = {live.require().place_index.version: 6}
    for count in (7, 8):
        versions[publish(tmp_path, describer, count)] = count
    names = list(versions)
    swaps = 20

    async def load() -> list[tuple[str, int, str]]:
        photo = places.rows[2].path.read_bytes()
        answers = []

        async def robot(number: int) -> None:
            for turn in range(25):
                answer = await live.localize(photo, LocalizeOptions(top_k=20), f"{number}-{turn}")
                answers.append((answer.index.version, answer.index.size, answer.matches[0].reference_id))
                assert len(answer.matches) == answer.index.size

        def swap() -> None:
            for turn in range(swaps):
                activate_version(tmp_path / "indexes" / "places", names[turn % 3])
                look(live)
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
    live: LiveLocalizer, places: Places, tmp_path: Path, describer: Describer
) -> None:
    before = live.require().place_index.version
    version = publish(tmp_path, describer, 7)
    vectors = tmp_path / "indexes" / "places" / "versions" / version / "vectors.faiss"
    data = bytearray(vectors.read_bytes())
    data[-5] ^= 1
    vectors.write_bytes(data)
    look(live)
    assert live.require().place_index.version == before
    assert live.watch is not None
    assert live.watch.last_swap is not None
    assert live.watch.last_swap.result == "refused"
    assert "damaged" in (live.watch.last_swap.reason or "")
    # Without the lifespan, which would load anew.
    assert "damaged" in TestClient(create_app(live)).get("/info").json()["last_swap"]


def test_a_version_whose_photos_have_changed_fails_its_canary(
    live: LiveLocalizer, places: Places, tmp_path: Path, describer: Describer
) -> None:
    before = live.require().place_index.version
    publish(tmp_path, describer, 7)
    for number in range(7):
        shutil.copy(tmp_path / "photos" / f"{(number + 1) % 7:04d}.jpg", tmp_path / f"{number}.jpg")
    for number in range(7):
        shutil.move(tmp_path / f"{number}.jpg", tmp_path / "photos" / f"{number:04d}.jpg")
    look(live)
    assert live.require().place_index.version == before
    assert live.watch is not None
    assert live.watch.last_swap is not None
    assert "the canary failed" in (live.watch.last_swap.reason or "")


def test_without_photos_the_stored_descriptors_sing(live: LiveLocalizer, tmp_path: Path, describer: Describer) -> None:
    version = publish(tmp_path, describer, 7)
    shutil.rmtree(tmp_path / "photos")
    look(live)
    assert live.require().place_index.version == version
    assert live.canary is not None
    assert not live.canary.described
    assert live.canary.score == pytest.approx(1, abs=1e-3)


def test_activation_over_http_and_rollback(live: LiveLocalizer, tmp_path: Path, describer: Describer) -> None:
    first = live.require().place_index.version
    second = publish(tmp_path, describer, 7)
    app = create_app(live)
    client = TestClient(app)  # without the lifespan: the fixture has loaded it
    for version, size in ((second, 7), (first, 6), (second, 7)):
        listing = client.post("/indexes/places/activate", json={"version": version}).json()
        assert (listing["current"], listing["served"]) == (version, version)
        assert live.require().place_index.count == size


def test_a_version_that_cannot_be_served_is_not_activated(
    live: LiveLocalizer, tmp_path: Path, describer: Describer
) -> None:
    first = live.require().place_index.version
    second = publish(tmp_path, describer, 7)
    activate_version(tmp_path / "indexes" / "places", first)
    (tmp_path / "indexes" / "places" / "versions" / second / "vectors.faiss").write_bytes(b"")
    response = TestClient(create_app(live)).post("/indexes/places/activate", json={"version": second})
    assert (response.status_code, response.json()["code"]) == (409, "version_conflict")
    assert f"Version '{first}' is current again" in response.json()["detail"]
    assert current_version(tmp_path / "indexes" / "places") == first
    assert live.require().place_index.version == first


def test_a_swap_that_was_called_off_never_happens(
    live: LiveLocalizer, tmp_path: Path, describer: Describer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is busy for too long: the version is refused, and must not serve once the model is at rest."""
    monkeypatch.setattr(live_localizer, "_SWAP_WAIT_S", 0.05)
    first = live.require().place_index.version
    publish(tmp_path, describer, 7)
    busy, at_rest = threading.Event(), threading.Event()
    live.batcher.on_owner_thread(lambda: busy.wait(30.0) and None)
    look(live)
    assert live.watch is not None
    assert live.watch.last_swap is not None
    assert live.watch.last_swap.result == "refused"
    busy.set()
    live.batcher.on_owner_thread(at_rest.set)
    assert at_rest.wait(30.0)
    assert live.require().place_index.version == first


def test_a_failed_activation_leaves_alone_what_a_job_published_meanwhile(
    live: LiveLocalizer, tmp_path: Path, describer: Describer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = live.require().place_index.version
    second, third = publish(tmp_path, describer, 7), publish(tmp_path, describer, 8)
    index = tmp_path / "indexes" / "places"
    activate_version(index, first)
    assert live.watch is not None
    seen = live.watch.look

    def published_by_a_job(*, again: bool = False) -> None:
        activate_version(index, third)
        seen(again=again)

    monkeypatch.setattr(live.watch, "look", published_by_a_job)
    response = TestClient(create_app(live)).post("/indexes/places/activate", json={"version": second})
    assert (response.status_code, response.json()["code"]) == (409, "version_conflict")
    assert "published meanwhile" in response.json()["detail"]
    assert current_version(index) == third == live.require().place_index.version


def test_activation_mends_a_current_that_names_nothing(
    live: LiveLocalizer, tmp_path: Path, describer: Describer
) -> None:
    second = publish(tmp_path, describer, 7)
    (tmp_path / "indexes" / "places" / "CURRENT").write_text("gone")
    response = TestClient(create_app(live)).post("/indexes/places/activate", json={"version": second})
    assert response.status_code == 200, response.text
    assert response.json()["served"] == second


def test_every_id_has_a_thumbnail(places: Places, tmp_path: Path, describer: Describer) -> None:
    """A table beside the folder of photos names them ``../photos/a.jpg``; clients resolve dots before they ask."""
    ids = ["../a.jpg", "/abs/b.jpg", "c//d.jpg", "./e.jpg", "f..g/h?i#j.jpg", "k.jpg"]
    places.rows = [replace(row, id=name) for row, name in zip(places.rows, ids, strict=True)]
    build_index(places, describer, tmp_path / "indexes", "places")
    live = LiveLocalizer(ServerSettings(indexes=tmp_path / "indexes", threads=1))
    with TestClient(create_app(live)) as client:
        live.wait_until_loaded(60)
        for row in places.rows:
            answer = client.post("/localize", content=row.path.read_bytes(), headers=JPEG).json()
            assert answer["matches"][0]["reference_id"] == row.id
            image = client.get(answer["matches"][0]["thumbnail"])
            assert (image.status_code, image.headers["content-type"]) == (200, "image/jpeg"), row.id
        missing = client.get("/references/image", params={"id": "../../etc/passwd"})
        assert (missing.status_code, missing.json()["code"]) == (404, "reference_not_found")


def test_the_watch_finds_a_new_version_by_itself(places: Places, tmp_path: Path, describer: Describer) -> None:
    build_index(places, describer, tmp_path / "indexes", "places")
    live = LiveLocalizer(ServerSettings(indexes=tmp_path / "indexes", watch_interval_s=0.05, threads=1))
    live.start_loading()
    live.wait_until_loaded(60)
    try:
        version = publish(tmp_path, describer, 7)
        for _ in range(400):
            if live.require().place_index.version == version:
                break
            time.sleep(0.02)
        assert live.require().place_index.version == version
    finally:
        live.stop()
