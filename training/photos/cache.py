"""Photos decoded once, so that epochs do not wait for decoding: a memory map of 8-bit RGB on disk.

Pixels are those of `retrieval.images.read_image`, the one decode path. `training.photos.store` holds them; any number
of runs share it, with other lists of the same photos, one after another or at once.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ImageError
from retrieval.images import LeftOut, Preprocessing, UnreadableTally, read_image
from retrieval.machine import available_cores, read_ahead
from retrieval.references.reference import Reference
from training.photos.store import PhotoIdentity, PhotoStore

# Decoded photos are added so many bytes at a time, each time waiting for the disk; as many wait decoded behind them.
_ADDED_AT_ONCE: Final = 16 * 1024 * 1024

# Decoding stops when so many more photos than allowed are unreadable: an error names them together.
_SPARE: Final = 10


@dataclass(frozen=True, eq=False)
class PhotoCache:
    """Decoded photos, on disk and read as needed. Processes that get a copy map the same file.

    Attributes:
        references: the readable ones, in the order given; row i of the cache is the photo of references[i].
        shape: (height, width, 3) of a photo.
        unreadable: the photos that were left out.
    """

    references: tuple[Reference, ...]
    shape: tuple[int, int, int]
    unreadable: tuple[LeftOut, ...]
    _pixels_path: Path
    _stored_at: NDArray[np.int64]  # (N,) rows of the file of pixels
    _pixels: NDArray[np.uint8] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        stored = 1 + int(self._stored_at.max(initial=-1))
        shape = (stored, *self.shape)
        # An empty file cannot be mapped.
        pixels = np.memmap(self._pixels_path, np.uint8, "r", shape=shape) if stored else np.empty(shape, np.uint8)
        object.__setattr__(self, "_pixels", pixels.view(np.ndarray))

    def __len__(self) -> int:
        return len(self.references)

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the pixels: a spawned data loader would get a copy of them all.
        return PhotoCache, (self.references, self.shape, self.unreadable, self._pixels_path, self._stored_at)

    def rows(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read some photos.

        Args:
            rows: (n,) of the cache, in any order, repeats allowed.

        Returns:
            (n, H, W, 3) uint8 RGB, a copy in memory.
        """
        return self._pixels[self._stored_at[rows]]


def fill_photo_cache(
    folder: Path,
    references: Iterable[Reference],
    preprocessing: Preprocessing,
    *,
    max_unreadable: int = 0,
    on_progress: Callable[[int], None] | None = None,
    on_wait: Callable[[str], None] | None = None,
) -> PhotoCache:
    """Decode the photos that the folder does not hold yet, as they are now.

    Args:
        folder: of decoded photos of any lists and preprocessings; made if missing, and written to only if a photo is.
        references: whose photos; one photo may occur more than once.
        preprocessing: the recipe's.
        max_unreadable: how many references may be left out.
        on_progress: called with the number of references done since the last call.
        on_wait: called with a message if another process is filling the folder, before waiting for it.

    Raises:
        ReferenceDataError: more photos are unreadable than allowed; names them, and has the code of a single one. The
            others are kept.
        ArtefactError: the folder's table of photos is damaged.
        StorageError: the disk is full or refuses, or the folder is none; what is decoded already is kept.
    """
    listed = tuple(references)
    progress = on_progress or (lambda done: None)
    store = PhotoStore.of(folder, preprocessing)
    uses = Counter(reference.path for reference in listed)
    # Before anything is decoded, which may take hours: which files there are. A file that changes after that gets a row
    # under its earlier identity, which the next call does not find: the row is stale, not wrong.
    identities: dict[Path, PhotoIdentity] = {}
    unreadable = UnreadableTally(max_unreadable, own_code=True)
    for path, count in uses.items():
        try:
            identities[path] = PhotoIdentity.of(path)
        except OSError as error:
            unreadable.add(LeftOut.of(path, _missing_photo(path, error)), count)
    unreadable.check()
    store.read()
    if all(identity in store.rows for identity in identities.values()):
        progress(len(listed))
        return _open_cache(store, listed, identities, unreadable)

    def decode(path: Path) -> NDArray[np.uint8] | ImageError:
        try:
            return read_image(path, preprocessing)
        except ImageError as error:
            return error

    threads, at_once = available_cores(), max(1, _ADDED_AT_ONCE // store.row_bytes)
    with store.adding(on_wait):
        missing = [path for path, identity in identities.items() if identity not in store.rows]
        store.check_space(len(missing))
        progress(len(listed) - sum(uses[path] for path in missing))
        # Decoders go on while the disk is waited for.
        decoded = read_ahead(decode, missing, threads=threads, ahead=2 * at_once + threads)
        remaining = zip(missing, decoded, strict=True)
        while batch := list(islice(remaining, at_once)):
            photos: dict[PhotoIdentity, NDArray[np.uint8]] = {}
            for path, photo in batch:
                if isinstance(photo, ImageError):
                    unreadable.add(LeftOut.of(path, photo), uses[path])
                    del identities[path]
                else:
                    photos[identities[path]] = photo
            store.add(photos)
            unreadable.check(_SPARE)
            progress(sum(uses[path] for path, _ in batch))
    unreadable.check()
    return _open_cache(store, listed, identities, unreadable)


def _open_cache(
    store: PhotoStore,
    references: tuple[Reference, ...],
    identities: Mapping[Path, PhotoIdentity],
    unreadable: UnreadableTally,
) -> PhotoCache:
    readable = tuple(reference for reference in references if reference.path in identities)
    rows = [store.rows[identities[reference.path]] for reference in readable]
    return PhotoCache(readable, store.shape, tuple(unreadable.photos), store.pixels_path, np.array(rows, np.int64))


def _missing_photo(path: Path, error: OSError) -> ImageError:
    """The error that `read_image` would raise."""
    return ImageError(
        f"the photo cannot be read ({os.strerror(error.errno or 0)})",
        where=str(path),
        remedy="Check the path and its permissions",
        code="image_unreadable",
    )
