"""Whether a server can answer: its readiness, and a health probe of its model and index.

The probe looks for a known reference in the index. It runs on the thread that owns the model, between two batches, so a
model that hangs shows as a probe that does not return. Metrics, settings and codes call it the canary.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from retrieval.errors import ImageError, PlaceIndexError, SightfixError
from retrieval.images import ImageLimits, RgbImage, read_image
from retrieval.index.sampling import evenly_spaced
from retrieval.localize.localizer import Localizer

State = Literal["loading", "ready", "unhealthy", "failed", "stopping"]
_log = logging.getLogger("sightfix.service")

# Photos that are tried before a stored descriptor is taken: references need not be where they were indexed.
_PHOTOS_TRIED: Final = 8

# The same photo described on another provider, or in another precision, differs a little.
_MIN_SCORE: Final = 0.95

_SAME: Final = 0.01

# A failed batch has the probe run at once; but not after every one of a hundred failed batches.
_MIN_PAUSE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the server can answer, and why not."""

    state: State
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """The result of a probe.

    Attributes:
        reference_id: the reference that was looked for.
        described: whether its photo was described; else its stored descriptor was searched.
        score: cosine of the best match.
    """

    reference_id: str
    described: bool
    score: float


@dataclass(frozen=True, slots=True)
class Probe:
    """What every probe of one version looks for.

    Attributes:
        row: of the reference in the index.
        image: its photo, kept in memory in case the file changes; None when no photo could be read.
    """

    row: int
    image: RgbImage | None


def choose_probe(localizer: Localizer, limits: ImageLimits) -> Probe:
    """A reference whose photo can be read, if there is one.

    Args:
        localizer: whose model and index.
        limits: of encoded images.
    """
    index = localizer.place_index
    rows = evenly_spaced(index.count, _PHOTOS_TRIED)
    for row, reference in zip(rows, index.references(rows), strict=True):
        try:
            image = read_image(reference.path, localizer.describer.bundle.preprocessing, limits)
        except ImageError:
            continue
        return Probe(int(row), image)
    return Probe(int(rows[0]), None)


def run_probe(localizer: Localizer, probe: Probe) -> ProbeReport:
    """Look for the probe's reference in the index; call it on the thread that owns the model.

    Args:
        localizer: whose model and index.
        probe: chosen for this index.

    Raises:
        PlaceIndexError: it is not found (``canary_failed``).
    """
    index, describer = localizer.place_index, localizer.describer
    stored = index.descriptors(np.array([probe.row]))
    if probe.image is not None:
        descriptor = index.whitened(describer.describe([probe.image]))
    else:
        # Its descriptor cannot be compared with anything, but a model that hangs or is lost shows.
        preprocessing = describer.bundle.preprocessing
        describer.describe(np.zeros((1, preprocessing.height, preprocessing.width, 3), np.uint8))
        descriptor = stored
    score = float(index.search_whitened(descriptor, 1).scores[0, 0])
    own = float((descriptor[0] * stored[0]).sum())
    name = index.references([probe.row])[0].id
    # A copy of the photo may be found in its place: then the scores are equal.
    if not (own >= _MIN_SCORE and abs(score - own) <= _SAME):
        raise PlaceIndexError(
            f"the health probe failed: reference {name!r} is described with a cosine of {own:.3f} to its stored "
            f"descriptor, and the best match has {score:.3f}",
            where=index.where,
            remedy="The photo has changed since it was indexed, or model and index do not fit: index the photos again",
            code="canary_failed",
        )
    return ProbeReport(name, probe.image is not None, score)


class HealthProbe:
    """Runs the probe at intervals, and knows when it last succeeded.

    Args:
        on_owner_thread: runs something on the thread that owns the model, between two batches.
        run: the probe; raises when model and index do not find what they should.
        interval_s: seconds between two runs.
        max_age_s: the server is not ready when the last success is older.
        hung_after_s: a run that takes longer will never return; the process should be restarted.
        clock: monotonic seconds.

    Attributes:
        succeeded_at: seconds since 1970; None before the first success.
    """

    def __init__(
        self,
        on_owner_thread: Callable[[Callable[[], None]], None],
        run: Callable[[], object],
        *,
        interval_s: float,
        max_age_s: float,
        hung_after_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_owner_thread = on_owner_thread
        self._run = run
        self._interval_s = interval_s
        self._max_age_s = max_age_s
        self._hung_after_s = hung_after_s
        self._clock = clock
        self._pending_since: float | None = None
        self._succeeded: float | None = None
        self._failure: str | None = None
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="probe", daemon=True)
        self.succeeded_at: float | None = None

    def start(self) -> None:
        """Begin, after the probe that loading ends with."""
        self.record_success()
        self._thread.start()

    def stop(self) -> None:
        """Run no more probes."""
        self._stopped.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def probe_now(self) -> None:
        """Run the probe without waiting for the interval: a batch has failed."""
        self._wake.set()

    def record_success(self) -> None:
        """Note that a probe has succeeded."""
        if self._failure is not None:
            _log.info("the health probe succeeds again")
        self._succeeded, self._failure, self.succeeded_at = self._clock(), None, time.time()

    @property
    def problem(self) -> str | None:
        """Why photos should go elsewhere, or None."""
        if self._failure is not None:
            return self._failure
        age_s = self._clock() - self._succeeded if self._succeeded is not None else 0.0
        if age_s > self._max_age_s:
            return f"no health probe has succeeded for {age_s:.0f} s: the model hangs, or is far too slow"
        return None

    @property
    def hung(self) -> str | None:
        """Why the process should be restarted, or None."""
        since = self._pending_since
        waited_s = self._clock() - since if since is not None else 0.0
        return f"the model has not responded for {waited_s:.0f} s" if waited_s > self._hung_after_s else None

    def request(self) -> None:
        """Queue a run of the probe, unless one is pending."""
        if self._pending_since is None:
            self._pending_since = self._clock()
            self._on_owner_thread(self._run_once)

    def _run_once(self) -> None:
        """On the owner thread."""
        try:
            self._run()
        except SightfixError as error:
            self._fail(str(error))
        except Exception as error:
            _log.exception("the health probe failed")
            self._fail(f"the health probe failed ({type(error).__name__}); the log says more")
        else:
            self.record_success()
        finally:
            self._pending_since = None

    def _fail(self, reason: str) -> None:
        if self._failure is None:
            _log.error("not ready: %s", reason)
        self._failure = reason

    def _loop(self) -> None:
        overdue = False
        while not self._stopped.is_set():
            woken = self._wake.wait(min(self._interval_s, self._max_age_s))
            self._wake.clear()
            if self._stopped.is_set():
                return
            self.request()
            if not overdue and self._failure is None and self.problem is not None:
                _log.error("not ready: %s", self.problem)
            overdue = self.problem is not None
            if woken:
                self._stopped.wait(_MIN_PAUSE_S)
