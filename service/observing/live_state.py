"""The numbers that are read when somebody scrapes: how deep the queue is, what is served, whether the canary sings."""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, get_args

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from retrieval.errors import SightfixError
from service.jobs.model import JobKind, JobState
from service.observing import definitions as defined
from service.observing.definitions import Definition
from service.serving.admission import LANES

if TYPE_CHECKING:
    from service.serving.live_localizer import LiveLocalizer

_log = logging.getLogger("sightfix.service")

# Label values and the number.
_Sample = tuple[Sequence[str], float]


class LiveState(Collector):
    """Reads a live localizer; nothing is spent on requests.

    Args:
        live: what to read, from any thread.
    """

    def __init__(self, live: "LiveLocalizer") -> None:
        self._live = live

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Names only, for the registry."""
        return [_family(definition) for definition, _ in _READERS]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The numbers as they are now."""
        for definition, read in _READERS:
            family = _family(definition)
            for labels, value in read(self._live):
                family.add_metric(labels, value)
            yield family


class JobStates(Collector):
    """Counts the jobs of a server.

    Args:
        counts: how many there are of each kind and state; called for every scrape, from any thread.
    """

    def __init__(self, counts: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        self._counts = counts

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """The name only, for the registry."""
        return [_family(defined.JOBS)]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The numbers as they are now; none when the jobs cannot be read, which must not cost the other metrics."""
        family = _family(defined.JOBS)
        try:
            counts = self._counts()
        except SightfixError as error:
            _log.warning("the jobs cannot be counted: %s", error)
        else:
            for labels in itertools.product(get_args(JobKind), get_args(JobState)):
                family.add_metric(labels, counts.get(labels, 0))
        yield family


def _family(definition: Definition) -> GaugeMetricFamily:
    return GaugeMetricFamily(definition.name, definition.help, labels=definition.label_names)


def _queue_depth(live: "LiveLocalizer") -> list[_Sample]:
    return [((lane,), live.batcher.waiting.depth(lane)) for lane in LANES]


def _queue_limit(live: "LiveLocalizer") -> list[_Sample]:
    return [((), live.batcher.waiting.limit)]


def _tracks(live: "LiveLocalizer") -> list[_Sample]:
    return [((), live.tracks.count)]


def _model(live: "LiveLocalizer") -> list[_Sample]:
    localizer = live.localizer
    if localizer is None:
        return []
    model = localizer.model_answer
    return [((model.name, model.fingerprint, model.precision, model.provider, model.runtime, model.device), 1)]


def _index(live: "LiveLocalizer") -> list[_Sample]:
    index = live.localizer.index_answer if live.localizer is not None else None
    return [((index.name, index.version, index.type), 1)] if index else []


def _index_vectors(live: "LiveLocalizer") -> list[_Sample]:
    return [((), live.localizer.index_answer.size)] if live.localizer is not None else []


def _canary_ok(live: "LiveLocalizer") -> list[_Sample]:
    return [((), float(live.localizer is not None and live.canary_watch.problem is None))]


def _canary_timestamp(live: "LiveLocalizer") -> list[_Sample]:
    sang_at = live.canary_watch.sang_at
    return [] if sang_at is None else [((), sang_at)]


def _ready(live: "LiveLocalizer") -> list[_Sample]:
    return [((), float(live.readiness.state == "ready"))]


def _building(live: "LiveLocalizer") -> list[_Sample]:
    return [((), float(live.engine_building))]


_READERS: tuple[tuple[Definition, Callable[["LiveLocalizer"], list[_Sample]]], ...] = (
    (defined.QUEUE_DEPTH, _queue_depth),
    (defined.QUEUE_LIMIT, _queue_limit),
    (defined.TRACKS, _tracks),
    (defined.MODEL, _model),
    (defined.INDEX, _index),
    (defined.INDEX_VECTORS, _index_vectors),
    (defined.CANARY_OK, _canary_ok),
    (defined.CANARY_TIMESTAMP, _canary_timestamp),
    (defined.READY, _ready),
    (defined.BUILDING, _building),
)
