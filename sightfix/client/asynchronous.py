"""The client for asyncio, and the event loop in a thread on which `SightfixClient`, generated from it, runs it."""

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from numpy.typing import ArrayLike

from retrieval.errors import ServerError
from retrieval.geo import GeoPrior
from retrieval.tracking import Odometry
from sightfix.client import calls
from sightfix.client.answers import (
    FINISHED,
    BatchItem,
    Description,
    IndexListing,
    Job,
    JobFailurePage,
    JobPage,
    JobRequest,
    JobState,
    LocalizeAnswer,
    OpenedTrack,
    ServerInfo,
    TrackedAnswer,
    TrackParameters,
)
from sightfix.client.calls import Options
from sightfix.client.photos import EncodedPhoto, Photo, PreprocessingCache, Resize
from sightfix.client.sending import (
    DEFAULT_TIMEOUT_S,
    DEFAULT_URL,
    Answer,
    Call,
    Certificate,
    Connection,
    Lane,
    ProblemError,
    RetryPolicy,
    Sender,
    Verify,
)

Value = TypeVar("Value")

# Between two requests of /readyz.
_READY_PAUSE_S: Final = 0.2


class AsyncSightfixClient:
    """Talks to one sightfix server over HTTP, for asyncio. Use it in an `async with` block, or call `close`.

    Every method raises ProblemError when the server refuses and ServerError when it cannot be reached or does not
    answer, both after the retries that the policy allows. Photos are read and encoded in a thread.

    Args:
        url: of the server, such as ``http://127.0.0.1:8080``.
        timeout_s: for connecting, sending and reading, each.
        api_key: for servers that want one.
        verify: whether to check the server's certificate; a PEM file of authorities, or an SSL context.
        cert: our certificate and its key, PEM files, for servers that want one (mTLS).
        retry: how often to try again, and for how long.
        resize: "model" shrinks photos to what the server's model sees before they are sent; see `encode_photo`. A
            preprocessing does the same without asking the server.

    Raises:
        ParameterError: a PEM file cannot be read.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        api_key: str | None = None,
        verify: Verify = True,
        cert: Certificate | None = None,
        retry: RetryPolicy | None = None,
        resize: Resize = None,
    ) -> None:
        self._sender = Sender(Connection(url, timeout_s, api_key, verify, cert), retry or RetryPolicy())
        self._preprocessing = PreprocessingCache(resize)

    async def localize(
        self,
        photo: Photo,
        *,
        top_k: int = 10,
        geo_prior: GeoPrior | None = None,
        min_score: float | None = None,
        lane: Lane | None = None,
        deadline_ms: float | None = None,
    ) -> LocalizeAnswer:
        """Localize a photo.

        Args:
            photo: a file, encoded bytes, an (H, W, 3) uint8 RGB array, or a Pillow image.
            top_k: how many matches to return.
            geo_prior: where the answer must lie.
            min_score: leave out matches below this cosine.
            lane: robot goes before bulk.
            deadline_ms: when the answer is of no use any more, from now. It bounds everything: encoding, sending,
                pauses, retries.

        Raises:
            ImageError: the file cannot be read, or is of no format that a server accepts.
            ParameterError: an array of another shape or type.
            ProblemError, ServerError: see the class.
        """
        options = Options(top_k, geo_prior, min_score)
        return await self._send_photos([photo], lambda sent: calls.localize_call(sent[0], options), lane, deadline_ms)

    async def localize_batch(
        self,
        photos: Sequence[Photo],
        *,
        top_k: int = 10,
        geo_prior: GeoPrior | None = None,
        min_score: float | None = None,
        lane: Lane | None = None,
        deadline_ms: float | None = None,
    ) -> list[BatchItem]:
        """Localize up to 32 photos, each with a status of its own; in the lane bulk unless another is given.

        Args and Raises: as `localize`.
        """
        if not photos:
            return []
        options = Options(top_k, geo_prior, min_score)
        return await self._send_photos(photos, lambda sent: calls.batch_call(sent, options), lane, deadline_ms)

    async def describe(
        self, photo: Photo, *, lane: Lane | None = None, deadline_ms: float | None = None
    ) -> Description:
        """The descriptor of a photo.

        Args and Raises: as `localize`.
        """
        return await self._send_photos([photo], lambda sent: calls.describe_call(sent[0]), lane, deadline_ms)

    async def search(
        self,
        descriptor: ArrayLike,
        *,
        fingerprint: str | None = None,
        top_k: int = 10,
        geo_prior: GeoPrior | None = None,
        min_score: float | None = None,
        lane: Lane | None = None,
        deadline_ms: float | None = None,
    ) -> LocalizeAnswer:
        """Localize the photo of a descriptor.

        Args:
            descriptor: (D,) of unit length, as `describe` gave it.
            fingerprint: of the model that gave it, to be refused when another serves by now; None: not checked.
            top_k, geo_prior, min_score, lane, deadline_ms: as `localize`.
        """
        call = calls.search_call(descriptor, fingerprint, Options(top_k, geo_prior, min_score))
        return await self._sender.answer(call, self._sender.budget(deadline_ms), lane)

    async def open_track(self, parameters: TrackParameters | None = None) -> OpenedTrack:
        """Open a track over the frames of a moving camera. For many frames a second prefer `FrameStream`.

        Args:
            parameters: how the camera moves, and the weight of a frame; None takes all defaults.
        """
        return await self._send(calls.open_track_call(parameters))

    async def localize_frame(
        self,
        track_id: str,
        photo: Photo,
        *,
        captured_at_s: float,
        odometry: Odometry | None = None,
        top_k: int = 10,
        geo_prior: GeoPrior | None = None,
        min_score: float | None = None,
        lane: Lane | None = None,
        deadline_ms: float | None = None,
    ) -> TrackedAnswer:
        """Localize a frame, and the camera by all frames until now. One at a time, in their order.

        Args:
            track_id: of an open track.
            photo: as `localize`.
            captured_at_s: when it was taken, seconds on any clock that does not go back.
            odometry: a `Speed`, `Distance` or `Displacement` since the last frame that was answered.
            top_k, geo_prior, min_score, lane, deadline_ms: as `localize`.
        """
        options = Options(top_k, geo_prior, min_score)
        return await self._send_photos(
            [photo],
            lambda sent: calls.localize_frame_call(track_id, sent[0], captured_at_s, odometry, options),
            lane,
            deadline_ms,
        )

    async def close_track(self, track_id: str) -> None:
        """Close a track; one without frames closes by itself."""
        await self._send(calls.close_track_call(track_id))

    async def info(self) -> ServerInfo:
        """The model and the index that are served, bounds, limits."""
        return await self._send(calls.info_call())

    async def indexes(self) -> list[IndexListing]:
        """All indexes and their versions."""
        return await self._send(calls.indexes_call())

    async def index(self, name: str) -> IndexListing:
        """The versions of an index."""
        return await self._send(calls.index_call(name))

    async def activate(
        self, index: str, version: str, *, expected: str | None = None, timeout_s: float = 300.0
    ) -> IndexListing:
        """Make a version the current one: an upgrade, or a rollback. Returns when it is served.

        Args:
            index: name of the index.
            version: one of its versions.
            expected: the version that must be current now, so that no change of another client is undone unseen.
            timeout_s: for the answer; the server opens the version and checks it.

        Raises:
            ProblemError: there is no such version, it fails its checks, or another than `expected` is current
                (``version_conflict``).
        """
        return await self._send(calls.activate_call(index, version, expected, timeout_s))

    async def create_job(self, request: JobRequest, *, idempotency_key: str | None = None) -> Job:
        """Start a job that makes a new version of an index.

        Args:
            request: a `FullJobRequest`, `AppendJobRequest` or `RemoveJobRequest`.
            idempotency_key: the same key with the same request gives the same job for 24 hours; a random one if left
                out, so that a retry never starts a second job.
        """
        return await self._send(calls.create_job_call(request, idempotency_key))

    async def get_job(self, job_id: str) -> Job:
        """The state of a job."""
        return await self._send(calls.get_job_call(job_id))

    async def list_jobs(
        self, *, states: Sequence[JobState] = (), page_size: int = 50, page_token: str | None = None
    ) -> JobPage:
        """One page of jobs, newest first.

        Args:
            states: in one of these; in any if none is named.
            page_size: how many, 1 to 200.
            page_token: the `next_page_token` of the page before.
        """
        return await self._send(calls.list_jobs_call(states, page_size, page_token))

    async def list_job_failures(
        self, job_id: str, *, page_size: int = 50, page_token: str | None = None
    ) -> JobFailurePage:
        """One page of the photos that a job could not index.

        Args:
            job_id: of the job.
            page_size, page_token: as `list_jobs`.
        """
        return await self._send(calls.list_job_failures_call(job_id, page_size, page_token))

    async def cancel_job(self, job_id: str) -> Job:
        """Stop a job: at once while it waits, after the current batch while it runs.

        Raises:
            ProblemError: it is finished, or its version is being named (``job_not_cancellable``).
        """
        return await self._send(calls.cancel_job_call(job_id))

    async def wait_for_job(
        self,
        job_id: str,
        *,
        timeout_s: float | None = None,
        pause_s: float = 2.0,
        on_progress: Callable[[Job], None] | None = None,
    ) -> Job:
        """Wait until a job is finished.

        Args:
            job_id: of the job.
            timeout_s: how long; without end if left out.
            pause_s: between two requests.
            on_progress: called with the job after each request, by `SightfixClient` in a thread of its own.

        Returns:
            the job, SUCCEEDED, FAILED or CANCELLED: see its `state`, `result` and `error`.

        Raises:
            ServerError: it is not finished in time (``job_unfinished``).
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            job = await self.get_job(job_id)
            if on_progress is not None:
                on_progress(job)
            if job.state in FINISHED:
                return job
            if end is not None and time.monotonic() + pause_s >= end:
                raise ServerError(
                    f"the job is {job.state} after {timeout_s:g} s",
                    where=job_id,
                    remedy="It goes on: wait again, or cancel it",
                    code="job_unfinished",
                )
            await asyncio.sleep(pause_s)

    async def is_ready(self) -> bool:
        """Whether the server can localize photos now; asked once.

        Raises:
            ServerError: it cannot be reached.
        """
        try:
            await self._request_ready()
        except ProblemError:
            return False
        return True

    async def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Wait for a server that starts or loads.

        Raises:
            ProblemError: it was not ready in time; says why.
            ServerError: it could not be reached in time.
        """
        end = time.monotonic() + timeout_s
        while True:
            try:
                await self._request_ready()
                return
            except (ProblemError, ServerError):
                if time.monotonic() + _READY_PAUSE_S >= end:
                    raise
            await asyncio.sleep(_READY_PAUSE_S)

    async def close(self) -> None:
        """Close the connections."""
        await self._sender.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _send(self, call: Call[Answer]) -> Answer:
        return await self._sender.answer(call, self._sender.budget())

    async def _request_ready(self) -> None:
        await self._sender.once(calls.ready_call())

    async def _send_photos(
        self,
        photos: Sequence[Photo],
        make_call: Callable[[list[EncodedPhoto]], Call[Answer]],
        lane: Lane | None,
        deadline_ms: float | None,
    ) -> Answer:
        budget = self._sender.budget(deadline_ms)
        while True:
            asked = self._preprocessing.is_stale
            if asked:
                self._preprocessing.update(await self._sender.answer(calls.info_call(), budget))
            encoding = asyncio.to_thread(self._preprocessing.encode, photos)
            call = make_call(await self._sender.in_time(encoding, budget))
            answer = await self._sender.answer(call, budget, lane)
            # Asked just now and wrong again: servers of different models behind one address. Their answer is returned.
            if self._preprocessing.matches(call.fingerprint(answer)) or asked:
                return answer


class LoopThread:
    """Runs coroutines for any number of threads. The loop's thread starts with the first of them.

    It is a daemon: a program that forgets `close` ends all the same.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        self._end: weakref.finalize[..., LoopThread] | None = None

    def run(self, coroutine: Coroutine[Any, Any, Value]) -> Value:
        """Wait for a coroutine; Ctrl-C cancels it.

        Raises:
            RuntimeError: the process was forked since the loop started: threads do not live on in the child.
        """
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._running())
        except BaseException:
            coroutine.close()
            raise
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """End the thread, if it ever ran; the next `run` starts another."""
        with self._lock:
            self._loop = None
            if self._end is not None:
                self._end()

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop, self._pid = asyncio.new_event_loop(), os.getpid()
                threading.Thread(target=_run, args=(self._loop,), name="sightfix-client", daemon=True).start()
                self._end = weakref.finalize(self, _stop, self._loop, self._pid)
                self._end.atexit = False
            elif self._pid != os.getpid():
                raise RuntimeError("this client was used before the process was forked: make one in each process")
            return self._loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        # Calls that still wait for an answer are cancelled.
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


def _stop(loop: asyncio.AbstractEventLoop, pid: int) -> None:
    if pid == os.getpid():
        loop.call_soon_threadsafe(loop.stop)
