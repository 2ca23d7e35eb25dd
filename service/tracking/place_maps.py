"""The place map of each version of the index that is in use: made once, shared by all tracks, gone with its version."""

import logging
import threading
import time
from weakref import WeakKeyDictionary

from retrieval.searchable_index import SearchablePlaceIndex
from retrieval.tracking import PlaceMap

_log = logging.getLogger("sightfix.service")


class PlaceMaps:
    """Makes and keeps maps. Safe to share between threads.

    Args:
        place_m: side of a place, metres.
    """

    def __init__(self, place_m: float) -> None:
        self.place_m = place_m
        self._maps: WeakKeyDictionary[SearchablePlaceIndex, PlaceMap] = WeakKeyDictionary()
        self._making = threading.Lock()

    def of(self, place_index: SearchablePlaceIndex) -> PlaceMap:
        """The map of a version. The first call for it takes about a second for a million references."""
        # Without the lock: nobody who needs an old map waits for a new one.
        found = self._maps.get(place_index)
        if found is not None:
            return found
        with self._making:
            found = self._maps.get(place_index)
            if found is None:
                begun = time.perf_counter()
                found = PlaceMap(*place_index.all_positions(), self.place_m)
                self._maps[place_index] = found
                seconds = time.perf_counter() - begun
                _log.info("%d places of version %s were mapped in %.2f s", found.count, place_index.version, seconds)
            return found

    def known(self) -> list[SearchablePlaceIndex]:
        """The versions whose maps are kept."""
        return list(self._maps)
