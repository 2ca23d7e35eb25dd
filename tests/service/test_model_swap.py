"""A new version that was described with another bundle brings its model along, from one batch to the next."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from index_builder.push import push_version
from index_builder.update import build_index
from retrieval.bundle import Bundle
from retrieval.describer import Describer
from retrieval.errors import ParameterError
from retrieval.index.folder import activate_version, current_version
from retrieval.index.milvus.store import MilvusStore
from retrieval.index.place_index import PlaceIndex
from retrieval.localize.localizer import LocalizeOptions
from service.answer import LocalizeAnswer, answer_of
from service.http.app import create_app
from service.serving.localization import LocalizationService
from service.settings import ServerSettings
from tests.places import Places, make_places
from tests.retrieval.engines.colour_bundle import write_colour_bundle
from tests.retrieval.other_bundle import flip_byte

JPEG = {"Content-Type": "image/jpeg"}
LIMIT_S = 60.0


@dataclass(frozen=True)
class TwoModels:
    """An index of six places: a version of the shipped bundle, which is current, and one of another."""

    places: Places
    indexes: Path
    names: list[str]
    bundles: list[Bundle]

    @property
    def index(self) -> Path:
        return self.indexes / "places"

    @property
    def fingerprints(self) -> dict[str, str]:
        return dict(zip(self.names, [bundle.fingerprint for bundle in self.bundles], strict=True))

    def photo(self, number: int) -> bytes:
        return self.places.rows[number].path.read_bytes()


@pytest.fixture
def made(tmp_path: Path, describer: Describer) -> TwoModels:
    """Images of 256 × 256 and descriptors of 1280 numbers; images of 20 × 16 and descriptors of 3."""
    places, indexes = make_places(tmp_path, 6), tmp_path / "indexes"
    colours = write_colour_bundle(tmp_path / "colours", offset=1.0)
    names = []
    for model in (describer, Describer(colours, threads=1)):
        build_index(places, model, indexes, "places")
        names.append(current_version(indexes / "places"))
    activate_version(indexes / "places", names[0])
    return TwoModels(places, indexes, names, [describer.bundle, colours])


@pytest.fixture
def localization(made: TwoModels) -> Iterator[LocalizationService]:
    yield from serving(ServerSettings(indexes=made.indexes, watch_interval_s=3600, threads=1, metrics="off"))


def serving(settings: ServerSettings) -> Iterator[LocalizationService]:
    localization = LocalizationService(settings)
    localization.start()
    localization.live.wait_until_loaded(LIMIT_S)
    assert localization.live.readiness.state == "ready", localization.live.readiness.reason
    yield localization
    localization.stop()


def swap_to(localization: LocalizationService, made: TwoModels, version: str) -> None:
    activate_version(made.index, version)
    localization.live.look_for_new_version()


def serves(localization: LocalizationService) -> str:
    return localization.live.require().place_index.version


async def localized(localization: LocalizationService, photo: bytes) -> LocalizeAnswer:
    options = LocalizeOptions(top_k=6)
    return answer_of(await localization.localize(photo, options, "request", localization.urgency()))


def check_whole(made: TwoModels, answer: LocalizeAnswer, number: int) -> None:
    """The model is that of the version, and finds the photo by itself."""
    assert made.fingerprints[answer.index.version] == answer.model.fingerprint
    assert answer.matches[0].reference_id == f"photos/{number:04d}.jpg"
    assert answer.matches[0].score == pytest.approx(1.0, abs=2e-3)


def test_no_request_fails_and_none_mixes_two_models(localization: LocalizationService, made: TwoModels) -> None:
    swapping = threading.Event()
    answers: list[LocalizeAnswer] = []
    descriptions: list[tuple[str, int]] = []

    async def robot(number: int) -> None:
        while not swapping.is_set():
            answer = await localized(localization, made.photo(number))
            check_whole(made, answer, number)
            answers.append(answer)

    async def describing() -> None:
        while not swapping.is_set():
            described = await localization.describe(made.photo(1), localization.urgency())
            descriptions.append((described.describer.bundle.fingerprint, len(described.descriptor)))

    async def searching() -> None:
        options = LocalizeOptions(top_k=3)
        while not swapping.is_set():
            localizer = localization.live.require()
            descriptor = localizer.place_index.descriptors(np.array([2]))[0]
            await asyncio.sleep(0)
            found = await localization.search(descriptor, localizer, options, "request", localization.urgency())
            assert found.describer.bundle.descriptor_dim == len(descriptor)
            assert found.matches[0].score == pytest.approx(1.0, abs=2e-3)
            answers.append(answer_of(found))

    def swap() -> None:
        try:
            for turn in range(1, 9):
                swap_to(localization, made, made.names[turn % 2])
                assert serves(localization) == made.names[turn % 2]
                enough = len(answers) + 10
                until(lambda enough=enough: len(answers) >= enough)
        finally:
            swapping.set()

    async def load() -> None:
        swaps = asyncio.get_running_loop().run_in_executor(None, swap)
        await asyncio.gather(*(robot(number) for number in range(5)), describing(), searching(), swaps)

    asyncio.run(load())
    assert {answer.index.version for answer in answers} == set(made.names)
    assert set(descriptions) == {(bundle.fingerprint, bundle.descriptor_dim) for bundle in made.bundles}


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not reached():
        assert time.monotonic() < deadline, "nothing is answered"
        time.sleep(0.005)


def test_what_waits_for_the_model_while_it_changes(localization: LocalizationService, made: TwoModels) -> None:
    """A photo is decoded again; a descriptor is searched for where it belongs."""
    busy, go_on = threading.Event(), threading.Event()

    def block() -> None:
        busy.set()
        assert go_on.wait(LIMIT_S)

    async def straddle() -> tuple[LocalizeAnswer, LocalizeAnswer, int]:
        before = localization.live.require()
        descriptor = before.place_index.descriptors(np.array([4]))[0]
        localization._batcher.on_owner_thread(block)
        assert busy.wait(LIMIT_S)
        options, urgency = LocalizeOptions(), localization.urgency()
        waiting = [
            asyncio.ensure_future(work)
            for work in (
                localized(localization, made.photo(3)),
                localization.search(descriptor, before, options, "request", urgency),
                localization.describe(made.photo(3), urgency),
            )
        ]
        while localization._batcher.queue.queued < 3:
            await asyncio.sleep(0.005)
        swapping = asyncio.get_running_loop().run_in_executor(None, swap_to, localization, made, made.names[1])
        while not localization._batcher._tasks:
            await asyncio.sleep(0.005)
        go_on.set()
        answer, found, described = await asyncio.gather(*waiting)
        await swapping
        return answer, answer_of(found), len(described.descriptor)

    answer, found, length = asyncio.run(straddle())
    check_whole(made, answer, 3)
    assert answer.index.version == made.names[1]
    check_whole(made, found, int(found.matches[0].reference_id[7:11]))
    assert (found.index.version, length) == (made.names[0], 3)


def test_the_old_model_is_freed_and_one_of_the_same_bundle_kept(
    localization: LocalizationService, made: TwoModels, describer: Describer, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[Describer] = []
    monkeypatch.setattr(Describer, "close", lambda self: closed.append(self))
    first = localization.live.require().describer
    build_index(make_places(made.places.root, 7), describer, made.indexes, "places")
    localization.live.look_for_new_version()
    assert localization.live.require().describer is first
    assert localization.live.require().place_index.count == 7
    assert closed == []
    swap_to(localization, made, made.names[1])
    assert localization.live.require().describer is not first
    assert closed == [first]


def test_what_a_server_says_of_itself_follows_the_model(localization: LocalizationService, made: TwoModels) -> None:
    client = TestClient(create_app(localization))  # without the lifespan, which would load anew
    for version, bundle in zip(reversed(made.names), reversed(made.bundles), strict=True):
        listing = client.post("/indexes/places/activate", json={"version": version}).json()
        assert listing["served"] == version
        assert client.get("/readyz").status_code == 200
        info = client.get("/info").json()
        assert (info["model"]["fingerprint"], info["index"]["version"]) == (bundle.fingerprint, version)
        assert info["preprocessing"]["width"] == bundle.preprocessing.width
        described = client.post("/describe", content=made.photo(0), headers=JPEG).json()
        assert described["model"]["fingerprint"] == bundle.fingerprint
        answer = client.post("/search", json={"descriptor": described["descriptor"]}).json()
        assert answer["matches"][0]["reference_id"] == "photos/0000.jpg"
        probed = localization.live.probed
        assert probed is not None
        assert probed.described
        localization.live.probe_now()
        assert localization.live.readiness.state == "ready"


def test_a_track_goes_on_over_another_model(made: TwoModels) -> None:
    localization = LocalizationService(
        ServerSettings(indexes=made.indexes, watch_interval_s=3600, threads=1, metrics="off")
    )
    with TestClient(create_app(localization)) as client:
        localization.live.wait_until_loaded(LIMIT_S)
        track = client.post("/tracks", json={}).json()["id"]

        def step(second: int) -> dict:
            query = {"captured_at_s": str(second)}
            answer = client.post(f"/tracks/{track}/localize", params=query, content=made.photo(2), headers=JPEG)
            assert answer.status_code == 200, answer.text
            return answer.json()["track"]

        before = [step(second) for second in range(3)][-1]
        swap_to(localization, made, made.names[1])
        after = step(3)
    assert (after["index_version"], after["carried_from"]) == (made.names[1], made.names[0])
    assert (after["frames"], after["matched"], after["lost"]) == (4, True, False)
    assert after["fix"]["lat"] == pytest.approx(before["fix"]["lat"], abs=1e-3)


def test_a_bundle_of_the_settings_is_not_left(made: TwoModels, caplog: pytest.LogCaptureFixture) -> None:
    shipped = made.bundles[0].folder
    settings = ServerSettings(indexes=made.indexes, bundle=shipped, watch_interval_s=3600, threads=1, metrics="off")
    for localization in serving(settings):
        with caplog.at_level(logging.ERROR):
            swap_to(localization, made, made.names[1])
        assert serves(localization) == made.names[0]
        swap = localization.live.last_swap
        assert swap is not None
        assert swap.result == "refused"
        assert "the index was described with bundle mean-colour" in (swap.reason or "")
        assert "Leave out --bundle" in (swap.reason or "")


@pytest.mark.usefixtures("milvus_polled_often")
@pytest.mark.parametrize("where", ["folder", "milvus"])
def test_a_place_index_that_the_settings_name_gives_the_model_of_each_version(made: TwoModels, where: str) -> None:
    """A Milvus holds no bundles: the server follows the folder of the index that is pushed there."""
    settings = ServerSettings(
        indexes=made.indexes,
        store=f"milvus://{made.indexes}/milvus.db" if where == "milvus" else None,
        bundle=made.index,
        watch_interval_s=3600,
        threads=1,
        metrics="off",
    )
    store = settings.open_store()

    def publish(version: str) -> None:
        activate_version(made.index, version)
        if isinstance(store, MilvusStore):
            push_version(PlaceIndex.open(made.index), store)

    publish(made.names[0])
    localization = LocalizationService(settings, store=store)
    localization.start()
    localization.live.wait_until_loaded(LIMIT_S)
    for version in reversed(made.names):
        publish(version)
        localization.live.look_for_new_version()
        answer = asyncio.run(localized(localization, made.photo(1)))
        check_whole(made, answer, 1)
        assert answer.index.version == version
    localization.stop()


@pytest.mark.parametrize("damage", ["graph", "precision"])
def test_a_model_that_does_not_open_is_refused(made: TwoModels, damage: str) -> None:
    precision = "fp16" if damage == "precision" else "fp32"
    current = made.names[1] if damage == "precision" else made.names[0]
    other = made.names[0] if damage == "precision" else made.names[1]
    activate_version(made.index, current)
    if damage == "graph":
        flip_byte(made.index / "versions" / other / "bundle" / "model.onnx")
    settings = ServerSettings(
        indexes=made.indexes, precision=precision, watch_interval_s=3600, threads=1, metrics="off"
    )
    for localization in serving(settings):
        swap_to(localization, made, other)
        assert serves(localization) == current
        swap = localization.live.last_swap
        assert swap is not None
        reason = "has no fp16 graph" if damage == "precision" else "model.onnx: the file is damaged"
        assert reason in (swap.reason or "")
        answer = asyncio.run(localized(localization, made.photo(1)))
        check_whole(made, answer, 1)


def test_a_descriptor_of_another_length_is_told_so(localization: LocalizationService, made: TwoModels) -> None:
    index = PlaceIndex.open(made.index)
    with pytest.raises(ParameterError, match="the index holds"):
        index.search(np.ones((1, 3), np.float32), 1)
