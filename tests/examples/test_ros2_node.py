"""The ROS 2 node on a fake rclpy, against a real sightfix server. Real ROS is not here; see fake_ros."""

import importlib
import io
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import PublishedPlaces
from tests.examples import fake_ros
from tests.examples.scripted import scripted
from tests.running_server import RunningServer

IMAGES = "image_raw/compressed"
StartNode = Callable[..., Any]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[StartNode]:
    """Starts the node with parameters, and destroys it at the end."""
    for name, module in fake_ros.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "sightfix_ros.node", raising=False)
    node_module = importlib.import_module("sightfix_ros.node")
    nodes = []

    def node(url: str, **parameters: Any) -> Any:
        monkeypatch.setattr(fake_ros.Node, "overrides", {"url": url, "max_rate_hz": 0.0, **parameters})
        nodes.append(node_module.SightfixNode())
        return nodes[-1]

    yield node
    for one in nodes:
        one.destroy_node()
        assert one.destroyed
    monkeypatch.delitem(sys.modules, "sightfix_ros.node")


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def header(sec: int) -> fake_ros.Header:
    return fake_ros.Header(fake_ros.Stamp(sec, 500), "camera")


def deliver(node: Any, message: Any, topic: str = IMAGES) -> None:
    kind, callback = node.subscriptions_by_topic[topic]
    assert isinstance(message, kind)
    callback(message)


def published_fixes(node: Any, count: int) -> list[Any]:
    published: list[Any] = node.publishers_by_topic["fix"].published
    until(lambda: len(published) >= count and not node._worker._busy)
    return published


def test_frames_become_fixes(start: StartNode, server: RunningServer, published: PublishedPlaces) -> None:
    node = start(server.url, ambiguous_is_fix=True, deadline_ms=30_000, min_radius_m=5.0)
    for turn, number in enumerate((4, 7)):
        data = published.places.rows[number].path.read_bytes()
        deliver(node, fake_ros.CompressedImage(header(100 + turn), "jpeg", data))
        published_fixes(node, turn + 1)
    first, second = published_fixes(node, 2)
    assert (first.header.stamp.sec, first.header.stamp.nanosec, first.header.frame_id) == (100, 500, "camera")
    assert first.status.status == fake_ros.NavSatStatus.STATUS_FIX
    assert first.latitude == pytest.approx(48.0, abs=0.01)
    assert math.isnan(first.altitude)
    assert first.position_covariance_type == fake_ros.NavSatFix.COVARIANCE_TYPE_APPROXIMATED
    assert first.position_covariance[0] == first.position_covariance[4] >= (5.0 / 1.51) ** 2
    assert second.header.stamp.sec == 101
    assert node.logger.lines == []


def test_raw_images_and_a_gps_prior(start: StartNode, server: RunningServer, published: PublishedPlaces) -> None:
    node = start(
        server.url,
        compressed=False,
        image_topic="image_raw",
        gps_topic="gps",
        frame_id="map",
        altitude_m=0.0,
        ambiguous_is_fix=True,
        deadline_ms=30_000,
        gps_min_radius_m=50.0,
    )
    with Image.open(published.places.rows[4].path) as image:
        pixels = np.asarray(image)[..., ::-1]
    frame = fake_ros.Image(header(200), *pixels.shape[:2], "bgr8", 0, pixels.shape[1] * 3, pixels.tobytes())
    row = published.places.rows[9]
    assert row.position is not None
    gps = fake_ros.NavSatFix(header(199), fake_ros.NavSatStatus(0), row.position.lat, row.position.lon)
    deliver(node, gps, "gps")
    deliver(node, frame, "image_raw")
    (near,) = published_fixes(node, 1)
    assert near.longitude == pytest.approx(row.position.lon, abs=1e-6)  # the only reference within 50 m of the GPS
    assert (near.header.frame_id, near.altitude) == ("map", 0.0)
    gps.header.stamp.sec = 100  # too old: the photo alone decides
    deliver(node, frame, "image_raw")
    assert abs(published_fixes(node, 2)[1].longitude - row.position.lon) > 1e-4
    gps.header.stamp.sec, gps.status.status = 199, -1  # no fix is no prior
    deliver(node, frame, "image_raw")
    assert abs(published_fixes(node, 3)[2].longitude - row.position.lon) > 1e-4


