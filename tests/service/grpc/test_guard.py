"""Keys, TLS, requests that do not arrive, counting."""

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from service.api_keys import make_key
from service.grpc.generated import jobs_pb2
from service.grpc.generated import localization_pb2 as pb
from service.grpc.generated.jobs_pb2_grpc import JobServiceStub
from service.grpc.generated.localization_pb2_grpc import LocalizationServiceStub
from service.jobs.service import JobService
from service.serving.admission import RejectionThrottle
from service.serving.localization import LocalizationService
from service.settings import ServerSettings
from tests.conftest import PublishedPlaces
from tests.service.grpc.conftest import Served, served
from tests.service.grpc.streaming import frame
from tests.service.grpc.test_localization import details, photo
from tests.service.jobs.town import Town

CODE = grpc.StatusCode


@pytest.fixture
def guarded(published: PublishedPlaces, tmp_path: Path) -> Iterator[tuple[Served, str]]:
    """A server that wants keys, and one of them."""
    key = make_key(tmp_path / "keys.toml", "robot", ("localize",))
    settings = ServerSettings(indexes=published.indexes, threads=1, api_keys=tmp_path / "keys.toml")
    jobs = JobService(Town(tmp_path).settings())
    with served(LocalizationService(settings), jobs=jobs) as running:
        yield running, key


def test_keys_open_the_door(guarded: tuple[Served, str], published: PublishedPlaces) -> None:
    running, key = guarded
    request = pb.LocalizeRequest(image=photo(published, 1), request_id="k")
    with grpc.insecure_channel(running.address) as channel:
        stub = LocalizationServiceStub(channel)
        for metadata in ((("authorization", f"Bearer {key}"),), (("x-api-key", key),)):
            assert stub.Localize(request, metadata=metadata).answer.request_id == "k"
            assert len(list(stub.LocalizeStream(iter([frame(1, photo(published, 1))]), metadata=metadata))) == 1
        for wrong in ((), (("authorization", "Bearer sfx_no"),), (("authorization", f"Basic {key}"),)):
            for call in (
                lambda wrong=wrong: stub.Localize(request, metadata=wrong),
                lambda wrong=wrong: list(stub.LocalizeStream(iter([frame(1, b"")]), metadata=wrong)),
                lambda wrong=wrong: stub.GetServerInfo(pb.GetServerInfoRequest(), metadata=wrong),
            ):
                with pytest.raises(grpc.RpcError) as refused:
                    call()
                assert refused.value.code() == CODE.UNAUTHENTICATED
                assert details(refused.value)["ErrorInfo"].reason == "UNAUTHENTICATED"
        with pytest.raises(grpc.RpcError) as forbidden:
            JobServiceStub(channel).ListJobs(jobs_pb2.ListJobsRequest(), metadata=(("x-api-key", key),))
        assert forbidden.value.code() == CODE.PERMISSION_DENIED
        assert HealthStub(channel).Check(HealthCheckRequest()).status == HealthCheckResponse.SERVING


def test_a_stranger_is_refused_before_its_message_is_read(
    guarded: tuple[Served, str], published: PublishedPlaces
) -> None:
    running, _ = guarded

    def never() -> Iterator[bytes]:
        time.sleep(5)
        yield b""

    with grpc.insecure_channel(running.address) as channel:
        begun = time.monotonic()
        with pytest.raises(grpc.RpcError) as refused:
            channel.stream_unary("/sightfix.v1.LocalizationService/Localize")(never())
        assert refused.value.code() == CODE.UNAUTHENTICATED
        assert time.monotonic() - begun < 4


def test_a_message_that_never_comes_is_given_up(published: PublishedPlaces) -> None:
    settings = ServerSettings(indexes=published.indexes, threads=1, body_timeout_s=0.3)

    def slow() -> Iterator[bytes]:
        time.sleep(5)
        yield b""

    with served(LocalizationService(settings)) as running, grpc.insecure_channel(running.address) as channel:
        method = channel.stream_unary("/sightfix.v1.LocalizationService/Localize")
        begun = time.monotonic()
        with pytest.raises(grpc.RpcError) as late:
            method(slow())
        assert time.monotonic() - begun < 4
        assert late.value.code() == CODE.DEADLINE_EXCEEDED
        assert details(late.value)["ErrorInfo"].reason == "REQUEST_TIMEOUT"
        with pytest.raises(grpc.RpcError) as empty:
            method(iter(()))
        assert details(empty.value)["ErrorInfo"].reason == "MALFORMED_REQUEST"


