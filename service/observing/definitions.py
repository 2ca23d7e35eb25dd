"""Every metric of the server: its name, its labels and their values, and its buckets.

Base units, as Prometheus recommends. No label ever holds what a client chose, so the number of series is bounded.
"""

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric.

    Attributes:
        name: as it is scraped; a counter's ends in ``_total``.
        kind: counter, gauge or histogram.
        help: one sentence, without a full stop.
        labels: each label's name, with what its value may be, for the reference page.
        buckets: upper bounds of a histogram.
        why: why these buckets, for the reference page.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[tuple[str, str], ...] = ()
    buckets: tuple[float, ...] = ()
    why: str = ""

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels, in order."""
        return tuple(name for name, _ in self.labels)


# From a stage that is done at once to the longest deadline a request may ask for and more.
SECONDS: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
_SECONDS_WHY: Final = (
    "a search takes 1 ms, a photo on a CPU 15 to 500 ms, the default deadline is 30 s: fine steps where a service "
    "level is usually set (10 to 250 ms)"
)

REQUESTS = Definition(
    "sightfix_http_requests_total",
    "counter",
    "HTTP requests answered",
    (
        ("route", "the route's template, `static` for files of the web page, or `unmatched`"),
        ("method", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS or `other`"),
        ("status", "the answer's status; 499 when the client left before it"),
    ),
)
REQUEST_SECONDS = Definition(
    "sightfix_request_duration_seconds",
    "histogram",
    "From a request's headers to the last byte of its answer",
    (("route", "as above"),),
    SECONDS,
    _SECONDS_WHY,
)
RPCS = Definition(
    "sightfix_grpc_requests_total",
    "counter",
    "gRPC calls answered",
    (("method", "full name of a method that the server has, or `unmatched`"), ("code", "name of the status code")),
)
IN_FLIGHT = Definition("sightfix_inflight_requests", "gauge", "HTTP requests being answered now")
STAGE_SECONDS = Definition(
    "sightfix_stage_duration_seconds",
    "histogram",
    "Where a photo's time went; describe and search are those of its whole batch",
    (("stage", "decode, queue, describe, search, rerank or fix"),),
    SECONDS,
    _SECONDS_WHY,
)
QUEUE_DEPTH = Definition(
    "sightfix_queue_depth",
    "gauge",
    "Photos that were admitted and wait, decoded or not; those in the model are not counted",
    (("lane", "robot or bulk"),),
)
QUEUE_LIMIT = Definition("sightfix_queue_limit", "gauge", "Photos that may be admitted at once (SIGHTFIX_MAX_WAITING)")
BATCH_SIZE = Definition(
    "sightfix_batch_size",
    "histogram",
    "Photos that the model took at once",
    (),
    (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
    "powers of two up to the largest SIGHTFIX_MAX_BATCH",
)
BATCH_SECONDS = Definition(
    "sightfix_batch_duration_seconds",
    "histogram",
    "How long the model's thread took for a batch: describe, search and fix",
    (),
    SECONDS,
    _SECONDS_WHY,
)
FLUSHES = Definition(
    "sightfix_batch_flush_total",
    "counter",
    "Batches, by why they were not larger",
    (
        (
            "reason",
            "idle: nothing else waited; busy: what had arrived meanwhile; full; delay: SIGHTFIX_MAX_DELAY_MS over",
        ),
    ),
)
REFUSED = Definition(
    "sightfix_refused_total",
    "counter",
    "Photos that were not admitted, answered with 429 or 503",
    (("reason", "queue: too many wait; deadline: the answer would be too late; not_ready; draining"),),
)
DROPPED = Definition(
    "sightfix_dropped_total",
    "counter",
    "Photos that were admitted and not answered",
    (("reason", "deadline: it passed; client_left"),),
)
DECODE_FAILURES = Definition(
    "sightfix_decode_failures_total",
    "counter",
    "Photos that could not be decoded",
    (("code", "code of the problem: image_undecodable, too_many_pixels, unsupported_media_type, …, or `other`"),),
)
SCORE = Definition(
    "sightfix_best_match_score",
    "histogram",
    "Cosine of an answer's best match; when it sinks over days, the place or the camera has changed",
    (),
    (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0),
    "cosines of photos of one place lie between 0.5 and 1: steps of 0.05 there",
)
RADIUS = Definition(
    "sightfix_fix_radius_meters",
    "histogram",
    "The 68 % radius of fixes",
    (),
    (1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0),
    "from the least that is claimed without a calibration (5 m) and below, over the confidence's 25 m, to a whole town",
)
FIXES = Definition(
    "sightfix_fixes_total", "counter", "Answers, by their status", (("status", "LOCATED, AMBIGUOUS or NO_MATCH"),)
)
TRACKS = Definition("sightfix_tracks_open", "gauge", "Tracks that are open, of gRPC streams and over HTTP")
TRACK_SECONDS = Definition(
    "sightfix_track_step_duration_seconds",
    "histogram",
    "What a track took for one frame, beside localizing it",
    (),
    (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5),
    "a step takes about 1 ms, one of a lost track 5 to 50",
)
MODEL = Definition(
    "sightfix_model_info",
    "gauge",
    "Always 1: the model that describes photos",
    tuple((name, "as in GET /info") for name in ("name", "fingerprint", "precision", "provider", "runtime", "device")),
)
INDEX = Definition(
    "sightfix_index_info",
    "gauge",
    "Always 1: the place index that is searched",
    (("name", "of the index"), ("version", "that is served"), ("type", "of search")),
)
INDEX_VECTORS = Definition("sightfix_index_vectors", "gauge", "References in the version that is served")
SWAPS = Definition(
    "sightfix_index_swap_total",
    "counter",
    "New versions that were tried",
    (("result", "served, or refused: the version before goes on"),),
)
SWAP_SECONDS = Definition(
    "sightfix_index_swap_duration_seconds",
    "histogram",
    "From finding a new version to serving or refusing it, during which the version before serves",
    (),
    (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
    "a million references are hashed and opened in some seconds",
)
JOBS = Definition(
    "sightfix_jobs",
    "gauge",
    "Re-indexing jobs of the server; only where it accepts jobs",
    (
        ("kind", "full, append or remove"),
        ("state", "PENDING, RUNNING, PUBLISHING, SUCCEEDED, FAILED, CANCELLING or CANCELLED"),
    ),
)
CANARY_OK = Definition(
    "sightfix_canary_ok",
    "gauge",
    "1 while a health probe (model and index find a known reference) has succeeded lately",
)
CANARY_TIMESTAMP = Definition(
    "sightfix_canary_timestamp_seconds", "gauge", "When the health probe succeeded last, seconds since 1970"
)
READY = Definition("sightfix_ready", "gauge", "1 while /readyz says 200")
BUILDING = Definition(
    "sightfix_engine_building", "gauge", "1 while an engine is compiled for the GPU, which takes minutes"
)
BUILD = Definition("sightfix_build_info", "gauge", "Always 1: the version of sightfix", (("version", "of sightfix"),))

DEFINITIONS: Final = (
    *(REQUESTS, REQUEST_SECONDS, IN_FLIGHT, RPCS, STAGE_SECONDS),
    *(QUEUE_DEPTH, QUEUE_LIMIT, BATCH_SIZE, BATCH_SECONDS, FLUSHES, REFUSED, DROPPED, DECODE_FAILURES),
    *(SCORE, RADIUS, FIXES, TRACKS, TRACK_SECONDS),
    *(MODEL, INDEX, INDEX_VECTORS, SWAPS, SWAP_SECONDS, JOBS),
    *(CANARY_OK, CANARY_TIMESTAMP, READY, BUILDING, BUILD),
)