def test_no_match_is_published_as_no_fix(start: StartNode, server: RunningServer, published: PublishedPlaces) -> None:
    node = start(server.url, gps_topic="gps", deadline_ms=30_000)
    deliver(node, fake_ros.NavSatFix(header(300), fake_ros.NavSatStatus(0), 10.0, 10.0), "gps")  # far away
    deliver(node, fake_ros.CompressedImage(header(300), "jpeg", published.places.rows[1].path.read_bytes()))
    (nothing,) = published_fixes(node, 1)
    assert nothing.status.status == fake_ros.NavSatStatus.STATUS_NO_FIX
    assert math.isnan(nothing.latitude)
    assert nothing.position_covariance_type == fake_ros.NavSatFix.COVARIANCE_TYPE_UNKNOWN
    assert nothing.header.stamp.sec == 300


def test_callbacks_never_wait_and_frames_are_dropped(start: StartNode, monkeypatch: pytest.MonkeyPatch) -> None:
    node, go, asked = start("http://127.0.0.1:9", shrink=False), threading.Event(), []

    def localize(photo: bytes, **_: Any) -> dict[str, Any]:
        asked.append(photo)
        go.wait(30)
        return {"status": "NO_MATCH", "fix": None}

    monkeypatch.setattr(node._server, "localize", localize)
    for number in range(20):
        deliver(
            node, fake_ros.CompressedImage(header(number), "jpeg", bytes([number]))
        )  # returns although no server answers
    go.set()
    assert [message.header.stamp.sec for message in published_fixes(node, 1)] == [0]
    assert asked == [b"\x00"]
    assert node._worker.dropped == 19


def test_refusals_are_logged_and_the_server_is_left_alone(start: StartNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBOT_KEY", "secret")
    problem = b'{"code": "queue_full", "detail": "too many photos are waiting"}'
    with scripted((429, {"Retry-After": "600"}, problem)) as (url, asked):
        node = start(url, shrink=False, api_key_env="ROBOT_KEY")
        deliver(node, fake_ros.CompressedImage(header(1), "jpeg", b"\xff\xd8\xff"))
        until(lambda: bool(node.logger.lines) and not node._worker._busy)
        deliver(node, fake_ros.CompressedImage(header(2), "jpeg", b"\xff\xd8\xff"))
        assert node._worker.dropped == 1
    assert node.logger.lines == [("warning", "queue_full: too many photos are waiting")]
    assert asked[0][1]["Authorization"] == "Bearer secret"
    assert node.publishers_by_topic["fix"].published == []


def test_frames_that_cannot_be_read_are_logged(start: StartNode, server: RunningServer) -> None:
    node = start(server.url, compressed=False, image_topic="image_raw")
    deliver(node, fake_ros.Image(header(1), 2, 2, "bayer_rggb8", 0, 2, bytes(4)), "image_raw")
    until(lambda: len(node.logger.lines) == 1 and not node._worker._busy)
    deliver(node, fake_ros.Image(header(1), 2, 2, "rgb8", 0, 6, None), "image_raw")  # a driver's mistake
    until(lambda: len(node.logger.lines) == 2)
    levels, lines = zip(*node.logger.lines, strict=True)
    assert set(levels) == {"error"}
    assert "bayer_rggb8 are not read" in lines[0]


def test_large_frames_are_shrunk_before_they_are_sent(
    start: StartNode, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start(server.url, deadline_ms=30_000)
    buffer, sent = io.BytesIO(), []
    noise = np.random.default_rng(0).integers(0, 255, (960, 1280, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG", quality=90)
    localize = node._server.localize

    def watched(photo: bytes, **keywords: Any) -> Any:
        sent.append(photo)
        return localize(photo, **keywords)

    monkeypatch.setattr(node._server, "localize", watched)
    deliver(node, fake_ros.CompressedImage(header(1), "jpeg", buffer.getvalue()))
    published_fixes(node, 1)
    assert len(sent[0]) < 0.5 * len(buffer.getvalue())


def test_main_ends_cleanly(start: StartNode, monkeypatch: pytest.MonkeyPatch) -> None:
    start("http://127.0.0.1:9")
    sys.modules["sightfix_ros.node"].main()


def test_the_readme_names_every_parameter(start: StartNode) -> None:
    from tests.examples.conftest import EXAMPLES

    start("http://127.0.0.1:9")
    parameters = sys.modules["sightfix_ros.node"].PARAMETERS
    readme = (EXAMPLES / "ros2" / "README.md").read_text()
    assert [name for name in parameters if f"| `{name}` |" not in readme] == []
