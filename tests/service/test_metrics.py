"""What Prometheus sees: true numbers, under names that were promised, in as many series as were promised."""

import asyncio
import contextlib
import runpy
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.applications import Starlette

from index_builder.update import build_index
from retrieval.describer import Describer
from retrieval.errors import ServerError, StorageError
from retrieval.index.folder import current_version
from retrieval.localize.localizer import LocalizeOptions
from service.http.app import create_app
from service.observing.definitions import DEFINITIONS
from service.observing.metrics import JobCollector, Metrics
from service.problems import RequestError
from service.server import MetricsServer, metrics_served
from service.serving.admission import RejectedError
from service.serving.localization import LocalizationService
from service.settings import ServerSettings
from tests.conftest import PublishedPlaces
from tests.places import make_places
from tests.running_server import forked_server
from tests.service.scraped import counted, parsed, samples_of, value

JPEG = {"Content-Type": "image/jpeg"}
PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "metrics.md"


@pytest.fixture(scope="module")
def localization(published: PublishedPlaces) -> LocalizationService:
    return LocalizationService(
        ServerSettings(indexes=published.indexes, threads=1, metrics="main", max_pixels=2_000_000)
    )


@pytest.fixture(scope="module")
def client(localization: LocalizationService) -> Iterator[TestClient]:
    with TestClient(create_app(localization), raise_server_exceptions=False) as client:
        localization.live.wait_until_loaded(60)
        assert localization.live.readiness.state == "ready", localization.live.readiness.reason
        yield client


@pytest.fixture(scope="module")
def photo(published: PublishedPlaces) -> bytes:
    return published.places.rows[3].path.read_bytes()


def test_one_photo_is_one_of_everything(client: TestClient, localization: LocalizationService, photo: bytes) -> None:
    before = samples_of(localization)
    answer = client.post("/v1/localize", content=photo, headers=JPEG).json()
    settle(localization, before, 1)
    assert (
        counted(localization, before, "sightfix_http_requests_total", route="/v1/localize", method="POST", status="200")
        == 1
    )
    assert counted(localization, before, "sightfix_request_duration_seconds_count", route="/v1/localize") == 1
    for stage in ("decode", "queue", "describe", "search", "fix"):
        assert counted(localization, before, "sightfix_stage_duration_seconds_count", stage=stage) == 1
        seconds = counted(localization, before, "sightfix_stage_duration_seconds_sum", stage=stage)
        assert seconds == pytest.approx(answer["timings_ms"][stage] / 1e3, rel=1e-6)
    assert counted(localization, before, "sightfix_batch_size_sum") == 1
    assert counted(localization, before, "sightfix_batch_duration_seconds_count") == 1
    assert counted(localization, before, "sightfix_batch_flush_total", reason="idle") == 1
    assert counted(localization, before, "sightfix_fixes_total", status=answer["status"]) == 1
    assert counted(localization, before, "sightfix_best_match_score_sum") == pytest.approx(
        answer["matches"][0]["score"]
    )
    assert counted(localization, before, "sightfix_fix_radius_meters_sum") == pytest.approx(answer["fix"]["radius_m"])
    assert value(samples_of(localization), "sightfix_inflight_requests") == 0


def settle(localization: LocalizationService, before: dict, batches: float) -> None:
    """The owner thread reports a batch after it has answered it."""
    for _ in range(500):
        if counted(localization, before, "sightfix_batch_size_count") >= batches:
            return
        time.sleep(0.01)
    raise AssertionError("the batch was never reported")


def test_what_is_served_is_named(client: TestClient, localization: LocalizationService) -> None:
    samples, info = parsed(client.get("/metrics").text), client.get("/info").json()
    model = {
        name: info["model"][name] for name in ("name", "fingerprint", "precision", "provider", "runtime", "device")
    }
    assert value(samples, "sightfix_model_info", **model) == 1
    index = {name: info["index"][name] for name in ("name", "version", "type")}
    assert value(samples, "sightfix_index_info", **index) == 1
    assert value(samples, "sightfix_index_vectors") == 12
    assert value(samples, "sightfix_queue_limit") == localization.settings.max_waiting
    for name in ("sightfix_ready", "sightfix_canary_ok"):
        assert value(samples, name) == 1
    assert time.time() - value(samples, "sightfix_canary_timestamp_seconds") < 300
    assert value(samples, "sightfix_engine_building") == 0
    assert value(samples, "process_resident_memory_bytes") > 1e7
    assert {dict(labels)["lane"] for name, labels in samples if name == "sightfix_queue_depth"} == {"robot", "bulk"}