def test_tls_and_client_certificates(published: PublishedPlaces, tmp_path: Path) -> None:
    authority = trustme.CA()
    server, client = authority.issue_cert("127.0.0.1", "localhost"), authority.issue_cert("robot@example.org")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for part in server.cert_chain_pems:
        part.write_to_path(tmp_path / "server.pem", append=True)
    server.private_key_pem.write_to_path(tmp_path / "server.key")
    settings = ServerSettings(
        indexes=published.indexes, threads=1, tls_cert=tmp_path / "server.pem", tls_key=tmp_path / "server.key",
        tls_client_ca=tmp_path / "ca.pem",
    )  # fmt: skip
    root = (tmp_path / "ca.pem").read_bytes()
    ours = grpc.ssl_channel_credentials(
        root, client.private_key_pem.bytes(), b"".join(part.bytes() for part in client.cert_chain_pems)
    )
    with served(LocalizationService(settings)) as running:
        with grpc.secure_channel(running.address, ours) as channel:
            answer = LocalizationServiceStub(channel).Localize(pb.LocalizeRequest(image=photo(published, 1))).answer
            assert answer.status == pb.FIX_STATUS_LOCATED
        with grpc.secure_channel(running.address, grpc.ssl_channel_credentials(root)) as channel:
            with pytest.raises(grpc.RpcError) as refused:
                LocalizationServiceStub(channel).GetServerInfo(pb.GetServerInfoRequest(), timeout=10)
            assert refused.value.code() == CODE.UNAVAILABLE


def test_calls_are_counted_by_method_and_code(inside: Served, published: PublishedPlaces) -> None:
    metrics = inside.localization.observer.metrics
    assert metrics is not None

    def count(method: str, code: str) -> float:
        labels = {"method": f"sightfix.v1.LocalizationService/{method}", "code": code}
        return metrics.registry.get_sample_value("sightfix_grpc_requests_total", labels) or 0.0

    with grpc.insecure_channel(inside.address) as channel:
        stub = LocalizationServiceStub(channel)
        stub.Localize(pb.LocalizeRequest(image=photo(published, 1)))
        with pytest.raises(grpc.RpcError):
            stub.Localize(pb.LocalizeRequest())
        list(stub.LocalizeStream(iter([frame(1, photo(published, 1)), frame(2, b"")])))
    for method, code in (("Localize", "OK"), ("Localize", "INVALID_ARGUMENT"), ("LocalizeStream", "OK")):
        deadline = time.monotonic() + 5
        while count(method, code) != 1:
            assert time.monotonic() < deadline, (method, code)
            time.sleep(0.01)


def test_a_bug_is_internal_and_says_nothing(
    inside: Served, published: PublishedPlaces, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the secret")

    monkeypatch.setattr("retrieval.localize.localizer.Localizer.localize", broken)
    with grpc.insecure_channel(inside.address) as channel:
        stub = LocalizationServiceStub(channel)
        with pytest.raises(grpc.RpcError) as failed:
            stub.Localize(pb.LocalizeRequest(image=photo(published, 1)))
        (response,) = stub.LocalizeStream(iter([frame(1, photo(published, 1))]))
    assert failed.value.code() == CODE.INTERNAL
    assert "secret" not in failed.value.details()
    assert details(failed.value)["ErrorInfo"].reason == "INTERNAL_ERROR"
    assert (response.error.code, "secret" in response.error.message) == (CODE.INTERNAL.value[0], False)
    assert "the secret" in caplog.text


def test_refusals_that_come_too_fast_are_held_back(
    inside: Served, published: PublishedPlaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inside.localization._batcher.queue, "limit", 0)
    monkeypatch.setattr(RejectionThrottle, "next_delay_s", lambda pace: 0.3)
    begun = time.monotonic()
    with grpc.insecure_channel(inside.address) as channel, pytest.raises(grpc.RpcError) as refused:
        LocalizationServiceStub(channel).Localize(pb.LocalizeRequest(image=photo(published, 1)))
    assert refused.value.code() == CODE.RESOURCE_EXHAUSTED
    assert time.monotonic() - begun >= 0.3
