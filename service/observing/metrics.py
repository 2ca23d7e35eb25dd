"""The metrics of one server: what is counted as it happens, and what is read at each scrape.

They have a registry of their own: a process may hold several servers.
"""

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, TypeVar, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from retrieval import __version__
from retrieval.errors import ImageError, SightfixError
from retrieval.localize.localizer import Located
from service.answer import IndexAnswer, ModelAnswer
from service.jobs.model import JobKind, JobState
from service.observing import definitions as defined
from service.observing.definitions import Definition
from service.problems import RequestError
from service.serving.admission import Lane, RejectedError
from service.serving.batcher import FinishedBatch

_log = logging.getLogger("sightfix.service")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_IMAGE_CODES: Final = frozenset(
    {"empty_body", "unsupported_media_type", "image_undecodable", "too_many_pixels", "body_too_large"}
)
STAGES: Final = ("decode", "queue", "describe", "search", "rerank", "fix")
Metric = TypeVar("Metric", Counter, Gauge)

# How many jobs there are of each kind and state.
JobCounts = Mapping[tuple[str, str], int]

# Label values and the number.
_Sample = tuple[Sequence[str], float]


@dataclass(frozen=True, slots=True)
class ServerState:
    """A server at one moment.

    Attributes:
        queue_depth: photos that wait in each lane.
        queue_limit: photos that may be admitted at once.
        tracks: that are open.
        model, index: that answer; None before they are loaded.
        healthy: whether a health probe has succeeded lately.
        probed_at: when one succeeded last, seconds since 1970; None before the first.
        ready: whether /readyz says 200.
        engine_building: whether an engine is being compiled for the GPU.
    """

    queue_depth: Mapping[Lane, int]
    queue_limit: int
    tracks: int
    model: ModelAnswer | None
    index: IndexAnswer | None
    healthy: bool
    probed_at: float | None
    ready: bool
    engine_building: bool


class Metrics:
    """Counts what one server does.

    Attributes:
        registry: what is scraped. Others may register collectors of their own.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = self._made(Counter, defined.REQUESTS)
        self._rpcs = self._made(Counter, defined.RPCS)
        self._in_flight = self._made(Gauge, defined.IN_FLIGHT)
        self._request_seconds = self._histogram(defined.REQUEST_SECONDS)
        stage_seconds = self._histogram(defined.STAGE_SECONDS)
        self._stage_seconds = {stage: stage_seconds.labels(stage) for stage in STAGES}
        self._batch_size = self._histogram(defined.BATCH_SIZE)
        self._batch_seconds = self._histogram(defined.BATCH_SECONDS)
        self._flushes = self._made(Counter, defined.FLUSHES)
        self._refused = self._made(Counter, defined.REFUSED)
        self._dropped = self._made(Counter, defined.DROPPED)
        self._decode_failures = self._made(Counter, defined.DECODE_FAILURES)
        self._score = self._histogram(defined.SCORE)
        self._radius = self._histogram(defined.RADIUS)
        self._fixes = self._made(Counter, defined.FIXES)
        self._track_seconds = self._histogram(defined.TRACK_SECONDS)
        self._swaps = self._made(Counter, defined.SWAPS)
        self._swap_seconds = self._histogram(defined.SWAP_SECONDS)
        self._made(Gauge, defined.BUILD).labels(__version__).set(1)
        self._start_at_zero()

    def request_begun(self) -> None:
        """A request has arrived."""
        self._in_flight.inc()

    def request_ended(self, route: str, method: str, status: int, seconds: float) -> None:
        """A request was answered.

        Args:
            route: its template, never what the client sent.
            method: as the client sent it.
            status: of the answer.
            seconds: how long it took.
        """
        self._in_flight.dec()
        self._requests.labels(route, method if method in _METHODS else "other", str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def rpc_ended(self, method: str, code: str) -> None:
        """A gRPC call was answered.

        Args:
            method: full name, of a method that the server has.
            code: name of the status code, such as ``OK``.
        """
        self._rpcs.labels(method, code).inc()

    def photo(self) -> "PhotoOutcome":
        """A context in which one photo is answered: counts what becomes of it when that fails."""
        return PhotoOutcome(self)

    def photo_failed(self, error: BaseException) -> None:
        """A photo was not answered."""
        if isinstance(error, RejectedError):
            self._refused.labels(error.reason).inc()
        elif isinstance(error, ImageError):
            self._decode_failures.labels(error.code if error.code in _IMAGE_CODES else "other").inc()
        elif isinstance(error, RequestError) and error.code in ("not_ready", "draining"):
            self._refused.labels(error.code).inc()
        elif isinstance(error, RequestError) and error.code == "deadline_exceeded":
            self._dropped.labels("deadline").inc()
        elif isinstance(error, asyncio.CancelledError):
            self._dropped.labels("client_left").inc()

    def stage(self, name: str, seconds: float) -> None:
        """A stage that is not part of an answer."""
        self._stage_seconds[name].observe(seconds)

    def answered(self, located: Located) -> None:
        """A photo, or a descriptor, was localized."""
        timings = located.timings
        seconds = self._stage_seconds
        # A search by descriptor has neither of these two.
        if timings.describe_ms > 0.0:
            seconds["decode"].observe(timings.decode_ms * 1e-3)
            seconds["describe"].observe(timings.describe_ms * 1e-3)
        seconds["queue"].observe(timings.queue_ms * 1e-3)
        seconds["search"].observe(timings.search_ms * 1e-3)
        if timings.rerank_ms is not None:
            seconds["rerank"].observe(timings.rerank_ms * 1e-3)
        seconds["fix"].observe(timings.fix_ms * 1e-3)
        self._fixes.labels(located.status.value).inc()
        if located.matches:
            self._score.observe(max(match.score for match in located.matches))
        if located.fix is not None:
            self._radius.observe(located.fix.radius_m)

    def track_step(self, seconds: float) -> None:
        """A track has taken in a frame."""
        self._track_seconds.observe(seconds)

    def batch(self, finished: FinishedBatch) -> None:
        """The model has done a batch."""
        self._batch_size.observe(finished.size)
        self._batch_seconds.observe(finished.seconds)
        self._flushes.labels(finished.reason).inc()

    def timed_swap(self, swap: Callable[[str], None]) -> Callable[[str], None]:
        """The same swap, counted and timed."""

        def timed(version: str) -> None:
            with self._one_swap():
                swap(version)

        return timed

    @contextlib.contextmanager
    def _one_swap(self) -> Iterator[None]:
        begun = time.perf_counter()
        result = "refused"
        try:
            yield
            result = "served"
        finally:
            self._swaps.labels(result).inc()
            self._swap_seconds.observe(time.perf_counter() - begun)

    def _made(self, kind: type[Metric], definition: Definition) -> Metric:
        return kind(definition.name, definition.help, definition.label_names, registry=self.registry)

    def _histogram(self, definition: Definition) -> Histogram:
        return Histogram(
            definition.name, definition.help, definition.label_names, buckets=definition.buckets, registry=self.registry
        )

    def _start_at_zero(self) -> None:
        """Make the series that are known beforehand, so that the first refusal is an increase and not a beginning."""
        for metric, values in (
            (self._flushes, ("idle", "busy", "full", "delay")),
            (self._refused, ("queue", "deadline", "not_ready", "draining")),
            (self._dropped, ("deadline", "client_left")),
            (self._decode_failures, (*sorted(_IMAGE_CODES), "other")),
            (self._fixes, ("LOCATED", "AMBIGUOUS", "NO_MATCH")),
            (self._swaps, ("served", "refused")),
        ):
            for value in values:
                metric.labels(value)


class PhotoOutcome:
    """See `Metrics.photo`; a class, because a generator costs four times as much."""

    __slots__ = ("_metrics",)

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def __enter__(self) -> None:
        """Nothing is counted yet."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Count a failure, and let it go on."""
        if error is not None:
            self._metrics.photo_failed(error)


