"""When the clients try again: the rules on a clock of the test's own, and then with a server that misbehaves."""

import asyncio
import contextlib
import gc
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from retrieval.errors import ParameterError, ServerError, SightfixError
from sightfix.client import (
    AppendJobRequest,
    AsyncSightfixClient,
    ProblemError,
    RetryPolicy,
    SightfixClient,
    calls,
)
from sightfix.client.photos import EncodedPhoto
from sightfix.client.sending import Budget, network_error, retry_after_s


class Clock:
    """Time that passes only when it is set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def problem(status: int, retry_after: str | None = None) -> ProblemError:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return ProblemError(httpx.Response(status, headers=headers, request=httpx.Request("GET", "http://robot")))


UNREACHABLE = network_error("http://robot", httpx.ConnectError("refused"))


def pauses(
    policy: RetryPolicy,
    errors: list[SightfixError],
    deadline_s: float | None = None,
    *,
    repeatable: bool = True,
    jitter: Callable[[float, float], float] = lambda _, high: high,
) -> list[float]:
    """The pauses before the attempts that follow these errors, the longest possible ones unless `jitter` says less.

    Raises:
        SightfixError: the error after which there is no other attempt.
    """
    clock, left = Clock(), list(errors)
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.now += seconds

    async def attempt() -> None:
        if left:
            raise left.pop(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random, "uniform", jitter)
        asyncio.run(Budget(policy, deadline_s, clock).retrying(repeatable=repeatable, sleep=sleep)(attempt))
    return slept


def test_pauses_double_up_to_a_limit() -> None:
    policy = RetryPolicy(max_attempts=6, base_s=0.5, max_pause_s=3.0)
    assert pauses(policy, [UNREACHABLE] * 5) == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_jitter_takes_anything_from_nothing_to_the_limit() -> None:
    asked: list[tuple[float, float]] = []

    def dice(low: float, high: float) -> float:
        asked.append((low, high))
        return low

    assert pauses(RetryPolicy(base_s=0.5), [UNREACHABLE] * 3, jitter=dice) == [0.0, 0.0, 0.0]
    assert asked == [(0.0, 0.5), (0.0, 1.0), (0.0, 2.0)]


@pytest.mark.parametrize("status", [408, 429, 502, 503])
def test_transient_statuses_are_retried(status: int) -> None:
    assert pauses(RetryPolicy(base_s=0.5), [problem(status)]) == [0.5]


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (problem(429), True),  # refused: nothing was done
        (problem(503), True),
        (network_error("http://robot", httpx.ConnectError("refused")), True),  # never delivered
        (network_error("http://robot", httpx.ConnectTimeout("")), True),
        (network_error("http://robot", httpx.ReadError("reset")), False),  # perhaps done
        (problem(502), False),
        (problem(408), False),
    ],
)
def test_calls_that_are_not_repeatable(error: SightfixError, again: bool) -> None:
    if again:
        assert pauses(RetryPolicy(base_s=0.5), [error], repeatable=False) == [0.5]
    else:
        with pytest.raises(SightfixError) as raised:
            pauses(RetryPolicy(base_s=0.5), [error], repeatable=False)
        assert raised.value is error


def test_which_calls_are_repeatable() -> None:
    photo = EncodedPhoto(b"", "image/jpeg")
    job = AppendJobRequest(kind="append", index="town", source="exif:x")
    assert calls.activate_call("town", "v1", None, 300.0).repeatable is False
    assert calls.open_track_call(None).repeatable is False
    assert calls.localize_frame_call("t", photo, 1.0, None, calls.Options()).repeatable is True
    assert calls.localize_call(photo, calls.Options()).repeatable is True
    # A job is accepted once, for its key is sent again with it.
    creating = calls.create_job_call(job, None)
    assert creating.repeatable is True
    keys = {creating.request(None, None)["headers"]["Idempotency-Key"] for _ in range(3)}
    assert len(keys) == 1
    assert keys != {calls.create_job_call(job, None).request(None, None)["headers"]["Idempotency-Key"]}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 415, 422, 500, 504, 507])
def test_permanent_statuses_are_not_retried(status: int) -> None:
    with pytest.raises(ProblemError):
        pauses(RetryPolicy(), [problem(status)])


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (httpx.ConnectError("refused"), True),
        (httpx.RemoteProtocolError("Server disconnected"), True),
        (httpx.ConnectTimeout(""), True),
        (httpx.ReadTimeout(""), False),
        (httpx.PoolTimeout(""), False),
        (TimeoutError(), False),
        (httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"), False),
        (httpx.UnsupportedProtocol("no http"), False),
        (httpx.InvalidURL("no port"), False),
    ],
)
def test_errors_of_the_network(error: Exception, again: bool) -> None:
    failure = network_error("http://robot/", error)
    assert failure.where == "http://robot"
    if again:
        assert pauses(RetryPolicy(base_s=0.5), [failure]) == [0.5]
        return
    with pytest.raises(ServerError):
        pauses(RetryPolicy(), [failure])


def test_retry_after_comes_on_top_of_the_backoff() -> None:
    assert pauses(RetryPolicy(base_s=0.5), [problem(429, "2"), problem(503, "7")]) == [2.5, 8.0]


def test_attempts_are_counted() -> None:
    with pytest.raises(ServerError):
        pauses(RetryPolicy(max_attempts=1), [UNREACHABLE])
    assert len(pauses(RetryPolicy(max_attempts=3), [UNREACHABLE] * 2)) == 2
    with pytest.raises(ServerError):
        pauses(RetryPolicy(max_attempts=3), [UNREACHABLE] * 3)


def test_no_pause_goes_beyond_the_deadline_or_the_whole_time() -> None:
    with pytest.raises(ProblemError):  # a robot that needs an answer in half a second does not wait for two
        pauses(RetryPolicy(), [problem(429, "2")], deadline_s=0.5)
    assert pauses(RetryPolicy(), [problem(429, "2")], deadline_s=5.0) == [2.2]
    with pytest.raises(ProblemError):
        pauses(RetryPolicy(total_s=1.0), [problem(429, "2")])
    with pytest.raises(ProblemError):
        pauses(RetryPolicy(total_s=1.0), [problem(429, "2")], deadline_s=60.0)


def test_time_left() -> None:
    clock = Clock()
    budget = Budget(RetryPolicy(), 2.0, clock)
    clock.now += 1.5
    assert budget.left_s == pytest.approx(0.5)
    clock.now += 1.5
    assert budget.left_s == 1e-3
    assert Budget(RetryPolicy()).left_s is None


def test_all_requests_of_a_call_share_its_attempts() -> None:
    """A call may ask for the preprocessing first: that request's failures count, too."""
    failures = iter([True, False, True, True, False])

    async def sleep(_: float) -> None:
        pass

    async def attempt() -> None:
        if next(failures):
            raise UNREACHABLE

    async def call() -> None:
        budget = Budget(RetryPolicy(max_attempts=3))
        await budget.retrying(sleep=sleep)(attempt)
        await budget.retrying(sleep=sleep)(attempt)

    with pytest.raises(ServerError):
        asyncio.run(call())
    assert next(failures) is False


