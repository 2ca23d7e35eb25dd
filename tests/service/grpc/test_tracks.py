"""Tracks over streams: better than frame by frame, bounded, alive through swaps, and off unless asked for."""

import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo

from index_builder.update import build_index
from retrieval.describer import Describer
from retrieval.geo import haversine_m
from retrieval.index.folder import activate_version, current_version
from service.grpc.generated import localization_pb2 as pb
from service.grpc.generated.localization_pb2_grpc import LocalizationServiceStub
from service.serving.localization import LocalizationService
from service.settings import ServerSettings
from tests.conftest import PublishedPlaces
from tests.places import make_places
from tests.service.grpc.conftest import Served, served
from tests.service.grpc.streaming import Sending, code_of, frame, ids, settings
from tests.service.grpc.test_localization import photo
from tests.service.grpc.test_stream import held, until
from tests.toy_drive import ToyDrive, make_toy_drive

CODE = grpc.StatusCode
# The made-up places lie 100 m apart: a camera that goes from one to the next in a second.
FAST = {"speed_mps": 40.0, "max_speed_mps": 100.0}


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory, describer: Describer) -> ToyDrive:
    return make_toy_drive(tmp_path_factory.mktemp("drive"), describer, seed=302, number=0, frames=14)


def tracked(**values: object) -> pb.LocalizeStreamRequest:
    return settings(track=pb.TrackSettings(**values))  # type: ignore[arg-type]


def reason_of(status: object) -> str:
    for detail in status.details:  # type: ignore[attr-defined]
        info = ErrorInfo()
        if detail.Unpack(info):
            return info.reason
    raise AssertionError("no ErrorInfo")


def test_a_drive_through_the_toy_town_is_followed(drive: ToyDrive) -> None:
    """Within 25 m by the track after most frames, by the frames alone after few; odometry makes it better still."""
    localization = LocalizationService(ServerSettings(indexes=drive.indexes, threads=1, metrics="off"))
    with served(localization) as running, grpc.insecure_channel(running.address) as channel:
        stub = LocalizationServiceStub(channel)
        errors: dict[str, list[float]] = {}
        for name in ("track", "odometry"):
            frames = []
            for number, (image, moved) in enumerate(zip(drive.frames, drive.odometry, strict=True)):
                more: dict[str, object] = {"captured_at_s": 1_790_000_000.0 + number}
                if name == "odometry" and moved is not None:
                    more["displacement"] = pb.Displacement(
                        east_m=moved.east_m, north_m=moved.north_m, displacement_std_m=moved.std_m
                    )
                frames.append(frame(number, image, **more))
            responses = list(stub.LocalizeStream(iter([tracked(), *frames])))
            assert ids(responses) == list(range(len(frames)))
            assert [code_of(response) for response in responses] == [None] * len(frames)
            assert [response.track.frames for response in responses] == list(range(1, len(frames) + 1))
            assert all(response.track.matched for response in responses)
            fixes = [response.track.fix for response in responses]
            errors[name] = [drive.error_m(number, fix.lat, fix.lon) for number, fix in enumerate(fixes)]
            alone = [response.answer.fix for response in responses]
            errors["alone"] = [drive.error_m(number, fix.lat, fix.lon) for number, fix in enumerate(alone)]
            last = responses[-1].track
            assert last.fix.radius_m > 0
            covariance = last.fix.covariance_enu
            assert covariance.east_m2 * covariance.north_m2 > covariance.east_north_m2**2
            assert last.status == pb.FIX_STATUS_LOCATED
            assert not last.lost
    near = {name: float(np.mean(np.array(some) <= 25.0)) for name, some in errors.items()}
    medians = {name: float(np.median(some)) for name, some in errors.items()}
    assert near["track"] >= near["alone"] + 0.25, near
    assert near["odometry"] >= near["alone"] + 0.25, near
    assert max(medians["track"], medians["odometry"]) < 0.5 * medians["alone"], medians
    assert max(errors["track"][-1], errors["odometry"][-1]) < 25.0


def test_without_asking_there_is_no_track(inside: Served, published: PublishedPlaces) -> None:
    """What frames say of their motion means nothing then, however wrong it is."""
    with grpc.insecure_channel(inside.address) as channel:
        frames = [
            frame(1, photo(published, 1), captured_at_s=5.0, speed=pb.Speed(speed_mps=3.0)),
            frame(2, photo(published, 2), captured_at_s=float("nan"), distance=pb.Distance(distance_m=float("inf"))),
        ]
        responses = list(LocalizationServiceStub(channel).LocalizeStream(iter([settings(), *frames])))
    assert [code_of(response) for response in responses] == [None, None]
    assert not any(response.HasField("track") for response in responses)
    assert inside.localization.tracks.count == 0
    metrics = inside.localization.observer.metrics
    assert metrics is not None
    assert metrics.registry.get_sample_value("sightfix_track_step_duration_seconds_count") == 0
    assert not inside.localization.tracks._thread._threads