class StateCollector(Collector):
    """Reads the state of a server at each scrape; requests pay nothing for it.

    Args:
        read: the state, from any thread.
    """

    def __init__(self, read: Callable[[], ServerState]) -> None:
        self._read = read

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Names only, for the registry."""
        return [_family(definition) for definition in _STATE_GAUGES]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The numbers as they are now."""
        state = self._read()
        for definition, samples_of in _STATE_GAUGES.items():
            family = _family(definition)
            for labels, value in samples_of(state):
                family.add_metric(labels, value)
            yield family


class JobCollector(Collector):
    """Counts the jobs of a server at each scrape.

    Args:
        count: counts them, from any thread.
    """

    def __init__(self, count: Callable[[], JobCounts]) -> None:
        self._count = count

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """The name only, for the registry."""
        return [_family(defined.JOBS)]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The numbers as they are now; none when the jobs cannot be read, which must not cost the other metrics."""
        family = _family(defined.JOBS)
        try:
            counts = self._count()
        except SightfixError as error:
            _log.warning("the jobs cannot be counted: %s", error)
        else:
            for labels in itertools.product(get_args(JobKind), get_args(JobState)):
                family.add_metric(labels, counts.get(labels, 0))
        yield family


def _family(definition: Definition) -> GaugeMetricFamily:
    return GaugeMetricFamily(definition.name, definition.help, labels=definition.label_names)


def _model(state: ServerState) -> list[_Sample]:
    model = state.model
    if model is None:
        return []
    return [((model.name, model.fingerprint, model.precision, model.provider, model.runtime, model.device), 1)]


def _index(state: ServerState) -> list[_Sample]:
    return [((state.index.name, state.index.version, state.index.type), 1)] if state.index is not None else []


_STATE_GAUGES: Final[Mapping[Definition, Callable[[ServerState], Sequence[_Sample]]]] = {
    defined.QUEUE_DEPTH: lambda state: [((lane,), depth) for lane, depth in state.queue_depth.items()],
    defined.QUEUE_LIMIT: lambda state: [((), state.queue_limit)],
    defined.TRACKS: lambda state: [((), state.tracks)],
    defined.MODEL: _model,
    defined.INDEX: _index,
    defined.INDEX_VECTORS: lambda state: [((), state.index.size)] if state.index is not None else [],
    defined.CANARY_OK: lambda state: [((), float(state.healthy))],
    defined.CANARY_TIMESTAMP: lambda state: [((), state.probed_at)] if state.probed_at is not None else [],
    defined.READY: lambda state: [((), float(state.ready))],
    defined.BUILDING: lambda state: [((), float(state.engine_building))],
}
