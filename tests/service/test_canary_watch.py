"""A model that hangs or answers nonsense is seen by /readyz before its users see it, and in the end by /livez."""

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from fastapi.testclient import TestClient

from retrieval.errors import PlaceIndexError
from service.http.app import create_app
from service.serving.health import Canary, CanaryWatch, choose_canary, sing
from service.serving.live_localizer import LiveLocalizer
from service.settings import ServerSettings
from tests.conftest import PublishedPlaces
from tests.service.scraped import samples_of, value


class Clock:
    """Time in the test's hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def watch_of(
    clock: Clock, sing: Callable[[], object], on_owner_thread: Callable[[Callable[[], None]], None]
) -> CanaryWatch:
    watch = CanaryWatch(on_owner_thread, sing, interval_s=60, max_age_s=120, hung_after_s=600, clock=clock)
    watch.heard()
    return watch


def test_a_song_on_time_is_no_problem(clock: Clock) -> None:
    songs: list[float] = []
    watch = watch_of(clock, lambda: songs.append(clock.now), lambda errand: errand())
    for _ in range(10):
        clock.now += 60
        watch.ask()
        assert watch.problem is None
        assert watch.hung is None
    assert len(songs) == 10


def test_a_model_that_hangs_is_not_ready_and_then_given_up(clock: Clock) -> None:
    queued: list[Callable[[], None]] = []
    watch = watch_of(clock, lambda: None, queued.append)
    for _ in range(2):
        clock.now += 60
        watch.ask()
    assert watch.problem is None
    clock.now += 1
    assert "has not sung for 121 s" in (watch.problem or "")
    assert watch.hung is None
    assert len(queued) == 1, "songs do not pile up"
    clock.now += 600
    assert "has not come to rest for 661 s" in (watch.hung or "")
    queued.pop()()
    assert watch.problem is None, "it came back"
    assert watch.hung is None


def test_a_false_song_is_a_problem_until_a_true_one(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    wrong: list[Exception] = [PlaceIndexError("the canary failed", code="canary_failed")]

    def sing_so() -> None:
        if wrong:
            raise wrong[0]

    watch = watch_of(clock, sing_so, lambda errand: errand())
    sang_at = watch.sang_at
    watch.ask()
    watch.ask()
    assert watch.problem == "the canary failed."
    assert watch.sang_at == sang_at
    assert sum("not ready" in record.message for record in caplog.records) == 1, "said once"
    wrong[0] = RuntimeError("CUDA error 700")
    watch.ask()
    assert "RuntimeError" in (watch.problem or "")
    wrong.clear()
    watch.ask()
    assert watch.problem is None


def live_with(published: PublishedPlaces, **settings: float) -> LiveLocalizer:
    live = LiveLocalizer(ServerSettings(indexes=published.indexes, threads=1, **settings))  # type: ignore[arg-type]
    live.start_loading()
    live.wait_until_loaded(60)
    assert live.readiness.state == "ready", live.readiness.reason
    return live


@pytest.fixture
def live(published: PublishedPlaces) -> Iterator[LiveLocalizer]:
    live = live_with(published, canary_interval_s=0.2, hung_after_s=1.5)
    yield live
    live.stop()


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(1500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited in vain")


def test_a_hung_model_over_http(live: LiveLocalizer) -> None:
    client = TestClient(create_app(live))  # without the lifespan: the fixture has loaded it
    assert client.get("/readyz").status_code == 200
    gate = threading.Event()

    def hang() -> None:
        assert gate.wait(60)

    live.batcher.on_owner_thread(hang)
    wait_until(lambda: client.get("/readyz").status_code == 503)
    answer = client.get("/readyz").json()
    assert answer["state"] == "unhealthy"
    assert "the model hangs" in answer["reason"]
    assert value(samples_of(live), "sightfix_canary_ok") == 0
    assert value(samples_of(live), "sightfix_ready") == 0
    wait_until(lambda: client.get("/livez").status_code == 503)
    begun = time.monotonic()
    assert "has not come to rest" in client.get("/livez").json()["reason"]
    assert client.get("/livez").headers["retry-after"] == "2"
    assert time.monotonic() - begun < 1, "liveness never waits for the model"
    gate.set()
    wait_until(lambda: client.get("/readyz").status_code == 200 and client.get("/livez").status_code == 200)
    assert value(samples_of(live), "sightfix_canary_ok") == 1


def test_a_model_that_answers_nonsense(live: LiveLocalizer, monkeypatch: pytest.MonkeyPatch) -> None:
    describer = live.require().describer
    with monkeypatch.context() as patch:
        patch.setattr(
            describer, "describe", lambda images: np.eye(1, describer.bundle.descriptor_dim, dtype=np.float32)
        )
        wait_until(lambda: live.readiness.state == "unhealthy")
        assert "the canary failed" in (live.readiness.reason or "")
        live.require()  # who asks all the same is answered
    wait_until(lambda: live.readiness.state == "ready")


def test_a_failed_batch_is_looked_into_at_once(published: PublishedPlaces, monkeypatch: pytest.MonkeyPatch) -> None:
    live = live_with(published, canary_interval_s=3600)
    client = TestClient(create_app(live), raise_server_exceptions=False)
    photo = published.places.rows[3].path.read_bytes()

    def lost(images: object) -> None:
        raise RuntimeError("the device is lost")

    with monkeypatch.context() as patch:
        patch.setattr(live.require().describer, "describe", lost)
        assert client.post("/localize", content=photo, headers={"Content-Type": "image/jpeg"}).status_code == 500
        wait_until(lambda: live.readiness.state == "unhealthy")
    live.stop()


def test_a_photo_that_changes_on_the_disk_later_harms_nobody(live: LiveLocalizer, published: PublishedPlaces) -> None:
    localizer = live.require()
    canary = choose_canary(localizer, live.limits)
    assert canary.image is not None
    path = published.places.rows[canary.row].path
    kept = path.read_bytes()
    try:
        path.write_bytes(b"")
        assert sing(localizer, canary).described
    finally:
        path.write_bytes(kept)


def test_without_a_photo_the_model_is_run_all_the_same(live: LiveLocalizer, monkeypatch: pytest.MonkeyPatch) -> None:
    localizer = live.require()
    described: list[int] = []
    real = localizer.describer.describe

    def counting(images: np.ndarray) -> np.ndarray:
        described.append(len(images))
        return real(images)

    monkeypatch.setattr(localizer.describer, "describe", counting)
    report = sing(localizer, Canary(0, None))
    assert described[0] == 1
    assert not report.described
