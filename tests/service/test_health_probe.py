"""A model that hangs or answers nonsense is seen by /readyz before its users see it, and in the end by /livez."""

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from fastapi.testclient import TestClient

from retrieval.errors import PlaceIndexError
from service.http.app import create_app
from service.serving.health import HealthProbe, Probe, choose_probe, run_probe
from service.serving.localization import LocalizationService
from service.settings import ServerSettings
from tests.conftest import PublishedPlaces
from tests.service.scraped import samples_of, value


class Clock:
    """Time set by the test."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def probe_with(
    clock: Clock, run: Callable[[], object], on_owner_thread: Callable[[Callable[[], None]], None]
) -> HealthProbe:
    probe = HealthProbe(on_owner_thread, run, interval_s=60, max_age_s=120, hung_after_s=600, clock=clock)
    probe.record_success()
    return probe


def test_a_probe_that_succeeds_on_time_is_no_problem(clock: Clock) -> None:
    runs: list[float] = []
    probe = probe_with(clock, lambda: runs.append(clock.now), lambda task: task())
    for _ in range(10):
        clock.now += 60
        probe.request()
        assert probe.problem is None
        assert probe.hung is None
    assert len(runs) == 10


def test_a_model_that_hangs_is_not_ready_and_then_given_up(clock: Clock) -> None:
    queued: list[Callable[[], None]] = []
    probe = probe_with(clock, lambda: None, queued.append)
    for _ in range(2):
        clock.now += 60
        probe.request()
    assert probe.problem is None
    clock.now += 1
    assert "no health probe has succeeded for 121 s" in (probe.problem or "")
    assert probe.hung is None
    assert len(queued) == 1, "runs do not pile up"
    clock.now += 600
    assert "has not responded for 661 s" in (probe.hung or "")
    queued.pop()()
    assert probe.problem is None, "it came back"
    assert probe.hung is None


def test_a_failed_probe_is_a_problem_until_one_succeeds(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    wrong: list[Exception] = [PlaceIndexError("the health probe failed", code="canary_failed")]

    def run_so() -> None:
        if wrong:
            raise wrong[0]

    probe = probe_with(clock, run_so, lambda task: task())
    succeeded_at = probe.succeeded_at
    probe.request()
    probe.request()
    assert probe.problem == "the health probe failed."
    assert probe.succeeded_at == succeeded_at
    assert sum("not ready" in record.message for record in caplog.records) == 1, "said once"
    wrong[0] = RuntimeError("CUDA error 700")
    probe.request()
    assert "RuntimeError" in (probe.problem or "")
    wrong.clear()
    probe.request()
    assert probe.problem is None


def live_with(published: PublishedPlaces, **settings: float) -> LocalizationService:
    localization = LocalizationService(ServerSettings(indexes=published.indexes, threads=1, **settings))  # type: ignore[arg-type]
    localization.start()
    localization.live.wait_until_loaded(60)
    assert localization.live.readiness.state == "ready", localization.live.readiness.reason
    return localization


@pytest.fixture
def localization(published: PublishedPlaces) -> Iterator[LocalizationService]:
    localization = live_with(published, canary_interval_s=0.2, hung_after_s=1.5)
    yield localization
    localization.stop()


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(1500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited in vain")


def test_a_hung_model_over_http(localization: LocalizationService) -> None:
    client = TestClient(create_app(localization))  # without the lifespan: the fixture has loaded it
    assert client.get("/readyz").status_code == 200
    gate = threading.Event()

    def hang() -> None:
        assert gate.wait(60)

    localization._batcher.on_owner_thread(hang)
    wait_until(lambda: client.get("/readyz").status_code == 503)
    answer = client.get("/readyz").json()
    assert answer["state"] == "unhealthy"
    assert "the model hangs" in answer["reason"]
    assert value(samples_of(localization), "sightfix_canary_ok") == 0
    assert value(samples_of(localization), "sightfix_ready") == 0
    wait_until(lambda: client.get("/livez").status_code == 503)
    begun = time.monotonic()
    assert "has not responded" in client.get("/livez").json()["reason"]
    assert client.get("/livez").headers["retry-after"] == "2"
    assert time.monotonic() - begun < 1, "liveness never waits for the model"
    gate.set()
    wait_until(lambda: client.get("/readyz").status_code == 200 and client.get("/livez").status_code == 200)
    assert value(samples_of(localization), "sightfix_canary_ok") == 1


def test_a_model_that_answers_nonsense(localization: LocalizationService, monkeypatch: pytest.MonkeyPatch) -> None:
    describer = localization.live.require().describer
    with monkeypatch.context() as patch:
        patch.setattr(
            describer, "describe", lambda images: np.eye(1, describer.bundle.descriptor_dim, dtype=np.float32)
        )
        wait_until(lambda: localization.live.readiness.state == "unhealthy")
        assert "the health probe failed" in (localization.live.readiness.reason or "")
        localization.live.require()  # requests are answered all the same
    wait_until(lambda: localization.live.readiness.state == "ready")


def test_a_failed_batch_is_looked_into_at_once(published: PublishedPlaces, monkeypatch: pytest.MonkeyPatch) -> None:
    localization = live_with(published, canary_interval_s=3600)
    client = TestClient(create_app(localization), raise_server_exceptions=False)
    photo = published.places.rows[3].path.read_bytes()

    def lost(images: object) -> None:
        raise RuntimeError("the device is lost")

    with monkeypatch.context() as patch:
        patch.setattr(localization.live.require().describer, "describe", lost)
        assert client.post("/localize", content=photo, headers={"Content-Type": "image/jpeg"}).status_code == 500
        wait_until(lambda: localization.live.readiness.state == "unhealthy")
    localization.stop()


def test_a_photo_that_changes_on_the_disk_later_fails_no_probe(
    localization: LocalizationService, published: PublishedPlaces
) -> None:
    localizer = localization.live.require()
    probe = choose_probe(localizer, localization.limits)
    assert probe.image is not None
    path = published.places.rows[probe.row].path
    kept = path.read_bytes()
    try:
        path.write_bytes(b"")
        assert run_probe(localizer, probe).described
    finally:
        path.write_bytes(kept)


def test_without_a_photo_the_model_is_run_all_the_same(
    localization: LocalizationService, monkeypatch: pytest.MonkeyPatch
) -> None:
    localizer = localization.live.require()
    described: list[int] = []
    real = localizer.describer.describe

    def counting(images: np.ndarray) -> np.ndarray:
        described.append(len(images))
        return real(images)

    monkeypatch.setattr(localizer.describer, "describe", counting)
    report = run_probe(localizer, Probe(0, None))
    assert described[0] == 1
    assert not report.described
