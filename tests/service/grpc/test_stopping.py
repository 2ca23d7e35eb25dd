"""The process: SIGTERM, a port that is taken, what the flags say."""

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from service.grpc.generated import localization_pb2 as pb
from service.grpc.generated.localization_pb2_grpc import LocalizationServiceStub
from tests.conftest import PublishedPlaces
from tests.forked import sightfix
from tests.running_server import forked_server
from tests.service.grpc.conftest import grpc_address
from tests.service.grpc.streaming import Sending, code_of, ids
from tests.service.grpc.test_localization import photo


def test_sigterm_drains_answers_what_is_in_flight_and_ends_with_zero(
    published: PublishedPlaces, tmp_path: Path
) -> None:
    arguments = ["--indexes", str(published.indexes), "--grpc-port", "0"]
    environment = {"SIGHTFIX_DRAIN_DELAY_S": "1.5", "SIGHTFIX_STOP_TIMEOUT_S": "20"}
    with forked_server(tmp_path / "log", arguments, environment) as running:
        running.wait_until_ready()
        with grpc.insecure_channel(grpc_address(running)) as channel:
            stub, health = LocalizationServiceStub(channel), HealthStub(channel)
            assert health.Check(HealthCheckRequest()).status == HealthCheckResponse.SERVING
            watch = health.Watch(HealthCheckRequest())
            assert next(watch).status == HealthCheckResponse.SERVING
            sending = Sending()
            responses = stub.LocalizeStream(iter(sending))
            got: list[pb.LocalizeStreamResponse] = []
            ended: list[grpc.RpcError] = []

            def read() -> None:
                try:
                    got.extend(responses)
                except grpc.RpcError as error:
                    ended.append(error)

            reading = threading.Thread(target=read)
            reading.start()
            sending.frame(0, photo(published, 0))
            running.process.send_signal(signal.SIGTERM)
            assert next(watch).status == HealthCheckResponse.NOT_SERVING
            # It drains: whoever has not noticed is still answered.
            assert stub.Localize(pb.LocalizeRequest(image=photo(published, 1))).answer.matches
            number = 1
            begun = time.monotonic()
            while running.process.poll() is None and reading.is_alive() and time.monotonic() - begun < 15:
                sending.frame(number, photo(published, number % 12))
                number += 1
                time.sleep(0.03)
            assert running.process.wait(timeout=20) == 0
            sending.end()
            reading.join(10)
    assert len(got) > 5
    assert ids(got) == list(range(len(got)))
    assert [code_of(response) for response in got] == [None] * len(got)
    assert ended[0].code() == grpc.StatusCode.UNAVAILABLE
    assert "shutting down" in ended[0].details()
    assert "Traceback" not in running.log.read_text()
    # Far from the 20 s that it would have had: an idle watcher holds nothing up.
    assert time.monotonic() - begun < 12


def test_a_stream_that_says_nothing_holds_nobody_up(published: PublishedPlaces, tmp_path: Path) -> None:
    arguments = ["--indexes", str(published.indexes), "--grpc-port", "0"]
    with forked_server(tmp_path / "log", arguments, {"SIGHTFIX_STOP_TIMEOUT_S": "60"}) as running:
        running.wait_until_ready()
        with grpc.insecure_channel(grpc_address(running)) as channel:
            grpc.channel_ready_future(channel).result(10)
            sending = Sending()
            responses = LocalizationServiceStub(channel).LocalizeStream(iter(sending))
            # Behind it on the same connection, so the server has both.
            LocalizationServiceStub(channel).GetServerInfo(pb.GetServerInfoRequest())
            running.process.send_signal(signal.SIGTERM)
            with pytest.raises(grpc.RpcError) as ended:
                next(responses)
            assert running.process.wait(timeout=30) == 0
            sending.end()
    assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "shutting down" in ended.value.details()


def test_a_port_that_is_taken(published: PublishedPlaces) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = sightfix("serve", "--indexes", str(published.indexes), "--port", "0", "--grpc-port", str(port))
    assert done.returncode == 1
    assert f"error cannot listen on 127.0.0.1:{port} for gRPC. Choose another port with --grpc-port" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("flag", [[], ["--grpc-port", "50051"]])
def test_the_configuration_tells_the_port(published: PublishedPlaces, flag: list[str]) -> None:
    done = sightfix("serve", "--check-config", "--indexes", str(published.indexes), *flag)
    assert done.returncode == 0, done.stderr
    assert ("gRPC at port 50051" in done.stdout + done.stderr) == bool(flag)


def test_without_a_port_grpc_is_not_even_loaded() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, service.server; print('grpc' in sys.modules)"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "False\n"
