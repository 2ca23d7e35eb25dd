"""The client for asyncio; `SightfixClient` is this one with an event loop of its own."""

import asyncio
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar

from numpy.typing import ArrayLike

from retrieval.errors import ServerError
from retrieval.geo import GeoPrior
from retrieval.localize.answer import LocalizeAnswer
from retrieval.tracking import Odometry
from service.jobs.model import FINISHED, Job, JobFailurePage, JobPage, JobRequest, JobState
from service.tracking.model import TrackedAnswer, TrackParameters
from sightfix.client import calls, operating, tracking
from sightfix.client.answers import BatchItem, Description, IndexListing, OpenedTrack, ServerInfo
from sightfix.client.calls import Call, Lane, Options
from sightfix.client.connection import DEFAULT_TIMEOUT_S, DEFAULT_URL, Certificate, Connection, Verify
from sightfix.client.errors import ProblemError
from sightfix.client.eyesight import Eyesight, Resize
from sightfix.client.photos import EncodedPhoto, Photo
from sightfix.client.retrying import NEVER_AGAIN, Attempts, RetryPolicy
from sightfix.client.sending import Sender

Answer = TypeVar("Answer")
MakeCall = Callable[[list[EncodedPhoto]], Call[Answer]]

# Between two looks at /readyz.
_READY_PAUSE_S = 0.2


class AsyncSightfixClient:
    """`SightfixClient` for asyncio: the same methods, to be awaited. Use it in an `async with` block, or call `close`.

    What the methods take, give and raise is written there. Photos are read and encoded in a thread.
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
        self._eyesight = Eyesight(resize)

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
        """Where was this photo taken?"""
        options = Options(top_k, geo_prior, min_score)
        return await self._see([photo], lambda sent: calls.localize_call(sent[0], options), lane, deadline_ms)

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
        """Where were these photos taken?"""
        if not photos:
            return []
        options = Options(top_k, geo_prior, min_score)
        return await self._see(photos, lambda sent: calls.batch_call(sent, options), lane, deadline_ms)

    async def describe(
        self, photo: Photo, *, lane: Lane | None = None, deadline_ms: float | None = None
    ) -> Description:
        """The descriptor of a photo."""
        return await self._see([photo], lambda sent: calls.describe_call(sent[0]), lane, deadline_ms)

    async def search(
        self,
        descriptor: ArrayLike,
        *,
        top_k: int = 10,
        geo_prior: GeoPrior | None = None,
        min_score: float | None = None,
        lane: Lane | None = None,
        deadline_ms: float | None = None,
    ) -> LocalizeAnswer:
        """Where was the photo of this descriptor taken?"""
        call = calls.search_call(descriptor, Options(top_k, geo_prior, min_score))
        return await self._sender.answer(call, self._sender.attempts(deadline_ms), lane)

    async def open_track(self, parameters: TrackParameters | None = None) -> OpenedTrack:
        """Begin a track over the frames of a moving camera."""
        return await self._ask(tracking.open_track_call(parameters))

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
        """Where was this frame taken, and where is the camera by all frames until now?"""
        options = Options(top_k, geo_prior, min_score)
        return await self._see(
            [photo],
            lambda sent: tracking.localize_frame_call(track_id, sent[0], captured_at_s, odometry, options),
            lane,
            deadline_ms,
        )

    async def close_track(self, track_id: str) -> None:
        """End a track."""
        await self._ask(tracking.close_track_call(track_id))

    async def info(self) -> ServerInfo:
        """What is being served."""
        return await self._ask(calls.info_call())

    async def indexes(self) -> list[IndexListing]:
        """Which indexes and versions there are."""
        return await self._ask(operating.indexes_call())

    async def index(self, name: str) -> IndexListing:
        """Which versions an index has."""
        return await self._ask(operating.index_call(name))

    async def activate(
        self, index: str, version: str, *, expected: str | None = None, timeout_s: float = 300.0
    ) -> IndexListing:
        """Make a version the current one: an upgrade, or a rollback."""
        return await self._ask(operating.activate_call(index, version, expected, timeout_s))

    async def create_job(self, request: JobRequest, *, idempotency_key: str | None = None) -> Job:
        """Start a job that makes a new version of an index."""
        return await self._ask(operating.create_job_call(request, idempotency_key))

    async def get_job(self, job_id: str) -> Job:
        """How far a job is."""
        return await self._ask(operating.get_job_call(job_id))

    async def list_jobs(
        self, *, states: Sequence[JobState] = (), page_size: int = 50, page_token: str | None = None
    ) -> JobPage:
        """Some jobs, newest first."""
        return await self._ask(operating.list_jobs_call(states, page_size, page_token))

    async def list_job_failures(
        self, job_id: str, *, page_size: int = 50, page_token: str | None = None
    ) -> JobFailurePage:
        """Photos that a job could not index."""
        return await self._ask(operating.list_job_failures_call(job_id, page_size, page_token))

    async def cancel_job(self, job_id: str) -> Job:
        """Stop a job."""
        return await self._ask(operating.cancel_job_call(job_id))

    async def wait_for_job(
        self,
        job_id: str,
        *,
        timeout_s: float | None = None,
        pause_s: float = 2.0,
        on_progress: Callable[[Job], None] | None = None,
    ) -> Job:
        """Wait until a job is finished."""
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
        """Whether the server can localize photos now."""
        try:
            await self._look()
        except ProblemError:
            return False
        return True

    async def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Wait for a server that starts or loads."""
        end = time.monotonic() + timeout_s
        while True:
            try:
                await self._look()
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

    async def _ask(self, call: Call[Answer]) -> Answer:
        return await self._sender.answer(call, self._sender.attempts())

    async def _look(self) -> None:
        await self._sender.answer(calls.ready_call(), Attempts(NEVER_AGAIN))

    async def _see(
        self, photos: Sequence[Photo], make: MakeCall[Answer], lane: Lane | None, deadline_ms: float | None
    ) -> Answer:
        attempts = self._sender.attempts(deadline_ms)
        while True:
            asked = self._eyesight.must_ask
            if asked:
                self._eyesight.told(await self._sender.answer(calls.info_call(), attempts))
            encoding = asyncio.to_thread(self._eyesight.encoded, photos)
            call = make(await self._sender.in_time(encoding, attempts))
            answer = await self._sender.answer(call, attempts, lane)
            # Asked just now and wrong again: servers of different models behind one address. Their answer it is.
            if self._eyesight.seen_rightly(call.fingerprint(answer)) or asked:
                return answer
