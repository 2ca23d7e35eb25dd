"""FrameStream against real gRPC servers: one in this process whose model a test can hold, and processes that end."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from PIL import Image

from retrieval.errors import ImageError, ParameterError, ServerError
from retrieval.geo import GeoPrior
from retrieval.tracking import Displacement, Distance, Odometry, Speed
from service.api_keys import make_key
from service.grpc.generated import localization_pb2 as pb
from service.serving.localization import LocalizationService
from service.settings import ServerSettings
from service.tracking.model import TrackParameters
from service.tracking.tracks import MotionParameters
from sightfix.client import SightfixClient
from sightfix.client.grpc_stream import FrameOutcome, FrameStream, add_odometry
from tests.conftest import PublishedPlaces
from tests.running_server import forked_server
from tests.service.grpc.conftest import Served, grpc_address, served
from tests.service.grpc.test_stream import held

LIMIT_S = 60.0


@pytest.fixture(scope="module")
def inside(published: PublishedPlaces) -> Iterator[Served]:
    settings = ServerSettings(indexes=published.indexes, threads=1, metrics="off", max_image_bytes=1 << 20)
    with served(LocalizationService(settings)) as running:
        yield running


@pytest.fixture
def photos(published: PublishedPlaces) -> list[bytes]:
    return [row.path.read_bytes() for row in published.places.rows]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def best(outcome: FrameOutcome) -> str | None:
    return outcome.answer.matches[0].reference_id if outcome.answer else None


def test_every_frame_is_answered_in_order(inside: Served, published: PublishedPlaces, photos: list[bytes]) -> None:
    with FrameStream(inside.address) as stream:

        def film() -> None:
            for photo in photos:
                stream.send(photo, top_k=2)
            stream.finish()

        camera = threading.Thread(target=film)
        camera.start()
        outcomes = list(stream)
        camera.join(LIMIT_S)
    assert [outcome.frame_id for outcome in outcomes] == list(range(1, 13))
    assert [best(outcome) for outcome in outcomes] == [f"photos/{number:04d}.jpg" for number in range(12)]
    assert {len(outcome.answer.matches) for outcome in outcomes if outcome.answer} == {2}
    first = outcomes[0].answer
    assert first is not None
    assert first.fix is not None
    assert first.fix.covariance_enu[0][1] == first.fix.covariance_enu[1][0]
    assert first.index.name == "places"
    assert first.timings_ms.total > 0.0
    assert first.matches[0].heading == 90.0


def test_arrays_ids_and_options(inside: Served, published: PublishedPlaces) -> None:
    with Image.open(published.places.rows[3].path) as image:
        frame = np.asarray(image)
    with FrameStream(inside.address, lane="bulk") as stream:
        assert stream.send(frame, frame_id=700, geo_prior=GeoPrior(48.0, 11.0, 150.0), deadline_ms=30_000) == 700
        stream.send(frame, min_score=0.99)
        stream.finish()
        near, strict = stream
    assert near.frame_id == 700
    assert near.answer is not None
    assert {match.reference_id for match in near.answer.matches} == {"photos/0000.jpg", "photos/0001.jpg"}
    assert strict.answer is not None
    assert [match.reference_id for match in strict.answer.matches] == ["photos/0003.jpg"]


def test_a_frame_that_fails_does_not_end_the_stream(inside: Served, photos: list[bytes]) -> None:
    with FrameStream(inside.address) as stream:
        stream.send(photos[0][:200])
        stream.send(photos[1])
        with pytest.raises(ImageError):
            stream.send(b"no photo")  # is not even sent
        stream.finish()
        broken, whole = stream
    assert broken.problem is not None
    assert (broken.frame_id, broken.problem.code) == (1, "image_undecodable")
    assert best(whole) == "photos/0001.jpg"


def test_the_newest_frame_wins(inside: Served, photos: list[bytes]) -> None:
    waiting = inside.localization._batcher.queue
    with FrameStream(inside.address, drop_stale=True) as stream:
        with held(inside.localization) as go:
            stream.send(photos[0])
            until(lambda: waiting.admitted == 1)
            for photo in photos[1:6]:
                stream.send(photo)  # never waits: the server always reads
            outcomes = iter(stream)
            stream.finish()
            go()
        got = list(outcomes)
    assert [outcome.frame_id for outcome in got] == [1, 2, 3, 4, 5, 6]
    assert {outcome.problem.code for outcome in got if outcome.problem} == {"superseded"}
    assert (best(got[0]), best(got[-1])) == ("photos/0000.jpg", "photos/0005.jpg")


def test_a_camera_that_is_too_fast_waits(inside: Served, photos: list[bytes]) -> None:
    """Without drop_stale nothing is lost; the transport's buffers are soon full, and `send` waits."""
    frame, sent = photos[2] + b"\0" * 900_000, 0
    with FrameStream(inside.address) as stream:

        def film() -> None:
            nonlocal sent
            for _ in range(24):
                stream.send(frame)
                sent += 1
            stream.finish()

        with held(inside.localization) as go:
            camera = threading.Thread(target=film)
            camera.start()
            until(lambda: inside.localization._batcher.queue.admitted == 4)
            time.sleep(0.5)
            assert sent < 24
            go()
        assert [outcome.frame_id for outcome in stream] == list(range(1, 25))
        camera.join(LIMIT_S)
    assert sent == 24