@pytest.mark.parametrize("wrong", [{"max_attempts": 0}, {"base_s": -1.0}, {"total_s": -0.1}, {"max_pause_s": -1.0}])
def test_an_impossible_policy_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match="cannot be followed"):
        RetryPolicy(**wrong)


NOW = datetime(2026, 11, 23, 8, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        ("12", 12.0),
        ("1.5", 1.5),
        ("Mon, 23 Nov 2026 08:00:30 GMT", 30.0),
        ("Monday, 23-Nov-26 08:00:30 GMT", 30.0),
        ("Mon Nov 23 08:00:30 2026", 30.0),
        ("Mon, 23 Nov 2026 07:00:00 GMT", 0.0),
        ("soon", None),
        ("", None),
        ("-3", None),
        ("nan", None),
        ("inf", None),
    ],
)
def test_retry_after_in_every_form(header: str | None, seconds: float | None) -> None:
    assert retry_after_s(header, NOW) == seconds


class Scripted:
    """A server that answers with one status after the other; the last one stays.

    Status 0 hangs up without a word. The header X-Hold holds the answer back for as long as the server lives, X-Trickle
    lets an endless one trickle.
    """

    def __init__(self, *script: tuple[int, dict[str, str]]) -> None:
        self.script = list(script)
        self.deadlines: list[float | None] = []
        self.times: list[float] = []
        self.ended = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", "0")))
                deadline = self.headers.get("X-Deadline-Ms")
                outer.deadlines.append(None if deadline is None else float(deadline))
                outer.times.append(time.monotonic())
                status, headers = outer.script.pop(0) if len(outer.script) > 1 else outer.script[0]
                if status == 0:
                    self.close_connection = True
                    return
                with contextlib.suppress(ConnectionError):
                    self.answer(status, headers)

            do_POST = do_GET  # noqa: N815

            def answer(self, status: int, headers: dict[str, str]) -> None:
                if "X-Hold" in headers:
                    outer.ended.wait(60)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "1000000" if "X-Trickle" in headers else "2")
                self.end_headers()
                while "X-Trickle" in headers and not outer.ended.wait(0.02):
                    self.wfile.write(b" ")
                self.wfile.write(b"[]")

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    servers: list[Scripted] = []

    def start(*script: tuple[int, dict[str, str]]) -> Scripted:
        servers.append(Scripted(*script))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def sync_indexes(url: str, **options: Any) -> Any:
    with SightfixClient(url, **options) as client:
        return client.indexes()


