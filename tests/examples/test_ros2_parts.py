"""What the ROS 2 example does without ROS: fixes and covariances, images, one frame at a time, the server."""

import ast
import io
import json
import math
import threading
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sightfix_ros.fixes import RADIUS_PER_SIGMA, FixRules, position_of, prior_of
from sightfix_ros.images import UnsupportedEncodingError, jpeg_of_pixels, shrunk
from sightfix_ros.one_at_a_time import OneAtATime
from sightfix_ros.server import NotLocalizedError, Server

from retrieval.describer import Describer
from retrieval.images import decode_image
from sightfix.toy_town import ToyTown, photographs, plan_queries
from tests.conftest import PublishedPlaces
from tests.examples.conftest import EXAMPLES
from tests.examples.scripted import scripted
from tests.running_server import RunningServer


def answer(status: str = "LOCATED", radius_m: float = 30.0, confidence: float = 0.5) -> dict[str, Any]:
    fix = {"lat": 48.0, "lon": 11.0, "radius_m": radius_m, "confidence": confidence}
    return {"status": status, "fix": None if status == "NO_MATCH" else fix}


def test_the_radius_holds_68_percent_of_the_gaussian_that_is_published() -> None:
    position = position_of(answer(radius_m=30.0), FixRules())
    assert position is not None
    assert position.covariance == [position.variance_m2, 0, 0, 0, position.variance_m2, 0, 0, 0, 1e6]
    assert math.sqrt(position.variance_m2) == pytest.approx(30.0 / 1.5096, rel=1e-4)
    drawn = np.random.default_rng(0).multivariate_normal([0, 0], np.eye(2) * position.variance_m2, 200_000)
    assert np.mean(np.hypot(*drawn.T) < 30.0) == pytest.approx(0.68, abs=0.005)


@pytest.mark.parametrize(
    ("given", "rules", "is_fix"),
    [
        (answer(), FixRules(), True),
        (answer("AMBIGUOUS"), FixRules(), False),
        (answer("AMBIGUOUS"), FixRules(ambiguous_is_fix=True), True),
        (answer("NO_MATCH"), FixRules(ambiguous_is_fix=True), False),
        (answer(confidence=0.4), FixRules(min_confidence=0.5), False),
        (answer(confidence=0.6), FixRules(min_confidence=0.5), True),
    ],
)
def test_what_counts_as_a_fix(given: dict[str, Any], rules: FixRules, is_fix: bool) -> None:
    assert (position_of(given, rules) is not None) is is_fix


def test_no_fix_is_trusted_beyond_the_least_radius() -> None:
    position = position_of(answer(radius_m=0.1), FixRules(min_radius_m=7.0))
    assert position is not None
    assert math.sqrt(position.variance_m2) * RADIUS_PER_SIGMA == pytest.approx(7.0)


@pytest.mark.parametrize(
    ("gps", "prior"),
    [
        ((48.0, 11.0, None, 200.0), "48.0,11.0,200.0"),
        ((48.0, 11.0, 1.0, 200.0), "48.0,11.0,200.0"),
        ((48.0, 11.0, 10_000.0, 200.0), "48.0,11.0,300.0"),
        ((48.0, 11.0, math.nan, 200.0), "48.0,11.0,200.0"),
        ((math.nan, 11.0, None, 200.0), None),
        ((91.0, 11.0, None, 200.0), None),
    ],
)
def test_a_gps_position_as_a_prior(gps: Any, prior: str | None) -> None:
    assert prior_of(*gps) == prior


PIXELS = np.zeros((20, 30, 3), np.uint8)
PIXELS[..., 0], PIXELS[:10, :, 2] = 200, 100


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("rgb8", PIXELS),
        ("bgr8", PIXELS[..., ::-1]),
        ("rgba8", np.dstack([PIXELS, PIXELS[..., :1]])),
        ("bgra8", np.dstack([PIXELS[..., ::-1], PIXELS[..., :1]])),
    ],
)
def test_images_of_every_encoding(encoding: str, data: np.ndarray) -> None:
    """With padded rows, as drivers send them."""
    rows = np.pad(data.reshape(20, -1), ((0, 0), (0, 6)))
    photo = jpeg_of_pixels(rows.tobytes(), height=20, width=30, step=rows.shape[1], encoding=encoding)
    with Image.open(io.BytesIO(photo)) as image:
        assert np.abs(np.asarray(image).astype(int) - PIXELS).mean() < 3


def test_grey_images_and_unreadable_ones() -> None:
    photo = jpeg_of_pixels(b"\x80" * 600, height=20, width=30, step=30, encoding="mono8")
    with Image.open(io.BytesIO(photo)) as image:
        assert (image.mode, image.size) == ("L", (30, 20))
    with pytest.raises(UnsupportedEncodingError, match="bayer_rggb8 are not read"):
        jpeg_of_pixels(b"", height=20, width=30, step=30, encoding="bayer_rggb8")
    with pytest.raises(UnsupportedEncodingError, match="are no 30 × 20 image"):
        jpeg_of_pixels(b"\x80" * 100, height=20, width=30, step=90, encoding="rgb8")


def test_a_large_frame_is_shrunk_to_what_the_model_sees(describer: Describer) -> None:
    """The descriptor is that of the whole frame."""
    town = ToyTown(columns=1, rows=1)
    (_, pixels), *_ = photographs(town, plan_queries(town, 1), (1024, 768))
    frame = jpeg_of_pixels(pixels.tobytes(), height=768, width=1024, step=3072, encoding="rgb8")
    preprocessing = describer.bundle.preprocessing
    sees = preprocessing.model_dump()
    sent = shrunk(frame, sees)
    assert len(sent) < 0.5 * len(frame)
    whole, small = describer.describe(np.stack([decode_image(data, preprocessing) for data in (frame, sent)]))
    assert float(whole @ small) > 0.9999


