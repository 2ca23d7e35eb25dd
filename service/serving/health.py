"""Whether a server can answer."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from retrieval.errors import ImageError, PlaceIndexError, SightfixError
from retrieval.images import ImageLimits, RgbImage, read_image
from retrieval.localize.localizer import Localizer

State = Literal["loading", "ready", "unhealthy", "failed", "stopping"]


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the server can answer, and why not."""

    state: State
    reason: str | None = None


# The canary: does the index still find what is in it? A model and an index that do not fit answer nonsense quietly.

# Photos asked at most before the stored descriptors must do: references need not be where they were indexed.
_PHOTOS_TRIED: Final = 8

# The same photo described on another provider, or in another precision, is a little off.
_MIN_SCORE: Final = 0.95

_SAME: Final = 0.01


@dataclass(frozen=True, slots=True)
class CanaryReport:
    """What the canary did.

    Attributes:
        reference_id: which reference it looked for.
        described: whether its photo was read and described anew; else its stored descriptor was searched.
        score: cosine of what was found.
    """

    reference_id: str
    described: bool
    score: float


@dataclass(frozen=True, slots=True)
class Canary:
    """What to look for, again and again: kept in memory, so that a photo changed on the disk later harms nobody.

    Attributes:
        row: of the reference in the index.
        image: its photo, or None when no photo can be read: its stored descriptor must do.
    """

    row: int
    image: RgbImage | None


def choose_canary(localizer: Localizer, limits: ImageLimits) -> Canary:
    """A reference whose photo can be read, if there is one.

    Args:
        localizer: whose model and index.
        limits: of encoded images.
    """
    index = localizer.place_index
    rows = np.unique(np.linspace(0, index.count - 1, _PHOTOS_TRIED).round().astype(np.int64))
    for row, reference in zip(rows, index.references(rows), strict=True):
        try:
            image = read_image(reference.path, localizer.describer.bundle.preprocessing, limits)
        except ImageError:
            continue
        return Canary(int(row), image)
    return Canary(int(rows[0]), None)


def sing(localizer: Localizer, canary: Canary) -> CanaryReport:
    """Look for the canary's reference in the index; call it on the thread that owns the model.

    Args:
        localizer: whose model and index.
        canary: chosen for this index.

    Raises:
        PlaceIndexError: it is not found (``canary_failed``).
    """
    image = canary.image
    if image is not None:
        return _look(localizer, canary.row, localizer.describer.describe([image]), described=True)
    # Nothing to compare it with, but a model that hangs or is lost shows.
    preprocessing = localizer.describer.bundle.preprocessing
    localizer.describer.describe(np.zeros((1, preprocessing.height, preprocessing.width, 3), np.uint8))
    return _look(localizer, canary.row, localizer.place_index.descriptors(np.array([canary.row])), described=False)


def _look(localizer: Localizer, row: int, descriptor: np.ndarray, *, described: bool) -> CanaryReport:
    index = localizer.place_index
    found = index.search(descriptor, 1)
    score = float(found.scores[0, 0])
    own = float((descriptor[0] * index.descriptors(np.array([row]))[0]).sum())
    name = index.references([row])[0].id
    # A copy of the photo may be found in its place: then the scores are equal.
    if not (own >= _MIN_SCORE and abs(score - own) <= _SAME):
        raise PlaceIndexError(
            f"the canary failed: reference {name!r} is described with a cosine of {own:.3f} to its stored descriptor, "
            f"and the best match has {score:.3f}",
            where=index.where,
            remedy="The photo has changed since it was indexed, or model and index do not fit: index the photos again",
            code="canary_failed",
        )
    return CanaryReport(name, described, score)


# Has the canary sung lately? A model that hangs, or answers nonsense, is otherwise seen by its users first.
#
# The canary sings on the thread that owns the model, between two batches: when that thread hangs, it falls silent.

_log = logging.getLogger("sightfix.service")

# A model that failed a batch is asked at once; but not after every batch of a hundred that fail.
_MIN_PAUSE_S: Final = 1.0


class CanaryWatch:
    """Has the canary sing every so often.

    Args:
        on_owner_thread: runs something on the thread that owns the model, between two batches.
        sing: the song; raises when model and index do not find what they should.
        interval_s: seconds between two songs.
        max_age_s: the last song is too old after this; the server is not ready then.
        hung_after_s: a song that has not ended after this long never will; the process should be restarted.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        on_owner_thread: Callable[[Callable[[], None]], None],
        sing: Callable[[], object],
        *,
        interval_s: float,
        max_age_s: float,
        hung_after_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_owner_thread = on_owner_thread
        self._sing = sing
        self._interval_s = interval_s
        self._max_age_s = max_age_s
        self._hung_after_s = hung_after_s
        self._clock = clock
        self._asked_at: float | None = None  # the song that has been asked for and is not over
        self._heard_at: float | None = None
        self._failure: str | None = None
        self._hurry = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="canary", daemon=True)
        self.sang_at: float | None = None  # seconds since 1970

    def start(self) -> None:
        """Begin to watch, after the song that loading ends with."""
        self.heard()
        self._thread.start()

    def stop(self) -> None:
        """Ask for no more songs."""
        self._stopped.set()
        self._hurry.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def hurry(self) -> None:
        """Have it sing now: a batch has failed."""
        self._hurry.set()

    def heard(self) -> None:
        """It has sung, and sung well."""
        if self._failure is not None:
            _log.info("the canary sings again")
        self._heard_at, self._failure, self.sang_at = self._clock(), None, time.time()

    @property
    def problem(self) -> str | None:
        """Why photos should go elsewhere, or None."""
        if self._failure is not None:
            return self._failure
        silent_s = self._clock() - self._heard_at if self._heard_at is not None else 0.0
        if silent_s > self._max_age_s:
            return f"the canary has not sung for {silent_s:.0f} s: the model hangs, or is far too slow"
        return None

    @property
    def hung(self) -> str | None:
        """Why the process should be restarted, or None."""
        asked_at = self._asked_at
        waited_s = self._clock() - asked_at if asked_at is not None else 0.0
        return f"the model has not come to rest for {waited_s:.0f} s" if waited_s > self._hung_after_s else None

    def ask(self) -> None:
        """Ask for a song, unless the last one is not over."""
        if self._asked_at is None:
            self._asked_at = self._clock()
            self._on_owner_thread(self._song)

    def _song(self) -> None:
        """On the owner thread."""
        try:
            self._sing()
        except SightfixError as error:
            self._fail(str(error))
        except Exception as error:
            _log.exception("the canary failed")
            self._fail(f"the canary failed ({type(error).__name__}); the log says more")
        else:
            self.heard()
        finally:
            self._asked_at = None

    def _fail(self, reason: str) -> None:
        if self._failure is None:
            _log.error("not ready: %s", reason)
        self._failure = reason

    def _watch(self) -> None:
        silent = False
        while not self._stopped.is_set():
            hurried = self._hurry.wait(min(self._interval_s, self._max_age_s))
            self._hurry.clear()
            if self._stopped.is_set():
                return
            self.ask()
            if not silent and self._failure is None and self.problem is not None:
                _log.error("not ready: %s", self.problem)
            silent = self.problem is not None
            if hurried:
                self._stopped.wait(_MIN_PAUSE_S)
