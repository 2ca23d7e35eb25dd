"""Watches which version of an index is current, and has a newly published one served without a restart."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from retrieval.errors import SightfixError, StoreUnavailableError
from retrieval.stores.contract import PlaceIndexStore

_log = logging.getLogger("sightfix.service")


@dataclass(frozen=True, slots=True)
class SwapReport:
    """What became of a version that was published.

    Attributes:
        version: its name.
        result: it is served now, or was refused and the version before goes on.
        reason: why it was refused.
    """

    version: str
    result: Literal["served", "refused"]
    reason: str | None = None


class IndexWatch:
    """Asks the store every so often, on a thread of its own.

    A version that was refused is tried once; it is tried again only after another one was current, when somebody asks
    for it, or where it was the store that could not be asked.

    Args:
        store: of the index.
        name: of the index.
        version: that is served now.
        swap: opens, checks and serves a version; raises to refuse it.
        interval_s: seconds between two looks.
    """

    def __init__(
        self, store: PlaceIndexStore, name: str, version: str, swap: Callable[[str], None], interval_s: float
    ) -> None:
        self._store = store
        self._name = name
        self._seen = version
        self._swap = swap
        self._interval_s = interval_s
        self._stopped = threading.Event()
        self._looking = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self.last_swap: SwapReport | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching; a swap under way is finished."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(60.0)

    def look(self, *, again: bool = False) -> None:
        """Look now, and serve what is current if that is new.

        Args:
            again: try also a version that was refused.
        """
        with self._looking:
            try:
                version = self._store.current(self._name)
            except SightfixError as error:
                # A hand's doing, or an engine that is away; the served version goes on.
                _log.warning("%s", error)
                return
            last = self.last_swap
            refused = last is not None and (last.version, last.result) == (version, "refused")
            if version == self._seen and not (again and refused):
                return
            before, self._seen = self._seen, version
            try:
                self.last_swap = self._try(version)
            except StoreUnavailableError as error:
                _log.warning("version %s is tried again: %s", version, error)
                self._seen = before
                self.last_swap = SwapReport(version, "refused", str(error))

    def _try(self, version: str) -> SwapReport:
        try:
            self._swap(version)
        except StoreUnavailableError:
            raise
        except SightfixError as error:
            _log.error("version %s is not served: %s", version, error)
            return SwapReport(version, "refused", str(error))
        except Exception as error:
            _log.exception("version %s is not served", version)
            return SwapReport(version, "refused", f"{type(error).__name__}; the log says more")
        return SwapReport(version, "served")

    def _watch(self) -> None:
        while not self._stopped.wait(self._interval_s):
            self.look()
