"""LocalizeStream: order, bad frames, backpressure, the latest frame wins, cancellation, deadlines, swaps under load."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from index_builder.update import build_index
from retrieval.describer import Describer
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

CODE = grpc.StatusCode


@contextmanager
def held(localization: LocalizationService) -> Iterator[Callable[[], None]]:
    """The model stands still until the returned call, or the end of the block."""
    go = threading.Event()
    arrived = threading.Event()

    def wait() -> None:
        arrived.set()
        go.wait(30)

    localization._batcher.on_owner_thread(wait)
    assert arrived.wait(10)
    try:
        yield go.set
    finally:
        go.set()


def until(condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def test_answers_in_order_and_bad_frames_between(stub: LocalizationServiceStub, published: PublishedPlaces) -> None:
    messages = [
        settings(request_id="drive-1"),
        *(frame(n, photo(published, n % 12)) for n in range(6)),
        frame(6, b"nothing"),
        frame(7, photo(published, 7), options=pb.LocalizeOptions(top_k=0)),
        frame(8, b""),
        frame(9, b"\xff" * ((1 << 20) + 1)),
        pb.LocalizeStreamRequest(),
        frame(10, photo(published, 10), options=pb.LocalizeOptions(top_k=1)),
        frame(11, photo(published, 11), deadline_ms=0),
        frame(10, photo(published, 11)),
    ]
    responses = list(stub.LocalizeStream(iter(messages)))
    assert ids(responses) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 10, 11, 10]
    assert [code_of(response) for response in responses] == [
        *[None] * 6,
        CODE.INVALID_ARGUMENT,
        CODE.INVALID_ARGUMENT,
        CODE.INVALID_ARGUMENT,
        CODE.RESOURCE_EXHAUSTED,
        CODE.INVALID_ARGUMENT,
        None,
        CODE.INVALID_ARGUMENT,
        None,
    ]
    for response in responses[:6]:
        assert response.answer.matches[0].reference_id == f"photos/{response.frame_id:04d}.jpg"
        assert response.answer.request_id == f"drive-1-{response.frame_id}"
    assert len(responses[11].answer.matches) == 1
    assert responses[7].error.message.startswith("frame.options.top_k: ")
    assert responses[12].error.message.startswith("frame.deadline_ms: ")


def test_a_stream_needs_no_settings_and_may_be_empty(stub: LocalizationServiceStub, published: PublishedPlaces) -> None:
    assert list(stub.LocalizeStream(iter(()))) == []
    assert list(stub.LocalizeStream(iter([settings()]))) == []
    call = stub.LocalizeStream(iter([frame(5, photo(published, 5))]), metadata=(("x-request-id", "m"),))
    (response,) = call
    assert response.answer.request_id == "m-5"
    assert dict(call.trailing_metadata())["x-request-id"] == "m"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([settings(max_in_flight=5)], "settings.max_in_flight: 5 is outside [1, 4]"),
        ([settings(max_in_flight=0)], "settings.max_in_flight: 0 is outside [1, 4]"),
        ([settings(lane=9)], "settings.lane: there is no lane 9"),
        ([settings(), settings()], "settings: they came after a frame"),
    ],
)
def test_settings_that_make_no_sense_end_the_stream(
    stub: LocalizationServiceStub, messages: list[pb.LocalizeStreamRequest], message: str
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        list(stub.LocalizeStream(iter(messages)))
    assert refused.value.code() == CODE.INVALID_ARGUMENT
    assert refused.value.details().startswith(message)


def test_frames_before_wrong_settings_are_answered(stub: LocalizationServiceStub, published: PublishedPlaces) -> None:
    responses = stub.LocalizeStream(iter([frame(1, photo(published, 1)), settings()]))
    assert next(responses).answer.matches[0].reference_id == "photos/0001.jpg"
    with pytest.raises(grpc.RpcError):
        next(responses)


def test_no_more_frames_are_in_flight_than_allowed(inside: Served, published: PublishedPlaces) -> None:
    """The model stands still: of many frames four are inside, or two; all are answered when it goes on."""
    waiting = inside.localization._batcher.queue
    with grpc.insecure_channel(inside.address) as channel:
        stub = LocalizationServiceStub(channel)
        for rules, allowed in ((settings(), 4), (settings(max_in_flight=2), 2)):
            with held(inside.localization) as go:
                frames = [frame(n, photo(published, n % 12)) for n in range(30)]
                responses = stub.LocalizeStream(iter([rules, *frames]))
                until(lambda allowed=allowed: waiting.admitted == allowed, "the frames never came in")
                time.sleep(0.3)
                assert waiting.admitted == allowed
                go()
                got = list(responses)
            assert ids(got) == list(range(30))
            assert [code_of(response) for response in got] == [None] * 30


def test_a_client_that_does_not_read_is_made_to_wait(inside: Served, published: PublishedPlaces) -> None:
    """Answers nobody takes pile up in the transport's small window only, not in the server."""
    large = photo(published, 3) + b"\0" * 50_000  # Pillow reads what is before
    sending = Sending()
    with grpc.insecure_channel(
        inside.address, options=[("grpc.http2.lookahead_bytes", 65_536), ("grpc.http2.bdp_probe", 0)]
    ) as channel:
        stub = LocalizationServiceStub(channel)
        for number in range(400):
            sending.frame(number, large, options=pb.LocalizeOptions(top_k=12))
        responses = stub.LocalizeStream(iter(sending))
        until(lambda: sending.sent > 20, "nothing was sent", 30)
        last = -1
        while sending.sent != last:
            last = sending.sent
            time.sleep(1.0)
        assert last < 400
        sending.end()
        assert ids(responses) == list(range(400))


