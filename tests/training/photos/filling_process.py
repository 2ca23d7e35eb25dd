"""A process that fills a cache: ``python -m tests.training.photos.filling_process PHOTOS CACHE [DEATH]``.

It adds two photos at a time. DEATH is where it kills itself: "half of pixels" or "half of table" in the third addition,
or "added" after it. Without, it prints what the pixels sum up to.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retrieval.images import Preprocessing
from retrieval.references.reference import Reference
from training.photos import cache as photo_cache
from training.photos import store as photo_store
from training.photos.cache import fill_photo_cache

PREPROCESSING = Preprocessing(height=32, width=48)


def die_at(death: str) -> None:
    """Prepare to die in or after the third addition: no handler, no `finally`, no flush."""
    write, names = photo_store._write_at, list[str]()
    half = {"half of pixels": photo_store.PIXELS_NAME, "half of table": photo_store.TABLE_NAME}.get(death)

    def write_and_die(path: Path, begin: int, pieces: Sequence[memoryview]) -> None:
        names.append(path.name)
        dying = names.count(path.name) == 3
        if dying and path.name == half:
            whole = b"".join(pieces)  # one photo and a half, or one line and a half
            pieces = [memoryview(whole[: len(whole) * 3 // 4])]
        write(path, begin, pieces)
        if dying and path.name == (half or photo_store.TABLE_NAME):
            os.kill(os.getpid(), signal.SIGKILL)

    photo_store._write_at = write_and_die


def main(photos: str, cache: str, death: str = "") -> None:
    """Fill, and die on the way."""
    photo_cache._ADDED_AT_ONCE = 2 * 32 * 48 * 3
    if death:
        die_at(death)
    references = [Reference(path.name, path, None) for path in sorted(Path(photos).iterdir())]
    filled = fill_photo_cache(Path(cache), references, PREPROCESSING)
    sys.stdout.write(f"{filled.rows(np.arange(len(filled))).sum(dtype=np.int64)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
