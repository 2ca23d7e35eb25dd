"""How fast refusals may leave: making them takes the processor from the model, and some clients ask again at once."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

# One costs almost a millisecond of a processor that the model shares; so they take a fifth of a core at most.
_PER_SECOND: Final = 200.0
# So many at once are no storm: a full house refuses a crowd that came together without delay.
_AT_ONCE: Final = 200
# No refusal asks a client to come back sooner than after this.
_LONGEST_S: Final = 1.0


class RefusalPace:
    """Holds a refusal back when too many left lately (a leaky bucket, as ITU-T I.371's generic cell rate algorithm).

    A client that asks again as soon as it was refused is slowed down to one request a second, however many there are;
    whoever waits as long as it was told notices nothing. Not thread-safe: for one event loop.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._full_until = 0.0

    def next_delay_s(self) -> float:
        """Count one more refusal; for how many seconds it is to be held back, 0 to 1."""
        now = self._clock()
        latest = now + _AT_ONCE / _PER_SECOND + _LONGEST_S
        self._full_until = min(max(self._full_until, now) + 1.0 / _PER_SECOND, latest)
        return max(0.0, self._full_until - now - _AT_ONCE / _PER_SECOND)

    async def hold(self) -> None:
        """Wait until one more refusal may leave."""
        delay = self.next_delay_s()
        if delay > 0.0:
            await asyncio.sleep(delay)