def test_the_latest_frame_wins(inside: Served, published: PublishedPlaces) -> None:
    sending = Sending(settings(drop_stale=True, request_id="s"))
    waiting = inside.localization._batcher.queue
    with grpc.insecure_channel(inside.address) as channel, held(inside.localization) as go:
        responses = LocalizationServiceStub(channel).LocalizeStream(iter(sending))
        sending.frame(0, photo(published, 0))
        until(lambda: waiting.admitted == 1, "the first frame never came in")
        for number in range(1, 9):
            sending.frame(number, photo(published, number))
        time.sleep(0.5)
        assert waiting.admitted == 1
        go()
        first = [next(responses) for _ in range(9)]
        # Nothing is lost when there is no hurry.
        for number in (9, 10):
            sending.frame(number, photo(published, number))
            first.append(next(responses))
        sending.end()
        assert list(responses) == []
    assert ids(first) == list(range(11))
    assert [code_of(response) for response in first] == [None, *[CODE.ABORTED] * 7, None, None, None]
    assert first[8].answer.matches[0].reference_id == "photos/0008.jpg"
    assert first[3].error.message == "a newer frame came before this one's turn."


def test_superseded_frames_do_not_pile_up(inside: Served, published: PublishedPlaces) -> None:
    sending = Sending(settings(drop_stale=True))
    with grpc.insecure_channel(inside.address) as channel, held(inside.localization) as go:
        responses = LocalizationServiceStub(channel).LocalizeStream(iter(sending))
        padded = photo(published, 0) + b"\0" * 100_000
        for number in range(500):
            sending.frame(number, padded)
        until(lambda: sending.sent >= 64, "the server does not read", 20)
        time.sleep(1.0)
        # 64 that are not written, and what the transport holds: 64 KiB of small errors.
        assert sending.sent < 350
        go()
        sending.end()
        got = list(responses)
    assert ids(got) == list(range(500))
    assert code_of(got[-1]) is None


def test_a_client_that_leaves_takes_its_work_along(inside: Served, published: PublishedPlaces) -> None:
    waiting = inside.localization._batcher.queue
    metrics = inside.localization.observer.metrics
    assert metrics is not None

    def dropped() -> float:
        return metrics.registry.get_sample_value("sightfix_dropped_total", {"reason": "client_left"}) or 0.0

    with grpc.insecure_channel(inside.address) as channel, held(inside.localization):
        stub = LocalizationServiceStub(channel)
        before = dropped()
        one = stub.Localize.future(pb.LocalizeRequest(image=photo(published, 1)))
        sending = Sending(*(frame(n, photo(published, n)) for n in range(3)))
        many = stub.LocalizeStream(iter(sending))
        until(lambda: waiting.queued == 4, "the photos never came in")
        one.cancel()
        many.cancel()
        until(lambda: dropped() == before + 4, "the work was not dropped")
        sending.end()
        assert all(waiter.abandoned for lane in waiting._lanes.values() for waiter in lane)
    until(lambda: waiting.admitted == 0, "what was dropped still counts")


