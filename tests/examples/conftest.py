"""The ROS 2 package on the path, as colcon would install it, and one server for all examples."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PublishedPlaces
from tests.running_server import RunningServer, running_server

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.append(str(EXAMPLES / "ros2" / "sightfix_ros"))


@pytest.fixture(scope="session")
def server(published: PublishedPlaces, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A real server with HTTP and gRPC that serves the twelve places."""
    log = tmp_path_factory.mktemp("examples") / "log"
    with running_server(log, ["--indexes", str(published.indexes), "--grpc-port", "0"]) as running:
        running.wait_until_ready()
        yield running
