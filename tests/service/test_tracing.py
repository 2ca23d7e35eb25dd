"""Traces: the caller's trace goes on, stages are spans under the request's, and nothing is there while it is off."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind, StatusCode

from retrieval.errors import MissingExtraError, ParameterError
from service.http.app import create_app
from service.observing.metrics import Metrics
from service.observing.observer import Observer
from service.observing.tracing import Tracing, configured_tracing
from service.serving.localization import LocalizationService
from service.settings import ServerSettings
from tests.conftest import PublishedPlaces
from tests.running_server import forked_server
from tests.service.collector import running_collector

JPEG = {"Content-Type": "image/jpeg"}
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
STAGES = ["decode", "queue", "describe", "search", "fix"]


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture(scope="module")
def client(published: PublishedPlaces, exporter: InMemorySpanExporter) -> Iterator[TestClient]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    settings = ServerSettings(indexes=published.indexes, threads=1)
    localization = LocalizationService(settings, Observer(Metrics(), Tracing(provider)))
    with TestClient(create_app(localization), raise_server_exceptions=False) as client:
        localization.live.wait_until_loaded(60)
        assert localization.live.readiness.state == "ready", localization.live.readiness.reason
        yield client


@pytest.fixture(autouse=True)
def _clean(exporter: InMemorySpanExporter) -> None:
    exporter.clear()


@pytest.fixture(scope="module")
def photo(published: PublishedPlaces) -> bytes:
    return published.places.rows[3].path.read_bytes()


def finished(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    for _ in range(200):
        spans = {span.name: span for span in exporter.get_finished_spans()}
        if any(span.kind == SpanKind.SERVER for span in spans.values()):
            return spans
        time.sleep(0.01)
    raise AssertionError("the request's span never ended")


def test_the_stages_are_spans_in_order_under_the_request(
    client: TestClient, exporter: InMemorySpanExporter, photo: bytes
) -> None:
    begun = time.time_ns()
    answer = client.post("/localize", content=photo, headers={**JPEG, "X-Request-Id": "photo-7"}).json()
    ended = time.time_ns()
    spans = finished(exporter)
    assert set(spans) == {"POST /localize", *STAGES}
    request = spans["POST /localize"]
    assert request.kind == SpanKind.SERVER
    assert request.parent is None
    assert dict(request.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/localize",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "sightfix.request_id": "photo-7",
        "sightfix.fix.status": answer["status"],
        "sightfix.index.version": answer["index"]["version"],
    }
    at = begun
    for name in STAGES:
        span = spans[name]
        assert span.parent is not None
        assert span.parent.span_id == request.context.span_id
        assert span.start_time is not None
        assert span.end_time is not None
        assert at <= span.start_time <= span.end_time <= ended, name
        assert (span.end_time - span.start_time) / 1e6 == pytest.approx(answer["timings_ms"][name], abs=0.001)
        at = span.end_time


def test_the_caller_s_trace_goes_on_and_is_told(
    client: TestClient, exporter: InMemorySpanExporter, photo: bytes
) -> None:
    response = client.post("/localize", content=photo, headers={**JPEG, **TRACEPARENT, "tracestate": "robot=7"})
    spans = finished(exporter)
    request = spans["POST /localize"]
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == CALLER
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {TRACE}
    assert request.context.trace_state.get("robot") == "7"
    assert response.headers["traceresponse"] == f"00-{TRACE}-{request.context.span_id:016x}-01"


@pytest.mark.parametrize(
    "traceparent", ["", "nonsense", f"00-{'0' * 32}-{CALLER}-01", f"ff-{TRACE}-{CALLER}-01", "\xff" * 55]
)
def test_a_broken_traceparent_begins_a_new_trace(
    client: TestClient, exporter: InMemorySpanExporter, traceparent: str
) -> None:
    client.get("/info", headers={"traceparent": traceparent.encode("latin-1")})  # type: ignore[dict-item]
    assert finished(exporter)["GET /info"].parent is None


def test_a_caller_that_does_not_sample_is_not_traced(
    client: TestClient, exporter: InMemorySpanExporter, photo: bytes
) -> None:
    headers = {**JPEG, "traceparent": f"00-{TRACE}-{CALLER}-00"}
    response = client.post("/localize", content=photo, headers=headers)
    assert response.status_code == 200
    assert "traceresponse" not in response.headers
    assert exporter.get_finished_spans() == ()


def test_a_sampler_that_says_no(published: PublishedPlaces) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(ALWAYS_OFF), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    localization = LocalizationService(ServerSettings(indexes=published.indexes), Observer(None, Tracing(provider)))
    client = TestClient(create_app(localization))
    assert "traceresponse" not in client.get("/info").headers
    assert exporter.get_finished_spans() == ()
    assert "traceresponse" in client.get("/info", headers=TRACEPARENT).headers


def test_a_bad_photo_is_the_client_s_fault_and_a_bug_is_ours(
    client: TestClient, exporter: InMemorySpanExporter, photo: bytes
) -> None:
    client.post("/localize", content=b"no photo", headers=JPEG)
    span = finished(exporter)["POST /localize"]
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 415
    assert span.status.status_code == StatusCode.UNSET
    exporter.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.http.routes.localize.answer_response", lambda *_: 1 // 0)
        assert client.post("/localize", content=photo, headers=JPEG).status_code == 500
    assert finished(exporter)["POST /localize"].status.status_code == StatusCode.ERROR


def test_each_photo_of_a_batch_has_its_stages(client: TestClient, exporter: InMemorySpanExporter, photo: bytes) -> None:
    files = [("image", ("a.jpg", photo, "image/jpeg"))] * 3
    client.post("/localize/batch", files=files, headers={"X-Request-Id": "lot"})
    finished(exporter)
    described = [span for span in exporter.get_finished_spans() if span.name == "describe"]
    ids = {(span.attributes or {})["sightfix.request_id"] for span in described}
    assert ids == {"lot-0", "lot-1", "lot-2"}


def test_a_search_decodes_and_describes_nothing(
    client: TestClient, exporter: InMemorySpanExporter, photo: bytes
) -> None:
    descriptor = client.post("/describe", content=photo, headers=JPEG).json()["descriptor"]
    assert set(finished(exporter)) == {"POST /describe", "decode", "queue"}
    exporter.clear()
    client.post("/search", json={"descriptor": descriptor})
    assert set(finished(exporter)) == {"POST /search", "queue", "search", "fix"}


def test_spans_tell_no_position_no_path_and_no_header(
    client: TestClient, exporter: InMemorySpanExporter, photo: bytes
) -> None:
    headers = {**JPEG, "Authorization": "Bearer s3cret", "X-API-Key": "s3cret", "User-Agent": "s3cret"}
    client.post("/localize?geo_prior=48.0001,11.0002,5000", content=photo, headers=headers)
    client.get("/references/s3cret/image")
    finished(exporter)
    told = "".join(span.to_json() for span in exporter.get_finished_spans())
    for secret in ("s3cret", "48.0", "11.0", "geo_prior"):
        assert secret not in told


def test_probes_are_not_traced(client: TestClient, exporter: InMemorySpanExporter) -> None:
    for path in ("/livez", "/readyz", "/v2/health/ready", "/metrics"):
        client.get(path)
    assert exporter.get_finished_spans() == ()


def test_a_running_server_sends_its_spans_to_a_collector(
    published: PublishedPlaces, tmp_path: Path, photo: bytes
) -> None:
    environment = {"SIGHTFIX_METRICS": "off", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test"}
    with running_collector() as collector:
        arguments = ["--indexes", str(published.indexes), "--otlp-endpoint", collector.url, "--log-format", "json"]
        with forked_server(tmp_path / "log", arguments, environment) as server:
            server.wait_until_ready()
            response = httpx.post(f"{server.url}/localize", content=photo, headers={**JPEG, **TRACEPARENT})
            assert response.headers["traceresponse"].startswith(f"00-{TRACE}-")
            assert server.stop() == 0  # what is not sent yet is sent now
        assert set(collector.paths) == {"/v1/traces"}
        assert collector.resource["service.name"] == "sightfix"
        assert collector.resource["deployment.environment"] == "test"
        request = collector.named("POST /localize")[0]
        assert request.trace_id.hex() == TRACE
        assert request.parent_span_id.hex() == CALLER
        stages = [span for span in collector.spans if span.parent_span_id == request.span_id]
        assert [span.name for span in stages] == STAGES


def test_a_collector_that_is_away_costs_neither_answers_nor_the_stop(
    published: PublishedPlaces, tmp_path: Path, photo: bytes
) -> None:
    environment = {"SIGHTFIX_METRICS": "off", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    with forked_server(tmp_path / "log", ["--indexes", str(published.indexes)], environment) as server:
        server.wait_until_ready()
        for _ in range(5):
            assert httpx.post(f"{server.url}/localize", content=photo, headers=JPEG).status_code == 200
        begun = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begun < 12


def test_off_unless_configured() -> None:
    assert configured_tracing(None, {}) is None
    assert configured_tracing("http://127.0.0.1:9", {"OTEL_SDK_DISABLED": "true"}) is None
    assert configured_tracing(None, {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}) is None


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    ],
)
def test_another_protocol_is_refused_with_what_to_do(variables: dict[str, str]) -> None:
    with pytest.raises(ParameterError, match="OTLP over HTTP"):
        configured_tracing(None, variables)


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(MissingExtraError, match=r"sightfix\[tracing\]"):
        configured_tracing("http://127.0.0.1:9", {})


def test_nothing_of_opentelemetry_is_imported_while_it_is_off() -> None:
    # But its interface, which does nothing: FastAPI imports that.
    program = (
        "import sys\n"
        "from service.serving.localization import LocalizationService\n"
        "from service.server import serve\n"
        "from service.settings import ServerSettings\n"
        "LocalizationService(ServerSettings())\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
