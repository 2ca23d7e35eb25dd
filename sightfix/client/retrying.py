"""When to try again: exponential backoff with full jitter, `Retry-After` honoured, never beyond the deadline.

A request is repeated only where that does no harm. Refused before anything was done (429, 503), or never delivered:
always. Broken off on the way (a lost connection, 408, 502): only what may be done twice. Never after a time-out: a
server that is too slow is not helped by asking it again.

The jitter is the "full" one of Brooker, Exponential Backoff And Jitter, AWS Architecture Blog 2015: clients refused
together do not come back together.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from retrieval.errors import ParameterError, SightfixError
from sightfix.client.errors import CONNECTION_LOST, UNREACHABLE, ProblemError

# Overload, not ready.
REFUSED_STATUS: Final = frozenset({429, 503})
# A body that came too slowly, a proxy whose server restarts. Not 504: the deadline has passed.
BROKEN_STATUS: Final = frozenset({408, 502})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently to try again.

    Attributes:
        max_attempts: requests in all; 1 never tries again.
        base_s: the first pause is at most so long, each further one twice that.
        max_pause_s: of one backoff; a longer `Retry-After` is honoured nevertheless.
        total_s: no pause ends later than so long after the call began. A call's own deadline holds, too.

    Raises:
        ParameterError: a number outside its range.
    """

    max_attempts: int = 4
    base_s: float = 0.2
    max_pause_s: float = 5.0
    total_s: float = 30.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1 or min(self.base_s, self.max_pause_s, self.total_s) < 0.0:
            raise ParameterError(
                f"{self} cannot be followed", remedy="Give at least one attempt, and no time below 0 seconds"
            )


NEVER_AGAIN: Final = RetryPolicy(max_attempts=1)


class Attempts:
    """The attempts of one call. Knows no network and does not sleep: it says for how long.

    Args:
        policy: how often and how patiently.
        deadline_s: seconds from now after which the answer is of no use; None for none.
        clock: seconds that only grow.
        uniform: a random number between two.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        deadline_s: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._uniform = uniform
        self._failures = 0
        begun = clock()
        self._deadline = None if deadline_s is None else begun + deadline_s
        self._end = begun + policy.total_s if deadline_s is None else begun + min(policy.total_s, deadline_s)

    @property
    def left_s(self) -> float | None:
        """Seconds until the deadline, at least a millisecond; None without one."""
        return None if self._deadline is None else max(self._deadline - self._clock(), 1e-3)

    def pause_after(self, error: SightfixError, *, repeatable: bool = True) -> float:
        """How long to wait before trying again.

        Args:
            error: why the last attempt failed.
            repeatable: whether the request may be done twice.

        Returns:
            seconds.

        Raises:
            SightfixError: the error itself, when trying again makes no sense or there is no time left for it.
        """
        self._failures += 1
        if self._failures >= self._policy.max_attempts or not _may_repeat(error, repeatable):
            raise error
        ceiling = min(self._policy.base_s * 2.0 ** (self._failures - 1), self._policy.max_pause_s)
        asked = error.retry_after_s if isinstance(error, ProblemError) else None
        pause = self._uniform(0.0, ceiling) + (asked or 0.0)
        if self._clock() + pause >= self._end:
            raise error
        return pause


def _may_repeat(error: SightfixError, repeatable: bool) -> bool:
    if isinstance(error, ProblemError):
        return error.status in REFUSED_STATUS or (repeatable and error.status in BROKEN_STATUS)
    return error.code == UNREACHABLE or (repeatable and error.code == CONNECTION_LOST)