def test_frames_that_fail_let_time_pass(inside: Served, published: PublishedPlaces) -> None:
    frames = [
        *(frame(n, photo(published, 2), captured_at_s=float(n)) for n in range(3)),
        frame(3, b"no photo", captured_at_s=3.0),
        frame(4, photo(published, 2), captured_at_s=4.0, options=pb.LocalizeOptions(top_k=0)),
        frame(5, photo(published, 2), captured_at_s=5.0, options=pb.LocalizeOptions(top_k=1)),
    ]
    with grpc.insecure_channel(inside.address) as channel:
        responses = list(LocalizationServiceStub(channel).LocalizeStream(iter([tracked(), *frames])))
    assert [code_of(response) for response in responses] == [None] * 3 + [CODE.INVALID_ARGUMENT] * 2 + [None]
    assert [response.track.matched for response in responses] == [True] * 3 + [False] * 2 + [True]
    assert [response.track.frames for response in responses] == [1, 2, 3, 4, 5, 6]
    confidence = [response.track.fix.confidence for response in responses]
    assert confidence[2] > confidence[3] > confidence[4], "nothing was seen, so less is known"
    assert confidence[5] > confidence[4]


def test_superseded_frames_let_time_pass(inside: Served, published: PublishedPlaces) -> None:
    waiting = inside.localization._batcher.queue
    sending = Sending(settings(drop_stale=True, track=pb.TrackSettings(**FAST)))
    with grpc.insecure_channel(inside.address) as channel, held(inside.localization) as go:
        responses = LocalizationServiceStub(channel).LocalizeStream(iter(sending))
        sending.frame(0, photo(published, 0), captured_at_s=0.0)
        until(lambda: waiting.admitted == 1, "the first frame never came in")
        for number in range(1, 5):
            sending.frame(number, photo(published, number), captured_at_s=float(number))
        until(lambda: sending.sent == 6, "the frames were not sent")
        sending.end()
        # All are read before the model goes on.
        until(lambda: inside.localization.tracks.count == 1, "there is no track")
        threading.Event().wait(0.5)
        go()
        got = list(responses)
    assert ids(got) == [0, 1, 2, 3, 4]
    assert [code_of(response) for response in got] == [None, *[CODE.ABORTED] * 3, None]
    assert [response.track.frames for response in got] == [1, 2, 3, 4, 5]
    assert [response.track.matched for response in got] == [True, False, False, False, True]
    assert got[3].track.fix.confidence < got[0].track.fix.confidence


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        ({}, CODE.INVALID_ARGUMENT, "frame.captured_at_s"),
        ({"captured_at_s": NAN}, CODE.INVALID_ARGUMENT, "frame.captured_at_s"),
        ({"captured_at_s": -1.0}, CODE.INVALID_ARGUMENT, "frame.captured_at_s"),
        ({"captured_at_s": 1_790_000_000_000.0}, CODE.INVALID_ARGUMENT, "frame.captured_at_s"),
        ({"captured_at_s": 9.5}, CODE.FAILED_PRECONDITION, "frame.captured_at_s: 9.500 is before 10.000"),
        ({"captured_at_s": 11.0, "speed": pb.Speed(speed_mps=NAN)}, CODE.INVALID_ARGUMENT, "frame.speed.speed_mps"),
        ({"captured_at_s": 11.0, "speed": pb.Speed(speed_mps=1e300)}, CODE.INVALID_ARGUMENT, "frame.speed.speed_mps"),
        (
            {"captured_at_s": 11.0, "distance": pb.Distance(distance_m=1.0, distance_std_m=-0.5)},
            CODE.INVALID_ARGUMENT,
            "frame.distance.distance_std_m",
        ),
        (
            {"captured_at_s": 11.0, "displacement": pb.Displacement(east_m=INF)},
            CODE.INVALID_ARGUMENT,
            "frame.displacement.east_m",
        ),
        (
            {"captured_at_s": 11.0, "displacement": pb.Displacement(displacement_std_m=1e200)},
            CODE.INVALID_ARGUMENT,
            "frame.displacement.displacement_std_m",
        ),
        (
            {"captured_at_s": 11.0, "speed": pb.Speed(speed_mps=1.0, heading_std_deg=3.0)},
            CODE.INVALID_ARGUMENT,
            "frame.speed: heading_std_deg says nothing without heading_deg",
        ),
    ],
)
def test_wrong_times_and_odometry_change_nothing(
    stub: LocalizationServiceStub, published: PublishedPlaces, more: dict, code: grpc.StatusCode, words: str
) -> None:
    image = photo(published, 1)
    first = frame(0, image, captured_at_s=10.0)
    wrong = frame(1, image, **more)
    last = frame(2, image, captured_at_s=10.0)
    responses = list(stub.LocalizeStream(iter([tracked(), first, wrong, last])))
    assert ids(responses) == [0, 1, 2]
    assert [code_of(response) for response in responses] == [None, code, None]
    assert responses[1].error.message.startswith(words), responses[1].error.message
    assert not responses[1].HasField("track")
    assert reason_of(responses[1].error) == (
        "FRAME_OUT_OF_ORDER" if code is CODE.FAILED_PRECONDITION else "VALIDATION_ERROR"
    )
    assert [responses[0].track.frames, responses[2].track.frames] == [1, 2]
    # The same instant again is no news.
    assert responses[2].track.fix == responses[0].track.fix