def test_closing_while_frames_are_sent(inside: Served, photos: list[bytes]) -> None:
    refusals: list[ServerError] = []
    stream = FrameStream(inside.address)

    def film() -> None:
        try:
            while True:
                stream.send(photos[0] + b"\0" * 500_000)
        except ServerError as error:
            refusals.append(error)

    camera = threading.Thread(target=film)
    with held(inside.localization):
        camera.start()
        until(lambda: inside.localization._batcher.queue.admitted == 4)
        stream.close()
        assert list(stream) == []  # closing is no failure
        camera.join(LIMIT_S)
    assert not camera.is_alive()
    assert "the stream has ended" in str(refusals[0])
    until(lambda: inside.localization._batcher.queue.admitted == 0)


def test_a_finished_stream_takes_no_frame(inside: Served, photos: list[bytes]) -> None:
    with FrameStream(inside.address) as stream:
        stream.finish()
        stream.finish()
        assert list(stream) == []
        with pytest.raises(ServerError, match="the stream is finished"):
            stream.send(photos[0])


def test_no_server_listens(photos: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    messages, over = FrameStream._messages, threading.Event()

    def watched(stream: FrameStream, settings: Any) -> Iterator[Any]:
        try:
            yield from messages(stream, settings)
        finally:
            over.set()

    monkeypatch.setattr(FrameStream, "_messages", watched)
    with FrameStream("127.0.0.1:9") as stream:
        with pytest.raises(ServerError) as error:
            list(stream)
        assert error.value.code == "grpc_unavailable"
        assert "sightfix serve --grpc-port" in str(error.value)
        until(stream._ended.is_set)
        with pytest.raises(ServerError, match="the stream has ended"):
            stream.send(photos[0])
        assert over.wait(LIMIT_S)  # gRPC's sending thread ends although the stream was not closed


def test_a_server_that_stops(published: PublishedPlaces, photos: list[bytes]) -> None:
    localization = LocalizationService(ServerSettings(indexes=published.indexes, threads=1, metrics="off"))
    with contextlib.ExitStack() as server, FrameStream(server.enter_context(served(localization)).address) as stream:
        stream.send(photos[4])
        outcomes = iter(stream)
        assert best(next(outcomes)) == "photos/0004.jpg"
        stopping = threading.Thread(target=server.pop_all().close)
        stopping.start()
        with pytest.raises(ServerError) as error:
            next(outcomes)
        stopping.join(LIMIT_S)
    assert error.value.code == "grpc_unavailable"


def test_a_server_that_is_gone(published: PublishedPlaces, photos: list[bytes], tmp_path: Path) -> None:
    arguments = ["--indexes", str(published.indexes), "--grpc-port", "0"]
    with forked_server(tmp_path / "log", arguments) as running:
        running.wait_until_ready()
        with FrameStream(grpc_address(running)) as stream:
            stream.send(photos[4])
            outcomes = iter(stream)
            assert best(next(outcomes)) == "photos/0004.jpg"
            running.process.kill()
            with pytest.raises(ServerError) as error:
                next(outcomes)
    assert error.value.code == "grpc_unavailable"


@pytest.mark.parametrize(
    ("odometry", "kind"),
    [
        (Speed(1.5), "speed"),
        (Speed(-1.5, std_mps=0.1, heading_deg=90.0, heading_std_deg=5.0), "speed"),
        (Distance(3.0), "distance"),
        (Distance(3.0, heading_deg=0.0), "distance"),
        (Displacement(3.0, -4.0, std_m=0.2), "displacement"),
    ],
)
def test_the_server_understands_the_odometry_as_it_is_meant(odometry: Odometry, kind: str) -> None:
    """What a client sends is read back by the server's own rules."""
    frame = pb.Frame()
    add_odometry(frame, odometry)
    assert frame.WhichOneof("odometry") == kind
    values = {field.name: value for field, value in getattr(frame, kind).ListFields()}
    assert MotionParameters(captured_at_s=1.0, **values).motion().odometry == odometry


def test_a_track_over_the_frames(inside: Served, photos: list[bytes]) -> None:
    parameters = TrackParameters(speed_mps=20.0, max_speed_mps=60.0)
    with FrameStream(inside.address, track=parameters) as stream:
        for number in range(4):
            stream.send(photos[number], captured_at_s=100.0 + 5.0 * number, odometry=Displacement(100.0, 0.0))
        stream.send(photos[4][:100], captured_at_s=120.0)
        stream.send(photos[5], captured_at_s=50.0)
        stream.finish()
        outcomes = list(stream)
    tracks = [outcome.track for outcome in outcomes]
    assert [track.frames for track in tracks[:5] if track] == [1, 2, 3, 4, 5]
    last = tracks[3]
    assert last is not None
    assert last.fix is not None
    assert last.matched
    assert last.fix.lon == pytest.approx(11.0 + 300.0 / 74_400.0, abs=0.0005)
    assert last.fix.covariance_enu[0][0] > 0.0
    assert (outcomes[4].problem is not None, tracks[4] is not None and tracks[4].matched) == (True, False)
    late = outcomes[5].problem
    assert late is not None
    assert (late.code, tracks[5]) == ("frame_out_of_order", None)


def test_a_track_with_this_machines_clock(inside: Served, photos: list[bytes]) -> None:
    with FrameStream(inside.address, track=TrackParameters()) as stream:
        for photo in photos[:2]:
            stream.send(photo)
        stream.finish()
        assert [outcome.track.frames for outcome in stream if outcome.track] == [1, 2]
    with FrameStream(inside.address) as stream:
        stream.send(photos[0])
        stream.finish()
        assert [outcome.track for outcome in stream] == [None]


@pytest.fixture(scope="module")
def guarded(published: PublishedPlaces, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, str]]:
    """A server that wants a key and a certificate: (folder of PEM files, gRPC address, key)."""
    folder = tmp_path_factory.mktemp("guarded")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name in ("server", "client"):
        issued = authority.issue_cert("127.0.0.1")
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    key = make_key(folder / "keys.toml", "robot-7", ("localize",))
    arguments = ["--indexes", str(published.indexes), "--grpc-port", "0", "--api-keys", str(folder / "keys.toml")]
    arguments += ["--tls-cert", str(folder / "server.pem"), "--tls-key", str(folder / "server.key")]
    arguments += ["--tls-client-ca", str(folder / "ca.pem")]
    with forked_server(folder / "log", arguments) as running:
        pair = (folder / "client.pem", folder / "client.key")
        with SightfixClient(running.url, verify=folder / "ca.pem", cert=pair) as client:
            client.wait_until_ready(LIMIT_S)
        yield folder, grpc_address(running), key


