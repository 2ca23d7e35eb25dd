"""The client for programs without asyncio. Generated from asynchronous.py by make_synchronous.py: edit that."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from numpy.typing import ArrayLike

from retrieval.geo import GeoPrior
from retrieval.tracking import Odometry
from sightfix.client.answers import (
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
from sightfix.client.asynchronous import AsyncSightfixClient, LoopThread
from sightfix.client.photos import Photo, Resize
from sightfix.client.sending import DEFAULT_TIMEOUT_S, DEFAULT_URL, Certificate, Lane, RetryPolicy, Verify


class SightfixClient:
    """Talks to one sightfix server over HTTP. Use it in a `with` block, or call `close`. Safe to share among threads.

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
        self._client = AsyncSightfixClient(
            url, timeout_s=timeout_s, api_key=api_key, verify=verify, cert=cert, retry=retry, resize=resize
        )
        self._loop = LoopThread()

    def localize(
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
        return self._loop.run(
            self._client.localize(
                photo, top_k=top_k, geo_prior=geo_prior, min_score=min_score, lane=lane, deadline_ms=deadline_ms
            )
        )

    def localize_batch(
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
        return self._loop.run(
            self._client.localize_batch(
                photos, top_k=top_k, geo_prior=geo_prior, min_score=min_score, lane=lane, deadline_ms=deadline_ms
            )
        )

    def describe(self, photo: Photo, *, lane: Lane | None = None, deadline_ms: float | None = None) -> Description:
        """The descriptor of a photo.

        Args and Raises: as `localize`.
        """
        return self._loop.run(self._client.describe(photo, lane=lane, deadline_ms=deadline_ms))

    def search(
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
        return self._loop.run(
            self._client.search(
                descriptor,
                fingerprint=fingerprint,
                top_k=top_k,
                geo_prior=geo_prior,
                min_score=min_score,
                lane=lane,
                deadline_ms=deadline_ms,
            )
        )

    def open_track(self, parameters: TrackParameters | None = None) -> OpenedTrack:
        """Open a track over the frames of a moving camera. For many frames a second prefer `FrameStream`.

        Args:
            parameters: how the camera moves, and the weight of a frame; None takes all defaults.
        """
        return self._loop.run(self._client.open_track(parameters))

    def localize_frame(
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
        return self._loop.run(
            self._client.localize_frame(
                track_id,
                photo,
                captured_at_s=captured_at_s,
                odometry=odometry,
                top_k=top_k,
                geo_prior=geo_prior,
                min_score=min_score,
                lane=lane,
                deadline_ms=deadline_ms,
            )
        )

    def close_track(self, track_id: str) -> None:
        """Close a track; one without frames closes by itself."""
        self._loop.run(self._client.close_track(track_id))

    def info(self) -> ServerInfo:
        """The model and the index that are served, bounds, limits."""
        return self._loop.run(self._client.info())

    def indexes(self) -> list[IndexListing]:
        """All indexes and their versions."""
        return self._loop.run(self._client.indexes())

    def index(self, name: str) -> IndexListing:
        """The versions of an index."""
        return self._loop.run(self._client.index(name))

    def activate(
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
        return self._loop.run(self._client.activate(index, version, expected=expected, timeout_s=timeout_s))

    def create_job(self, request: JobRequest, *, idempotency_key: str | None = None) -> Job:
        """Start a job that makes a new version of an index.

        Args:
            request: a `FullJobRequest`, `AppendJobRequest` or `RemoveJobRequest`.
            idempotency_key: the same key with the same request gives the same job for 24 hours; a random one if left
                out, so that a retry never starts a second job.
        """
        return self._loop.run(self._client.create_job(request, idempotency_key=idempotency_key))

    def get_job(self, job_id: str) -> Job:
        """The state of a job."""
        return self._loop.run(self._client.get_job(job_id))

    def list_jobs(
        self, *, states: Sequence[JobState] = (), page_size: int = 50, page_token: str | None = None
    ) -> JobPage:
        """One page of jobs, newest first.

        Args:
            states: in one of these; in any if none is named.
            page_size: how many, 1 to 200.
            page_token: the `next_page_token` of the page before.
        """
        return self._loop.run(self._client.list_jobs(states=states, page_size=page_size, page_token=page_token))

    def list_job_failures(self, job_id: str, *, page_size: int = 50, page_token: str | None = None) -> JobFailurePage:
        """One page of the photos that a job could not index.

        Args:
            job_id: of the job.
            page_size, page_token: as `list_jobs`.
        """
        return self._loop.run(self._client.list_job_failures(job_id, page_size=page_size, page_token=page_token))

    def cancel_job(self, job_id: str) -> Job:
        """Stop a job: at once while it waits, after the current batch while it runs.

        Raises:
            ProblemError: it is finished, or its version is being named (``job_not_cancellable``).
        """
        return self._loop.run(self._client.cancel_job(job_id))

    def wait_for_job(
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
        return self._loop.run(
            self._client.wait_for_job(job_id, timeout_s=timeout_s, pause_s=pause_s, on_progress=on_progress)
        )

    def is_ready(self) -> bool:
        """Whether the server can localize photos now; asked once.

        Raises:
            ServerError: it cannot be reached.
        """
        return self._loop.run(self._client.is_ready())

    def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Wait for a server that starts or loads.

        Raises:
            ProblemError: it was not ready in time; says why.
            ServerError: it could not be reached in time.
        """
        self._loop.run(self._client.wait_until_ready(timeout_s))

    def close(self) -> None:
        """Close the connections."""
        self._loop.run(self._client.close())
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