def test_the_same_instant_again_moves_nothing(stub: LocalizationServiceStub, published: PublishedPlaces) -> None:
    """A frame that a client sends twice must not be moved twice."""
    image, moved = photo(published, 1), pb.Displacement(east_m=100.0, displacement_std_m=2.0)
    second = frame(1, photo(published, 2), captured_at_s=11.0, displacement=moved)
    responses = list(stub.LocalizeStream(iter([tracked(), frame(0, image, captured_at_s=10.0), second, second])))
    assert responses[2].track.fix == responses[1].track.fix
    assert haversine_m(
        responses[0].track.fix.lat, responses[0].track.fix.lon, responses[1].track.fix.lat, responses[1].track.fix.lon
    ) == pytest.approx(100.0, abs=15.0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_speed_mps": NAN}, "settings.track.max_speed_mps: "),
        ({"max_speed_mps": 0.0}, "settings.track.max_speed_mps: "),
        ({"speed_mps": 101.0}, "settings.track.speed_mps: "),
        ({"match_std_m": 1000.0}, "settings.track.match_std_m: "),
        ({"miss_share": 1.0}, "settings.track.miss_share: "),
        ({"speed_mps": 9.0, "max_speed_mps": 8.0}, "max_speed_mps 8.0 of a track is below its speed_mps 9.0"),
    ],
)
def test_settings_that_make_no_sense_open_no_track(inside: Served, values: dict[str, float], words: str) -> None:
    with grpc.insecure_channel(inside.address) as channel, pytest.raises(grpc.RpcError) as refused:
        list(LocalizationServiceStub(channel).LocalizeStream(iter([tracked(**values)])))
    assert refused.value.code() == CODE.INVALID_ARGUMENT
    assert refused.value.details().startswith(words)
    assert inside.localization.tracks.count == 0


def test_only_so_many_tracks_are_open_and_a_stream_that_goes_frees_its_own(
    published: PublishedPlaces, tmp_path: Path
) -> None:
    localization = LocalizationService(
        ServerSettings(indexes=published.indexes, threads=1, max_tracks=2, metrics="main")
    )
    gauge = localization.observer.metrics.registry  # type: ignore[union-attr]
    with served(localization) as running, grpc.insecure_channel(running.address) as channel:
        stub = LocalizationServiceStub(channel)
        assert stub.GetServerInfo(pb.GetServerInfoRequest()).limits.max_tracks == 2
        sending = [Sending(tracked(), frame(0, photo(published, 0), captured_at_s=0.0)) for _ in range(2)]
        calls = [stub.LocalizeStream(iter(some)) for some in sending]
        for call in calls:
            assert next(call).track.frames == 1
        assert gauge.get_sample_value("sightfix_tracks_open") == 2
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.LocalizeStream(iter([tracked()])))
        assert refused.value.code() == CODE.RESOURCE_EXHAUSTED
        assert refused.value.details().startswith("2 tracks are open, and there may be 2")
        status = dict(refused.value.trailing_metadata())["grpc-status-details-bin"]
        assert b"TOO_MANY_TRACKS" in status
        assert RetryInfo.DESCRIPTOR.full_name.encode() in status
        # Who wants no track is not held up.
        assert code_of(next(stub.LocalizeStream(iter([frame(1, photo(published, 1))])))) is None
        calls[0].cancel()
        until(lambda: localization.tracks.count == 1, "a cancelled stream keeps its track")
        sending[1].end()
        assert list(calls[1]) == []
        until(lambda: localization.tracks.count == 0, "a stream that ended keeps its track")
        again = stub.LocalizeStream(iter([tracked(), frame(0, photo(published, 0), captured_at_s=0.0)]))
        assert next(again).track.frames == 1
        sending[0].end()
        assert gauge.get_sample_value("sightfix_track_step_duration_seconds_count") == 3


