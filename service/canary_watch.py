"""Has the canary sung lately? A model that hangs, or answers nonsense, is otherwise seen by its users first.

The canary sings on the thread that owns the model, between two batches: when that thread hangs, it falls silent.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from retrieval.errors import SightfixError

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
