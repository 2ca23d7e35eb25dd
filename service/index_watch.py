"""Watches an index's CURRENT file, and has a newly published version served without a restart."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retrieval.errors import SightfixError
from retrieval.index_folder import VERSIONS_NAME, current_version

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
    """Looks at CURRENT every so often, on a thread of its own.

    A version that was refused is tried once; it is tried again only after CURRENT has named another one.

    Args:
        index_folder: of the index.
        version: that is served now.
        swap: opens, checks and serves the version in a folder; raises to refuse it.
        interval_s: seconds between two looks.
    """

    def __init__(self, index_folder: Path, version: str, swap: Callable[[Path], None], interval_s: float) -> None:
        self._folder = index_folder
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

    def look(self) -> None:
        """Look at CURRENT now, and serve what it names if that is new."""
        with self._looking:
            try:
                version = current_version(self._folder)
            except SightfixError as error:
                # CURRENT is replaced in one step, so this is a hand's doing; the served version goes on.
                _log.warning("%s", error)
                return
            if version == self._seen:
                return
            self._seen = version
            self.last_swap = self._try(version)

    def _try(self, version: str) -> SwapReport:
        try:
            self._swap(self._folder / VERSIONS_NAME / version)
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