def test_key_and_certificates(guarded: tuple[Path, str, str], photos: list[bytes]) -> None:
    folder, address, key = guarded
    pair = (folder / "client.pem", folder / "client.key")
    with FrameStream(address, api_key=key, ca=folder / "ca.pem", cert=pair) as stream:
        stream.send(photos[6])
        stream.finish()
        (outcome,) = stream
    assert best(outcome) == "photos/0006.jpg"
    with FrameStream(address, ca=folder / "ca.pem", cert=pair) as stream:
        with pytest.raises(ServerError) as refused:
            list(stream)
        assert refused.value.code == "grpc_unauthenticated"
    for wrong in ({"ca": folder / "ca.pem"}, {"ca": "system", "cert": pair}, {}):
        with FrameStream(address, api_key=key, **wrong) as stream:  # type: ignore[arg-type]
            with pytest.raises(ServerError) as unavailable:
                list(stream)
            assert unavailable.value.code == "grpc_unavailable"


def test_what_cannot_be_a_stream(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="Choose among robot, bulk"):
        FrameStream(lane="express")  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="a certificate without TLS"):
        FrameStream(cert=(tmp_path / "a", tmp_path / "b"))
    with pytest.raises(ParameterError, match="certificates cannot be read"):
        FrameStream(ca=tmp_path / "none.pem")
