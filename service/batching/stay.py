"""How long an image stays inside, from being let in to its answer, by how many were ahead of it.

The model's own a·n + b leaves out decoding, and that both share the same cores. What really happened knows it all.
"""

import math
from typing import Final

from service.batching.duration import BatchDuration

# Standard deviations of a normal distribution: one in a thousand stays longer. Whoever is let in should be answered.
_NEARLY_ALL: Final = 3.1
# Of the weight that a stay has when the next is observed.
_MEMORY: Final = 0.97
_MOST_SPREAD: Final = 1.0

# Caution grows with every image that was let in and came too late, and wears off with those in time: at these rates it
# settles where about one in 450 is too late, whatever the machine does.
_MORE_CAUTION: Final = 1.25
_LESS_CAUTION: Final = 0.9995
_MOST_CAUTION: Final = 4.0


class Stay:
    """A line through recent stays, with their spread around it."""

    def __init__(self) -> None:
        self._mean = BatchDuration(first_guess_s=0.0)
        self._spread = 0.0
        self._shortest: float | None = None
        self._caution = 1.0

    def observe(self, ahead: int, seconds: float, *, too_late: bool = False) -> None:
        """Take a stay into account; also of an image whose deadline passed, which stayed at least so long.

        Args:
            ahead: how many were ahead when it was let in.
            seconds: until it was answered.
            too_late: its deadline passed.
        """
        factor = _MORE_CAUTION if too_late else _LESS_CAUTION
        self._caution = min(max(self._caution * factor, 1.0), _MOST_CAUTION)
        expected = self._mean.predict(ahead + 1)
        if expected > 0.0:
            error = min(abs(seconds / expected - 1.0), _MOST_SPREAD)
            self._spread = _MEMORY * self._spread + (1.0 - _MEMORY) * error**2
        self._mean.observe(ahead + 1, seconds)
        self._shortest = seconds if self._shortest is None else min(self._shortest, seconds)

    def predict(self, ahead: int) -> float:
        """Seconds within which 999 of 1,000 images with so many ahead are answered; 0 before anything was observed."""
        return self._mean.predict(ahead + 1) * (1.0 + _NEARLY_ALL * math.sqrt(self._spread)) * self._caution

    @property
    def shortest_s(self) -> float:
        """The shortest stay ever seen, seconds; 0 before any."""
        return self._shortest or 0.0