def async_indexes(url: str, **options: Any) -> Any:
    async def ask() -> Any:
        async with AsyncSightfixClient(url, **options) as client:
            return await client.indexes()

    return asyncio.run(ask())


BOTH = pytest.mark.parametrize("indexes", [sync_indexes, async_indexes])
QUICK = RetryPolicy(base_s=0.01)


@BOTH
def test_retries_wait_for_retry_after(scripted: Any, indexes: Any) -> None:
    server = scripted((0, {}), (429, {"Retry-After": "1"}), (503, {}), (200, {}))
    assert indexes(server.url, retry=QUICK) == []
    assert len(server.times) == 4
    assert server.times[2] - server.times[1] >= 1.0


@BOTH
def test_a_refused_request_is_not_repeated(scripted: Any, indexes: Any) -> None:
    server = scripted((403, {}))
    with pytest.raises(ProblemError) as refusal:
        indexes(server.url, retry=QUICK)
    assert (refusal.value.status, refusal.value.problem, len(server.times)) == (403, None, 1)
    assert str(refusal.value) == f"{server.url}/indexes: the server answered 403."


@BOTH
def test_retries_end(scripted: Any, indexes: Any) -> None:
    server = scripted((503, {"Retry-After": "0"}))
    with pytest.raises(ProblemError) as refusal:
        indexes(server.url, retry=QUICK)
    assert (refusal.value.retry_after_s, len(server.times)) == (0.0, 4)


@BOTH
def test_a_foreign_answer_is_a_clear_error(scripted: Any, indexes: Any) -> None:
    server = scripted((200, {}))
    with SightfixClient(server.url) as client, pytest.raises(ServerError, match="not a sightfix answer"):
        client.info()


def _sync_search(url: str, deadline_ms: float) -> Any:
    with SightfixClient(url, retry=QUICK) as client:
        return client.search([1.0], deadline_ms=deadline_ms)


def _async_search(url: str, deadline_ms: float) -> Any:
    async def ask() -> Any:
        async with AsyncSightfixClient(url, retry=QUICK) as client:
            return await client.search([1.0], deadline_ms=deadline_ms)

    return asyncio.run(ask())


SEARCHES = pytest.mark.parametrize("search", [_sync_search, _async_search])


@SEARCHES
def test_the_deadline_shrinks_from_attempt_to_attempt(scripted: Any, search: Any) -> None:
    server = scripted((503, {"Retry-After": "1"}), (503, {"Retry-After": "60"}))
    with pytest.raises(ProblemError) as refusal:
        search(server.url, 30_000.0)
    assert refusal.value.retry_after_s == 60.0  # no pause goes beyond the deadline
    first, second = server.deadlines
    assert second <= first - 1000.0
    assert 29_000.0 < first <= 30_000.0  # what is left when it is sent