def test_what_is_not_shrunk() -> None:
    sees = {"width": 256, "height": 256, "fit": "stretch", "filter": "bicubic", "jpeg_scaled_decode": True}
    small = jpeg_of_pixels(bytes(48 * 64 * 3), height=48, width=64, step=192, encoding="rgb8")
    grey = jpeg_of_pixels(bytes(480 * 640), height=480, width=640, step=640, encoding="mono8")
    assert shrunk(small, None) is small
    assert shrunk(small, {**sees, "fit": "crop"}) is small
    assert shrunk(grey, sees) is grey
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8).tobytes()
    fewer = jpeg_of_pixels(noise, height=60, width=80, step=240, encoding="rgb8")
    assert shrunk(fewer, sees) is fewer


def until(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_frames_are_dropped_while_one_is_processed() -> None:
    go, done = threading.Event(), []

    def work(frame: int) -> float:
        go.wait(30)
        done.append(frame)
        return 0.0

    worker = OneAtATime(work)
    assert [worker.offer(number) for number in range(5)] == [True, False, False, False, False]
    go.set()
    until(lambda: worker.offer(9))
    worker.stop()
    assert done == [0, 9]
    assert worker.offer(10) is False
    assert (worker.taken, worker.dropped >= 5) == (2, True)


def test_no_more_frames_than_the_rate_allows_and_none_during_retry_after() -> None:
    now, pause_s = [100.0], [0.0]
    worker = OneAtATime(lambda _: pause_s[0], max_rate_hz=4.0, clock=lambda: now[0])

    def idle() -> None:
        until(lambda: not worker._busy)

    assert worker.offer(1)
    idle()
    now[0] += 0.2
    assert not worker.offer(2)
    pause_s[0], now[0] = 3.0, now[0] + 0.1
    assert worker.offer(3)
    idle()
    now[0] += 2.9
    assert not worker.offer(4)
    now[0] += 0.2
    assert worker.offer(5)
    worker.stop()


def test_a_frame_that_fails_does_not_end_the_worker() -> None:
    seen = []

    def work(frame: int) -> float:
        seen.append(frame)
        return 0.0

    worker = OneAtATime(work)
    for number in range(3):
        until(lambda number=number: worker.offer(number))
    worker.stop()
    assert seen == [0, 1, 2]


def test_a_real_server(server: RunningServer, published: PublishedPlaces) -> None:
    ours = Server(server.url)
    sees = ours.info()["preprocessing"]
    assert (sees["width"], sees["height"]) == (256, 256)
    answer = ours.localize(published.places.rows[5].path.read_bytes(), prior="48.0,11.0,5000", deadline_ms=30_000)
    assert answer["matches"][0]["reference_id"] == "photos/0005.jpg"
    assert position_of(answer, FixRules(ambiguous_is_fix=True)) is not None
    with pytest.raises(NotLocalizedError) as refused:
        ours.localize(b"no photo")
    assert refused.value.code == "unsupported_media_type"


def test_what_the_server_is_asked_and_its_refusals() -> None:
    problem = {"code": "queue_full", "detail": "too many photos are waiting"}
    script = [(429, {"Retry-After": "3"}, json.dumps(problem).encode()), (502, {}, b"<html>"), (200, {}, b"no JSON")]
    with scripted(*script) as (url, asked):
        ours = Server(url, "secret")
        with pytest.raises(NotLocalizedError, match="queue_full: too many photos are waiting") as refused:
            ours.localize(b"\xff\xd8\xff", deadline_ms=800)
        assert refused.value.retry_after_s == 3.0
        with pytest.raises(NotLocalizedError, match="http_502"):
            ours.localize(b"\x89PNG")
        with pytest.raises(NotLocalizedError, match="unreachable"):
            ours.localize(b"\x89PNG")
    path, headers, body = asked[0]
    assert (path, body) == ("/localize?top_k=5", b"\xff\xd8\xff")
    wanted = {"Authorization": "Bearer secret", "Content-Type": "image/jpeg"}
    assert wanted.items() <= headers.items()
    assert {"X-Lane": "robot", "X-Deadline-Ms": "800"}.items() <= headers.items()
    assert asked[1][1]["Content-Type"] == "image/png"
    with pytest.raises(NotLocalizedError, match="unreachable"):
        Server("http://127.0.0.1:9").info()
    with pytest.raises(ValueError, match="no address"):
        Server("robot:8080")


def test_the_package_is_python_of_ros_humble() -> None:
    """3.10. The syntax only; imports are of the standard library, numpy and Pillow."""
    files = sorted((EXAMPLES / "ros2").rglob("*.py"))
    assert len(files) >= 7
    imported = set()
    for path in files:
        tree = ast.parse(path.read_text(), feature_version=(3, 10))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported |= {name.partition(".")[0] for name in names}
    assert not imported & {"sightfix", "retrieval", "service", "httpx", "grpc", "pydantic"}


def test_the_package_is_whole() -> None:
    package = EXAMPLES / "ros2" / "sightfix_ros"
    from xml.etree import ElementTree

    manifest = ElementTree.parse(package / "package.xml").getroot()
    assert (manifest.get("format"), manifest.findtext("name")) == ("3", "sightfix_ros")
    setup = (package / "setup.py").read_text()
    for path in ("resource/sightfix_ros", "package.xml", "launch/sightfix.launch.py"):
        assert (package / path).is_file()
        assert path in setup
