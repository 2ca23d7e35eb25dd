"""Which ids have come before, for tables too long to keep every id in a Python set."""

from array import array
from typing import Final

_FIRST_SLOTS: Final = 1 << 10


class SeenIds:
    """A set of ids in 16 to 32 bytes each: it keeps their 64-bit hashes in an open-addressed table.

    Two different ids share a hash once in about 400 000 databases of ten million, so the caller looks again before it
    complains.
    """

    def __init__(self) -> None:
        self._slots = array("Q", [0]) * _FIRST_SLOTS
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, reference_id: str) -> bool:
        """Remember an id; whether it is new."""
        key = (hash(reference_id) & 0xFFFF_FFFF_FFFF_FFFF) or 1  # 0 marks an empty slot
        if not self._put(key):
            return False
        self._count += 1
        if 2 * self._count > len(self._slots):
            self._grow()
        return True

    def _put(self, key: int) -> bool:
        slots, mask = self._slots, len(self._slots) - 1
        place = key & mask
        while (held := slots[place]) != 0:
            if held == key:
                return False
            place = (place + 1) & mask
        slots[place] = key
        return True

    def _grow(self) -> None:
        before = self._slots
        self._slots = array("Q", [0]) * (2 * len(before))
        for key in before:
            if key:
                self._put(key)