@SEARCHES
@pytest.mark.parametrize("slow", ["X-Hold", "X-Trickle"])
def test_a_deadline_bounds_a_slow_answer(scripted: Any, search: Any, slow: str) -> None:
    """It holds its answer, or lets it trickle, until the test is over; the client does not wait for that."""
    server = scripted((200, {slow: "1"}))
    with pytest.raises(ServerError, match="did not answer in time") as error:
        search(server.url, 300.0)
    assert error.value.code == "server_timeout"
    assert not server.ended.is_set()
    assert len(server.times) == 1


def test_photos_that_take_too_long_to_encode(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server, go = scripted((200, {})), threading.Event()
    monkeypatch.setattr("sightfix.client.photos.encode_photo", lambda *_: go.wait(30))
    with SightfixClient(server.url) as client:
        with pytest.raises(ServerError, match="did not answer in time"):
            client.localize(b"", deadline_ms=50.0)
        go.set()
    assert server.times == []


def test_closing_a_client_ends_the_calls_of_other_threads(scripted: Any) -> None:
    server = scripted((200, {"X-Hold": "1"}))
    outcomes: list[BaseException] = []
    client = SightfixClient(server.url)

    def ask() -> None:
        try:
            client.indexes()
        except BaseException as error:
            outcomes.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    end = time.monotonic() + 30
    while not server.times:
        assert time.monotonic() < end
        time.sleep(0.01)
    client.close()
    thread.join(30)
    assert not thread.is_alive()
    assert len(outcomes) == 1


def test_a_client_ends_its_thread(scripted: Any) -> None:
    def threads() -> int:
        return sum(thread.name == "sightfix-client" for thread in threading.enumerate())

    def until(count: int) -> None:
        end = time.monotonic() + 30
        while threads() != count:
            assert time.monotonic() < end
            time.sleep(0.01)

    before, server = threads(), scripted((200, {}))
    forgotten = SightfixClient(server.url)
    assert threads() == before  # not before it is needed
    forgotten.indexes()
    with SightfixClient(server.url) as client:
        client.indexes()
        assert threads() == before + 2
    until(before + 1)
    client.close()
    del forgotten
    gc.collect()
    until(before)


def test_a_client_is_refused_after_a_fork(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = scripted((200, {}))
    with SightfixClient(server.url) as client:
        client.indexes()
        pid = os.getpid()
        monkeypatch.setattr(os, "getpid", lambda: pid + 1)
        with pytest.raises(RuntimeError, match="one in each process"):
            client.indexes()
        monkeypatch.undo()


def test_a_newer_server_may_say_more() -> None:
    answer_json = {"name": "town", "current": "v1", "served": None, "versions": [], "news": {"of": "tomorrow"}}
    request = httpx.Request("GET", "http://robot")
    assert calls.index_call("town").answer(httpx.Response(200, json=answer_json, request=request)).current == "v1"
    model = dict.fromkeys(("name", "fingerprint", "precision", "provider", "runtime", "device"), "x")
    answer = {
        "request_id": "r",
        "status": "NO_MATCH",
        "fix": None,
        "matches": [],
        "model": {**model, "colour": "blue"},
        "index": {"name": "town", "version": "v1", "size": 0, "type": "exact"},
        "timings_ms": {"decode": 1, "describe": 1, "search": 1, "fix": 0, "total": 3, "sleep": 8},
        "track": {},
    }
    call = calls.localize_call(EncodedPhoto(b"", "image/jpeg"), calls.Options())
    assert call.answer(httpx.Response(200, json=answer, request=request)).status == "NO_MATCH"


def test_waiting_for_a_server_ends(scripted: Any) -> None:
    server = scripted((503, {}))
    with SightfixClient(server.url) as client:
        assert client.is_ready() is False
        assert len(server.times) == 1
        with pytest.raises(ProblemError):
            client.wait_until_ready(0.5)
    with SightfixClient("http://127.0.0.1:9") as absent, pytest.raises(ServerError):
        absent.wait_until_ready(0.3)


@pytest.mark.parametrize(("left_s", "sent"), [(3600.0, "600000"), (600.0, "600000"), (1.5, "1500"), (1e-6, "1")])
def test_a_deadline_is_sent_in_the_range_of_the_server(left_s: float, sent: str) -> None:
    assert calls.info_call().request(None, left_s)["headers"] == {"X-Deadline-Ms": sent}
