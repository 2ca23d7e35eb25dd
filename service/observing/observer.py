"""Where a server reports what happens: to its metrics, its traces, and the notes on the current request."""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from retrieval.localize.localizer import Located
from service.observing.logs import CURRENT
from service.observing.metrics import STAGES, JobCollector, JobCounts, Metrics, ServerState, StateCollector
from service.observing.tracing import Tracing, configured_tracing
from service.serving.batcher import FinishedBatch

if TYPE_CHECKING:
    from service.settings import ServerSettings


class Observer:
    """Observes one server.

    Args:
        metrics: to count in, or None to count nothing.
        tracing: to trace with, or None.
    """

    def __init__(self, metrics: Metrics | None = None, tracing: Tracing | None = None) -> None:
        self.metrics = metrics
        self.tracing = tracing

    @classmethod
    def configured(cls, settings: "ServerSettings") -> "Observer":
        """The observer that the settings ask for.

        Raises:
            MissingExtraError, ParameterError: see `configured_tracing`.
        """
        metrics = None if settings.metrics == "off" else Metrics()
        return cls(metrics, configured_tracing(settings.otlp_endpoint))

    def watch_state(self, read: Callable[[], ServerState]) -> None:
        """Read the server's state at each scrape.

        Args:
            read: the state, from any thread.
        """
        if self.metrics is not None:
            self.metrics.registry.register(StateCollector(read))

    def watch_jobs(self, count: Callable[[], JobCounts]) -> None:
        """Count the jobs at each scrape.

        Args:
            count: counts them, from any thread.
        """
        if self.metrics is not None:
            self.metrics.registry.register(JobCollector(count))

    def photo(self) -> contextlib.AbstractContextManager[None]:
        """A context in which one photo is admitted and answered, or fails."""
        return self.metrics.photo() if self.metrics is not None else contextlib.nullcontext()

    def answered(self, located: Located, queued_at: float) -> None:
        """A photo, or a descriptor, was localized.

        Args:
            located: with its timings.
            queued_at: when decoding was done, on `time.perf_counter`.
        """
        if self.metrics is not None:
            self.metrics.answered(located)
        notes = CURRENT.get()
        if notes is None:
            return
        notes.photos += 1
        notes.fix_status = located.status.value
        notes.index_version = located.place_index.version
        if self.tracing is not None and notes.span is not None:
            times = located.timings
            spent = (
                times.decode_ms,
                times.queue_ms,
                times.describe_ms,
                times.search_ms,
                times.rerank_ms or 0.0,
                times.fix_ms,
            )
            # What did not happen is no span: a search by descriptor decodes and describes nothing.
            stages = [(name, ms * 1e-3) for name, ms in zip(STAGES, spent, strict=True) if ms > 0.0]
            self.tracing.stages(notes.span, queued_at, stages, {"sightfix.request_id": located.request_id})

    def described(self, decode_s: float, queue_s: float, queued_at: float) -> None:
        """A photo was described; how long the model took is in the batch's metrics.

        Args:
            decode_s, queue_s: seconds of decoding and of waiting for the model.
            queued_at: when decoding was done, on `time.perf_counter`.
        """
        if self.metrics is not None:
            self.metrics.stage("decode", decode_s)
            self.metrics.stage("queue", queue_s)
        notes = CURRENT.get()
        if notes is not None:
            notes.photos += 1
            if self.tracing is not None and notes.span is not None:
                self.tracing.stages(notes.span, queued_at, [("decode", decode_s), ("queue", queue_s)], {})

    def track_step(self, seconds: float) -> None:
        """A track has taken in a frame."""
        if self.metrics is not None:
            self.metrics.track_step(seconds)

    def batch(self, finished: FinishedBatch) -> None:
        """The model has done a batch; called on the owner thread."""
        if self.metrics is not None:
            self.metrics.batch(finished)

    def timed_swap(self, swap: Callable[[str], None]) -> Callable[[str], None]:
        """The same swap, counted and timed."""
        return self.metrics.timed_swap(swap) if self.metrics is not None else swap

    def stop(self) -> None:
        """Export what is left."""
        if self.tracing is not None:
            self.tracing.stop()
