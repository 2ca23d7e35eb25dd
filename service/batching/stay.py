"""How long an image stays inside, from being let in to its answer, by how many were ahead of it.

The model's own a·n + b leaves out decoding, and that both share the same cores. What really happened knows it all.
"""

import heapq
from collections import deque
from typing import Final

from service.batching.duration import BatchDuration

# How many stays are remembered: some seconds' worth under load, so that a bad moment is forgotten soon.
_REMEMBERED: Final = 256
# Of so many or more, the longest one does not count: a single odd one is no rule, and a stall holds up many.
_MANY: Final = 32
# An image whose deadline passed would have stayed longer than it did, nobody knows by how much.
_TOO_LATE: Final = 1.25
# Of the line: what is left for what nobody foresees, such as the machine's other work. A longer queue would gain
# nothing, for batches are large long before.
_HEADROOM: Final = 1.3
# With more ahead than anybody had lately, the line is believed only with so much more of its slope: a crowd that comes
# all at once also slows down whoever is inside.
_UNSEEN: Final = 1.5


class Stay:
    """A line through recent stays, and what has to be added to it so that it nearly always suffices.

    The addition is the second most that recent stays were longer than the line said, in seconds and not as a factor:
    what holds an image up, such as other work on the same cores, holds up all alike.
    """

    def __init__(self) -> None:
        self._mean = BatchDuration(first_guess_s=0.0)
        self._recent: deque[tuple[int, float]] = deque(maxlen=_REMEMBERED)
        self._most_ahead = 0
        self._addition_s = 0.0
        self._shortest: float | None = None

    def observe(self, ahead: int, seconds: float, *, too_late: bool = False) -> None:
        """Take a stay into account; also of an image whose deadline passed, which stayed at least so long.

        Args:
            ahead: how many were ahead when it was let in.
            seconds: until it was answered.
            too_late: its deadline passed.
        """
        longer = seconds * _TOO_LATE if too_late else seconds
        self._recent.append((ahead, longer - self._mean.predict(ahead + 1) if self._shortest is not None else 0.0))
        self._most_ahead = max(seen for seen, _ in self._recent)
        few = 2 if len(self._recent) >= _MANY else 1
        self._addition_s = max(heapq.nlargest(few, (excess for _, excess in self._recent))[-1], 0.0)
        self._mean.observe(ahead + 1, seconds)
        self._shortest = seconds if self._shortest is None else min(self._shortest, seconds)

    def predict(self, ahead: int) -> float:
        """Seconds within which nearly all images with so many ahead are answered; 0 before anything was observed."""
        line = self._mean.predict(ahead + 1)
        if ahead > self._most_ahead:
            line += (_UNSEEN - 1.0) * (line - self._mean.predict(self._most_ahead + 1))
        return _HEADROOM * line + self._addition_s

    @property
    def shortest_s(self) -> float:
        """The shortest stay ever seen, seconds; 0 before any."""
        return self._shortest or 0.0