@pytest.mark.parametrize(
    ("method", "path", "route", "label", "status"),
    [
        ("GET", "/indexes/places", "/indexes/{name}", "GET", "200"),
        ("GET", "/indexes/../../etc/passwd", "unmatched", "GET", "404"),
        ("GET", "/references/photos/0001.jpg/image", "/references/{reference_id:path}/image", "GET", "200"),
        ("GET", "/references/no/such/image", "/references/{reference_id:path}/image", "GET", "404"),
        ("GET", "/wp-admin.php?x=1", "unmatched", "GET", "404"),
        ("GET", "/localize", "/localize", "GET", "405"),
        ("BREW", "/livez", "/livez", "other", "405"),
        ("HEAD", "/livez", "/livez", "HEAD", "200"),
        ("POST", "/localize", "/localize", "POST", "415"),
    ],
)
def test_routes_are_templates(
    client: TestClient, localization: LocalizationService, method: str, path: str, route: str, label: str, status: str
) -> None:
    before = samples_of(localization)
    client.request(method, path)
    name = "sightfix_http_requests_total"
    assert counted(localization, before, name, route=route, method=label, status=status) == 1


def test_no_client_can_make_series(client: TestClient, localization: LocalizationService, photo: bytes) -> None:
    def everything(number: int) -> None:
        client.get(f"/no/such/{number}")
        client.get(f"/references/{number}/image")
        client.get(f"/indexes/index-{number}")
        client.request(f"METHOD{number}", "/livez")
        headers = {**JPEG, "X-Request-Id": f"request-{number}", "User-Agent": f"agent {number}"}
        client.post(f"/localize?top_k={number}", content=photo, headers=headers)
        client.post("/localize", content=photo[: 500 + number], headers=headers)

    everything(1)
    series = set(samples_of(localization))
    for number in range(2, 12):
        everything(number)
    assert set(samples_of(localization)) == series


def test_a_failed_decode_is_counted_by_its_code(
    client: TestClient, localization: LocalizationService, photo: bytes
) -> None:
    for body, code in (
        (photo[:300], "image_undecodable"),
        (b"", "empty_body"),
        (b"GIF89a" * 9, "unsupported_media_type"),
    ):
        before = samples_of(localization)
        assert client.post("/localize", content=body, headers=JPEG).json()["code"] == code
        assert counted(localization, before, "sightfix_decode_failures_total", code=code) == 1
        assert counted(localization, before, "sightfix_fixes_total", status="LOCATED") == 0