def test_a_server_without_tracks_says_so(published: PublishedPlaces) -> None:
    localization = LocalizationService(
        ServerSettings(indexes=published.indexes, threads=1, max_tracks=0, metrics="off")
    )
    with served(localization) as running, grpc.insecure_channel(running.address) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            list(LocalizationServiceStub(channel).LocalizeStream(iter([tracked()])))
        assert refused.value.code() == CODE.PERMISSION_DENIED


def test_a_track_lives_on_when_the_index_is_swapped(tmp_path: Path, describer: Describer) -> None:
    """The belief goes along to the places of the new version; what it knew is not asked for again."""
    folder = tmp_path / "indexes" / "places"
    build_index(make_places(tmp_path, 6), describer, tmp_path / "indexes", "places")
    first = current_version(folder)
    build_index(make_places(tmp_path, 8), describer, tmp_path / "indexes", "places")
    second = current_version(folder)
    activate_version(folder, first)
    image = (tmp_path / "photos" / "0002.jpg").read_bytes()
    localization = LocalizationService(
        ServerSettings(indexes=tmp_path / "indexes", watch_interval_s=3600, threads=1, metrics="off")
    )
    with served(localization) as running, grpc.insecure_channel(running.address) as channel:
        sending = Sending(tracked())
        responses = LocalizationServiceStub(channel).LocalizeStream(iter(sending))

        def send(number: int, data: bytes) -> pb.TrackAnswer:
            sending.frame(number, data, captured_at_s=float(number))
            return next(responses).track

        before = [send(number, image) for number in range(3)][-1]
        assert (before.index_version, before.HasField("carried_from")) == (first, False)
        activate_version(folder, second)
        localization.live.look_for_new_version()
        assert localization.live.require().place_index.version == second
        # Not even a frame with matches is needed.
        after = send(3, b"no photo")
        assert (after.index_version, after.carried_from, after.matched) == (second, first, False)
        assert haversine_m(after.fix.lat, after.fix.lon, before.fix.lat, before.fix.lon) < 1.0
        assert after.fix.confidence > 0.9 * before.fix.confidence
        later = send(4, image)
        assert (later.index_version, later.HasField("carried_from"), later.frames) == (second, False, 5)
        assert later.fix.confidence > after.fix.confidence
        # The map of the version before is gone.
        assert [index.version for index in localization.tracks.maps._maps] == [second]
        sending.end()


def test_frames_in_flight_over_a_swap_keep_their_order(tmp_path: Path, describer: Describer) -> None:
    folder = tmp_path / "indexes" / "places"
    build_index(make_places(tmp_path, 6), describer, tmp_path / "indexes", "places")
    names = [current_version(folder)]
    build_index(make_places(tmp_path, 7), describer, tmp_path / "indexes", "places")
    names.append(current_version(folder))
    image = (tmp_path / "photos" / "0002.jpg").read_bytes()
    localization = LocalizationService(
        ServerSettings(indexes=tmp_path / "indexes", watch_interval_s=3600, threads=1, metrics="off")
    )
    with served(localization) as running, grpc.insecure_channel(running.address) as channel:
        swapped = threading.Event()
        got: list[pb.LocalizeStreamResponse] = []

        def swap() -> None:
            for turn in range(4):
                activate_version(folder, names[turn % 2])
                localization.live.look_for_new_version()
                # More than can be in flight: some of them see this version.
                enough = len(got) + 8
                until(lambda enough=enough: len(got) >= enough, "the stream stands still", 30)
            swapped.set()

        def frames() -> Iterator[pb.LocalizeStreamRequest]:
            yield tracked()
            number = 0
            while not swapped.is_set() or number < 20:
                yield frame(number, image, captured_at_s=0.1 * number)
                number += 1
                swapped.wait(0.02)

        thread = threading.Thread(target=swap)
        call = LocalizationServiceStub(channel).LocalizeStream(frames())
        thread.start()
        for response in call:
            got.append(response)
        thread.join()
    assert [response.track.frames for response in got] == list(range(1, len(got) + 1))
    assert {response.track.index_version for response in got} == set(names)
    for response in got:
        assert response.track.index_version in names
        assert response.track.fix.confidence > 0.5
