"""Health follows the readiness, reflection knows all services."""

import threading
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from service.grpc.generated import localization_pb2 as pb
from service.grpc.generated.localization_pb2_grpc import LocalizationServiceStub
from service.serving.localization import LocalizationService
from service.settings import ServerSettings
from tests.conftest import PublishedPlaces
from tests.service.grpc.conftest import served
from tests.service.grpc.test_localization import details, photo

SERVICE = "sightfix.v1.LocalizationService"
SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


def test_a_ready_server_serves(channel: grpc.Channel) -> None:
    health = HealthStub(channel)
    for service in ("", SERVICE):
        assert health.Check(HealthCheckRequest(service=service)).status == SERVING
    with pytest.raises(grpc.RpcError) as unknown:
        health.Check(HealthCheckRequest(service="sightfix.v1.Nobody"))
    assert unknown.value.code() == grpc.StatusCode.NOT_FOUND
    watch = health.Watch(HealthCheckRequest(service="sightfix.v1.Nobody"))
    assert next(watch).status == HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


def test_health_from_loading_to_stopping(published: PublishedPlaces) -> None:
    localization = LocalizationService(ServerSettings(indexes=published.indexes, threads=1))
    with served(localization, load=False) as running, grpc.insecure_channel(running.address) as channel:
        health, stub = HealthStub(channel), LocalizationServiceStub(channel)
        for service in ("", SERVICE):
            assert health.Check(HealthCheckRequest(service=service)).status == NOT_SERVING
        for call, message in (
            (stub.Localize, pb.LocalizeRequest(image=photo(published, 1))),
            (stub.GetServerInfo, pb.GetServerInfoRequest()),
        ):
            with pytest.raises(grpc.RpcError) as loading:
                call(message)  # type: ignore[operator]
            assert loading.value.code() == grpc.StatusCode.UNAVAILABLE
            assert details(loading.value)["ErrorInfo"].reason == "NOT_READY"
        seen: list[int] = []

        def watch() -> None:
            for answer in health.Watch(HealthCheckRequest(service=SERVICE)):
                seen.append(answer.status)
                if len(seen) == 3:
                    return

        watching = threading.Thread(target=watch)
        watching.start()
        localization.start()
        localization.live.wait_until_loaded(60)
        for _ in range(100):
            if health.Check(HealthCheckRequest()).status == SERVING:
                break
            threading.Event().wait(0.05)
        assert stub.Localize(pb.LocalizeRequest(image=photo(published, 1))).answer.status == pb.FIX_STATUS_LOCATED
        localization.live.begin_shutdown()
        watching.join(10)
        assert seen == [NOT_SERVING, SERVING, NOT_SERVING]
        # Whoever comes while it drains is still answered.
        assert stub.Localize(pb.LocalizeRequest(image=photo(published, 1))).answer.status == pb.FIX_STATUS_LOCATED


def test_a_server_that_cannot_load_never_serves(tmp_path: Path) -> None:
    localization = LocalizationService(ServerSettings(indexes=tmp_path))
    with served(localization, load=False) as running, grpc.insecure_channel(running.address) as channel:
        localization.start()
        localization.live.wait_until_loaded(60)
        assert localization.live.readiness.state == "failed"
        assert HealthStub(channel).Check(HealthCheckRequest()).status == NOT_SERVING


def test_reflection_lists_and_describes_the_services(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    services = set(database.get_services())
    assert services == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    methods = DescriptorPool(database).FindServiceByName(SERVICE).methods_by_name
    assert set(methods) == {"Localize", "LocalizeStream", "Describe", "Search", "GetServerInfo"}