def test_refused_photos_are_counted_once_each_and_by_reason(published: PublishedPlaces, photo: bytes) -> None:
    localization = LocalizationService(
        ServerSettings(indexes=published.indexes, threads=1, max_waiting=2, canary_interval_s=3600)
    )
    with pytest.raises(RequestError):
        localization.check_room(localization.urgency())
    assert counted(localization, {}, "sightfix_refused_total", reason="not_ready") == 1
    localization.start()
    localization.live.wait_until_loaded(60)
    gate = threading.Event()

    async def scenario() -> None:
        await localization.localize(photo, LocalizeOptions(), "first", localization.urgency())
        localization._batcher.on_owner_thread(lambda: assert_set(gate))
        waiting = [
            asyncio.create_task(localization.localize(photo, LocalizeOptions(), str(n), localization.urgency()))
            for n in range(2)
        ]
        await until(lambda: localization._batcher.queue.admitted == 2)
        with pytest.raises(RejectedError):
            await localization.localize(photo, LocalizeOptions(), "third", localization.urgency())
        with pytest.raises(RejectedError):
            localization.check_room(localization.urgency())
        waiting[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        gate.set()
        await waiting[1]

    asyncio.run(asyncio.wait_for(scenario(), 60))
    assert counted(localization, {}, "sightfix_refused_total", reason="queue") == 2
    assert counted(localization, {}, "sightfix_dropped_total", reason="client_left") == 1
    localization.stop()
    with pytest.raises(RequestError, match="shutting down"):
        asyncio.run(localization.localize(photo, LocalizeOptions(), "late", localization.urgency()))
    assert counted(localization, {}, "sightfix_refused_total", reason="draining") == 1


def test_a_deadline_that_passes_inside_and_one_that_cannot_be_kept(published: PublishedPlaces, photo: bytes) -> None:
    localization = LocalizationService(ServerSettings(indexes=published.indexes, threads=1, canary_interval_s=3600))
    localization.start()
    localization.live.wait_until_loaded(60)
    gate = threading.Event()

    async def scenario() -> None:
        await localization.localize(photo, LocalizeOptions(), "first", localization.urgency())
        localization._batcher.on_owner_thread(lambda: assert_set(gate))
        with pytest.raises(RequestError, match="deadline passed"):
            await localization.localize(photo, LocalizeOptions(), "late", localization.urgency(seconds=2.0))
        with pytest.raises(RejectedError, match="the answer would take"):
            await localization.localize(photo, LocalizeOptions(), "never", localization.urgency(seconds=1e-9))
        gate.set()

    asyncio.run(asyncio.wait_for(scenario(), 60))
    localization.stop()
    assert counted(localization, {}, "sightfix_dropped_total", reason="deadline") == 1
    assert counted(localization, {}, "sightfix_refused_total", reason="deadline") == 1


def assert_set(gate: threading.Event) -> None:
    assert gate.wait(30)


async def until(condition: object) -> None:
    for _ in range(2000):
        if condition():  # type: ignore[operator]
            return
        await asyncio.sleep(0.005)
    raise AssertionError("waited in vain")


def test_describe_and_search_are_watched_too(
    client: TestClient, localization: LocalizationService, photo: bytes
) -> None:
    before = samples_of(localization)
    descriptor = client.post("/describe", content=photo, headers=JPEG).json()["descriptor"]
    assert counted(localization, before, "sightfix_stage_duration_seconds_count", stage="decode") == 1
    assert client.post("/search", json={"descriptor": descriptor}).status_code == 200
    assert counted(localization, before, "sightfix_stage_duration_seconds_count", stage="decode") == 1
    assert counted(localization, before, "sightfix_stage_duration_seconds_count", stage="queue") == 2
    assert counted(localization, before, "sightfix_stage_duration_seconds_count", stage="search") == 1
    assert counted(localization, before, "sightfix_fixes_total", status="LOCATED") == 1


def test_swaps_are_counted_and_timed(tmp_path: Path, describer: Describer) -> None:
    build_index(make_places(tmp_path, 4), describer, tmp_path / "indexes", "places")
    localization = LocalizationService(ServerSettings(indexes=tmp_path / "indexes", watch_interval_s=3600, threads=1))
    localization.start()
    localization.live.wait_until_loaded(60)
    build_index(make_places(tmp_path, 5), describer, tmp_path / "indexes", "places")
    localization.live.look_for_new_version()
    assert counted(localization, {}, "sightfix_index_swap_total", result="served") == 1
    assert value(samples_of(localization), "sightfix_index_vectors") == 5
    build_index(make_places(tmp_path, 6), describer, tmp_path / "indexes", "places")
    version = current_version(tmp_path / "indexes" / "places")
    (tmp_path / "indexes" / "places" / "versions" / version / "vectors.faiss").write_bytes(b"")
    localization.live.look_for_new_version()
    localization.stop()
    samples = samples_of(localization)
    assert value(samples, "sightfix_index_swap_total", result="refused") == 1
    assert value(samples, "sightfix_index_swap_duration_seconds_count") == 2
    assert value(samples, "sightfix_index_vectors") == 5
    infos = [labels for name, labels in samples if name == "sightfix_index_info"]
    assert len(infos) == 1, "the version before is no series any more"


def test_openmetrics_for_who_asks_for_it(client: TestClient) -> None:
    plain = client.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    modern = client.get("/metrics", headers={"Accept": accept})
    assert modern.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert modern.text.endswith("# EOF\n")


def test_by_default_the_main_port_shows_no_metrics(http: TestClient) -> None:
    assert http.get("/metrics").status_code == 404


def test_two_servers_in_one_process_count_apart(published: PublishedPlaces) -> None:
    first, second = (LocalizationService(ServerSettings(indexes=published.indexes)) for _ in range(2))
    with TestClient(create_app(first)) as client:
        client.get("/livez")
    labels = {"route": "/livez", "method": "GET", "status": "200"}
    assert counted(first, {}, "sightfix_http_requests_total", **labels) == 1
    assert counted(second, {}, "sightfix_http_requests_total", **labels) == 0


def test_metrics_can_be_off(published: PublishedPlaces, photo: bytes) -> None:
    localization = LocalizationService(ServerSettings(indexes=published.indexes, metrics="off", threads=1))
    with TestClient(create_app(localization)) as client:
        localization.live.wait_until_loaded(60)
        assert client.post("/localize", content=photo, headers=JPEG).status_code == 200
        assert client.get("/metrics").status_code == 404
        assert localization.observer.metrics is None


def test_an_unexpected_failure_counts_as_500(
    client: TestClient, localization: LocalizationService, photo: bytes
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    before = samples_of(localization)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(localization, "check_room", broken)
        assert client.post("/localize", content=photo, headers=JPEG).status_code == 500
    assert (
        counted(localization, before, "sightfix_http_requests_total", route="/localize", method="POST", status="500")
        == 1
    )
    assert value(samples_of(localization), "sightfix_inflight_requests") == 0


def test_a_mounted_app_is_one_route(localization: LocalizationService) -> None:
    app: FastAPI = create_app(localization)
    app.mount("/assets", Starlette())
    before = samples_of(localization)
    client = TestClient(app)
    for name in ("a.js", "b.css"):
        client.get(f"/assets/{name}")
    assert (
        counted(localization, before, "sightfix_http_requests_total", route="static", method="GET", status="404") == 2
    )


def test_the_port_of_its_own(published: PublishedPlaces) -> None:
    metrics = Metrics()
    server = MetricsServer(metrics.registry, "127.0.0.1", 0)
    server.start()
    try:
        response = httpx.get(server.url, headers={"Accept": "application/openmetrics-text"})
        assert response.status_code == 200
        assert response.headers["content-encoding"] == "gzip"
        assert response.text.endswith("# EOF\n")
        port = int(server.url.rpartition(":")[2].partition("/")[0])
        with pytest.raises(ServerError, match="for metrics"):
            MetricsServer(metrics.registry, "127.0.0.1", port)
    finally:
        server.stop()
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url)


def test_a_second_server_takes_a_free_port_unless_one_is_asked_for(
    published: PublishedPlaces, caplog: pytest.LogCaptureFixture
) -> None:
    metrics, settings = Metrics(), ServerSettings(indexes=published.indexes)
    with (
        caplog.at_level("INFO", "sightfix.service"),
        metrics_served(settings, metrics),
        metrics_served(settings, metrics),
    ):
        urls = {record.getMessage().rpartition(" ")[2] for record in caplog.records}
        assert len(urls) == 2
        assert all("sightfix_ready" not in httpx.get(url).text for url in urls), "no localizer was registered"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = ServerSettings(indexes=published.indexes, metrics_port=taken.getsockname()[1])
        with pytest.raises(ServerError, match="SIGHTFIX_METRICS_PORT"), metrics_served(settings, metrics):
            pass


def test_a_running_server_is_scraped_beside_its_main_port(
    published: PublishedPlaces, tmp_path: Path, photo: bytes
) -> None:
    arguments = ["--indexes", str(published.indexes)]
    with forked_server(tmp_path / "log", arguments, {"SIGHTFIX_METRICS_PORT": "0"}) as server:
        server.wait_until_ready()
        assert httpx.post(f"{server.url}/localize", content=photo, headers=JPEG).status_code == 200
        url = server.log.read_text().partition("metrics at ")[2].split()[0]
        samples = parsed(httpx.get(url).text)
        assert value(samples, "sightfix_http_requests_total", route="/localize", method="POST", status="200") == 1
        assert value(samples, "sightfix_ready") == 1
        assert httpx.get(f"{server.url}/metrics").status_code == 404
        with contextlib.closing(socket.create_connection(("127.0.0.1", int(url.split(":")[2].partition("/")[0])))):
            # Somebody who connects to the metrics and says nothing holds nobody up.
            assert httpx.get(url, timeout=5).status_code == 200
            assert server.stop() == 0


def test_every_metric_is_defined_and_every_definition_is_a_metric(localization: LocalizationService) -> None:
    assert localization.observer.metrics is not None
    registry, jobs = localization.observer.metrics.registry, JobCollector(dict)
    registry.register(jobs)
    families = {family.name: family for family in registry.collect()}
    registry.unregister(jobs)
    ours = {name for name in families if not name.startswith("process_")}
    assert ours == {definition.name.removesuffix("_total") for definition in DEFINITIONS}
    for definition in DEFINITIONS:
        family = families[definition.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (definition.kind, definition.help)
        assert definition.name.startswith("sightfix_")
        assert (definition.kind == "counter") == definition.name.endswith("_total")
        assert not set(definition.label_names) & {"request_id", "reference_id", "path"}


def test_jobs_are_counted_and_may_fail_to_be(published: PublishedPlaces) -> None:
    def damaged() -> dict[tuple[str, str], int]:
        raise StorageError("the database of jobs failed")

    localization = LocalizationService(ServerSettings(indexes=published.indexes))
    assert localization.observer.metrics is not None
    jobs = JobCollector(lambda: {("full", "FAILED"): 2})
    localization.observer.metrics.registry.register(jobs)
    assert value(samples_of(localization), "sightfix_jobs", kind="full", state="FAILED") == 2
    assert ("sightfix_jobs", frozenset({("kind", "append"), ("state", "PENDING")})) in samples_of(localization)
    localization.observer.metrics.registry.unregister(jobs)
    localization.observer.metrics.registry.register(JobCollector(damaged))
    samples = samples_of(localization)
    assert value(samples, "sightfix_queue_limit") == 64, "the other metrics are there all the same"
    assert not [name for name, _ in samples if name == "sightfix_jobs"]


def test_the_reference_page_is_current() -> None:
    made = runpy.run_path(str(PAGE.with_name("make_metrics_page.py")))["page"]()
    assert made == PAGE.read_text(encoding="utf-8"), "run: python docs/reference/make_metrics_page.py"
