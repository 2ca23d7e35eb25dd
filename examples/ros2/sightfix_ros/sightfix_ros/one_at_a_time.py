"""Works on one frame at a time in a thread, so that the caller never waits."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Frame = TypeVar("Frame")


class OneAtATime(Generic[Frame]):
    """Takes a frame when it has nothing to do and it is time for one; drops it otherwise.

    A frame that waited would be answered too late: the camera brings a newer one.

    Args:
        work: is called with a frame, in a thread of its own. Returns for how many seconds no frame shall be taken.
        max_rate_hz: no more frames a second than this; 0 for no limit.
        clock: monotonic seconds.
    """

    def __init__(
        self, work: Callable[[Frame], float], max_rate_hz: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._work = work
        self._pause_s = 1.0 / max_rate_hz if max_rate_hz > 0.0 else 0.0
        self._clock = clock
        self._next_at = float("-inf")
        self._frame: Frame | None = None
        self._busy = False
        self._stopping = False
        self._changed = threading.Condition()
        self.taken = 0
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="sightfix", daemon=True)
        self._thread.start()

    def offer(self, frame: Frame) -> bool:
        """Take the frame or drop it; returns at once, with whether it was taken."""
        with self._changed:
            now = self._clock()
            if self._busy or self._stopping or now < self._next_at:
                self.dropped += 1
                return False
            self._busy, self._frame, self._next_at = True, frame, now + self._pause_s
            self.taken += 1
            self._changed.notify_all()
            return True

    def stop(self, timeout_s: float = 5.0) -> None:
        """Take no more frames, and wait for the current one."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._busy or self._stopping)
                if not self._busy:
                    return
                frame, self._frame = self._frame, None
            pause_s = 0.0
            try:
                pause_s = self._work(frame)  # type: ignore[arg-type]
            finally:
                with self._changed:
                    self._busy = False
                    self._next_at = max(self._next_at, self._clock() + pause_s)
