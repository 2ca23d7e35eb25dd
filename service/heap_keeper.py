"""Gives back what the heap has freed, every so often: a server's memory should not tell its busiest minute for ever."""

import threading
from collections.abc import Callable
from typing import Final

from retrieval.heap import give_back_free_pages

# One turn holds the heap for some milliseconds.
EVERY_S: Final = 60.0
# Python's requests, the decoders and the model: more arenas only hold more of what was freed.
ARENAS: Final = 2


class HeapKeeper:
    """Does so on a thread of its own.

    Args:
        every_s: seconds between two turns.
        give_back: what is done in a turn.
    """

    def __init__(self, every_s: float = EVERY_S, give_back: Callable[[], None] = give_back_free_pages) -> None:
        self._every_s = every_s
        self._give_back = give_back
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="heap", daemon=True)

    def start(self) -> None:
        """Begin with what loading has left."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def _keep(self) -> None:
        while not self._stopped.is_set():
            self._give_back()
            self._stopped.wait(self._every_s)