def test_a_stream_is_over_with_its_deadline_and_a_frame_with_its_own(
    inside: Served, published: PublishedPlaces
) -> None:
    waiting = inside.localization._batcher.queue
    with grpc.insecure_channel(inside.address) as channel:
        stub = LocalizationServiceStub(channel)
        with held(inside.localization):
            sending = Sending(frame(1, photo(published, 1), deadline_ms=300))
            responses = stub.LocalizeStream(iter(sending))
            response = next(responses)
            assert code_of(response) in (CODE.DEADLINE_EXCEEDED, CODE.RESOURCE_EXHAUSTED)
            responses.cancel()
            sending.end()
        with held(inside.localization):
            begun = time.monotonic()
            sending = Sending(frame(1, photo(published, 1)))
            codes: list[grpc.StatusCode | None] = []
            responses = stub.LocalizeStream(iter(sending), timeout=0.4)
            with pytest.raises(grpc.RpcError) as late:
                codes += map(code_of, responses)
            sending.end()
            # The frame has the stream's deadline, and may be refused a moment before the stream is over.
            assert set(codes) <= {CODE.DEADLINE_EXCEEDED, CODE.RESOURCE_EXHAUSTED}
            assert late.value.code() == CODE.DEADLINE_EXCEEDED
            assert time.monotonic() - begun < 5
    until(lambda: waiting.admitted == 0, "what was too late still counts")


def test_a_full_queue_refuses_frames_and_the_stream_goes_on(inside: Served, published: PublishedPlaces) -> None:
    """Eight photos may be inside; two streams with four frames fill it, a third one hears of it frame by frame."""
    waiting = inside.localization._batcher.queue
    with grpc.insecure_channel(inside.address) as channel:
        stub = LocalizationServiceStub(channel)
        with held(inside.localization) as go:
            full = [Sending(*(frame(n, photo(published, n)) for n in range(4))) for _ in range(2)]
            streams = [stub.LocalizeStream(iter(sending)) for sending in full]
            until(lambda: waiting.admitted == 8, "the queue never filled")
            sending = Sending(frame(1, photo(published, 1)))
            third = stub.LocalizeStream(iter(sending))
            refused = next(third)
            assert code_of(refused) == CODE.RESOURCE_EXHAUSTED
            assert any(detail.type_url.endswith("google.rpc.RetryInfo") for detail in refused.error.details)
            with pytest.raises(grpc.RpcError) as one:
                stub.Localize(pb.LocalizeRequest(image=photo(published, 1)))
            assert one.value.code() == CODE.RESOURCE_EXHAUSTED
            go()
            for stream, fed in zip(streams, full, strict=True):
                fed.end()
                assert [code_of(response) for response in stream] == [None] * 4
            sending.frame(2, photo(published, 2))
            assert code_of(next(third)) is None
            sending.end()


def test_every_answer_of_a_stream_names_one_whole_version(tmp_path: Path, describer: Describer) -> None:
    build_index(make_places(tmp_path, 6), describer, tmp_path / "indexes", "places")
    versions = {current_version(tmp_path / "indexes" / "places"): 6}
    for count in (7, 8):
        build_index(make_places(tmp_path, count), describer, tmp_path / "indexes", "places")
        versions[current_version(tmp_path / "indexes" / "places")] = count
    image = (tmp_path / "photos" / "0002.jpg").read_bytes()
    localization = LocalizationService(ServerSettings(indexes=tmp_path / "indexes", watch_interval_s=3600, threads=1))
    with served(localization) as running, grpc.insecure_channel(running.address) as channel:
        names = list(versions)
        swapping = threading.Event()

        def swap() -> None:
            for turn in range(6):
                activate_version(tmp_path / "indexes" / "places", names[turn % 3])
                localization.live.look_for_new_version()
            swapping.set()

        def frames() -> Iterator[pb.LocalizeStreamRequest]:
            number = 0
            while not swapping.is_set() or number < 60:
                yield frame(number, image, options=pb.LocalizeOptions(top_k=20))
                number += 1
                time.sleep(0.03)

        thread = threading.Thread(target=swap)
        responses = LocalizationServiceStub(channel).LocalizeStream(frames())
        thread.start()
        answers = list(responses)
        thread.join()
    assert ids(answers) == list(range(len(answers)))
    assert all(code_of(response) is None for response in answers)
    for response in answers:
        assert versions[response.answer.index.version] == response.answer.index.size == len(response.answer.matches)
        assert response.answer.matches[0].reference_id == "photos/0002.jpg"
    assert len({response.answer.index.version for response in answers}) > 1
