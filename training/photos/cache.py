"""Photos decoded once, so that epochs do not wait for decoding: a memory map of 8-bit RGB on disk.

Pixels are those of `retrieval.images.read_image`, the one decode path. They lie in a `training.photos.store`, which any
number of runs share: training and validation sets, other lists of the same photos, one after another or at once. How it
looks on disk, and why a kill or a full disk leaves it whole, is said there.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ImageError, ReferenceDataError
from retrieval.images import DEFAULT_LIMITS, ImageLimits, Preprocessing, read_image
from retrieval.machine import available_cores
from retrieval.references.reference import Reference
from training.photos.store import PhotoIdentity, PhotoStore

# Decoded photos are added so many bytes at a time, each time waiting for the disk; as many wait decoded behind them.
_ADDED_AT_ONCE: Final = 16 * 1024 * 1024

# An error names so many unreadable photos; decoding stops when that many more than allowed are unreadable.
_NAMED: Final = 10


@dataclass(frozen=True, slots=True)
class UnreadablePhoto:
    """A reference whose photo could not be decoded, and why."""

    reference: Reference
    error: ImageError


@dataclass(frozen=True, eq=False)
class PhotoCache:
    """Decoded photos, on disk and read as needed. Processes that get a copy map the same file.

    Attributes:
        references: the readable ones, in the order given; row i of the cache is the photo of references[i].
        shape: (height, width, 3) of a photo.
        unreadable: left out.
    """

    references: tuple[Reference, ...]
    shape: tuple[int, int, int]
    unreadable: tuple[UnreadablePhoto, ...]
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
    limits: ImageLimits = DEFAULT_LIMITS,
    max_unreadable: int = 0,
    decode_threads: int | None = None,
    on_progress: Callable[[int], None] | None = None,
    on_wait: Callable[[str], None] | None = None,
) -> PhotoCache:
    """Decode the photos that the folder does not hold yet, as they are now.

    Args:
        folder: of decoded photos of any lists and preprocessings; made if missing, and written to only if a photo is.
        references: whose photos; one photo may occur more than once.
        preprocessing: the recipe's.
        limits: of encoded photos; those already decoded are not checked again.
        max_unreadable: how many references may be left out.
        decode_threads: by default one for each core.
        on_progress: called with the number of references done since the last call.
        on_wait: told, if another process is filling the folder, that this one waits for it.

    Raises:
        ReferenceDataError: more photos are unreadable than allowed; names them. The others are kept.
        ArtefactError: the folder's table of photos is damaged.
        StorageError: the disk is full or refuses, or the folder is none; what is decoded already is kept.
    """
    rows = tuple(references)
    progress = on_progress or (lambda done: None)
    filling = _Filling(
        PhotoStore.of(folder, preprocessing), preprocessing, limits, decode_threads or available_cores(), max_unreadable
    )
    filling.look_at(rows)
    filling.store.read()
    if filling.missing():
        with filling.store.adding(on_wait):
            missing = filling.missing()
            filling.store.check_space(len(missing))
            progress(len(rows) - sum(filling.uses[path] for path in missing))
            for done in filling.decode(missing):
                progress(done)
    else:
        progress(len(rows))
    filling.check_unreadable()
    return filling.cache(rows)


@dataclass
class _Filling:
    """One call of `fill_photo_cache`: photos are known by their path, and each is looked at and decoded once.

    uses: how many references want each photo. identities: of the readable ones, when they were last looked at.
    """

    store: PhotoStore
    preprocessing: Preprocessing
    limits: ImageLimits
    decode_threads: int
    max_unreadable: int
    uses: dict[Path, int] = field(default_factory=dict)
    identities: dict[Path, PhotoIdentity] = field(default_factory=dict)
    errors: dict[Path, ImageError] = field(default_factory=dict)

    def look_at(self, references: Sequence[Reference]) -> None:
        """Note which files there are, before hours may be spent on decoding."""
        for reference in references:
            path = reference.path
            self.uses[path] = self.uses.get(path, 0) + 1
            if self.uses[path] > 1:
                continue
            try:
                self.identities[path] = _identify(path)
            except ImageError as error:
                self.errors[path] = error
        self.check_unreadable()

    def missing(self) -> list[Path]:
        """Photos to decode, in order."""
        return [path for path, identity in self.identities.items() if identity not in self.store.rows]

    def decode(self, paths: Sequence[Path]) -> Iterator[int]:
        """Decode photos and add them to the store; yields how many references are done since the last time."""
        at_once = max(1, _ADDED_AT_ONCE // self.store.row_bytes)
        with ThreadPoolExecutor(self.decode_threads, "decode") as decoders:
            waiting: deque[tuple[Path, Future[tuple[PhotoIdentity, NDArray[np.uint8]]]]] = deque()
            ahead = iter(paths)
            try:
                while True:
                    # Decoders go on while the disk is waited for.
                    for path in islice(ahead, max(0, 2 * at_once + self.decode_threads - len(waiting))):
                        waiting.append((path, decoders.submit(self._read, path)))
                    if not waiting:
                        return
                    batch = [waiting.popleft() for _ in range(min(at_once, len(waiting)))]
                    self._add(batch)
                    yield sum(self.uses[path] for path, _ in batch)
            finally:
                for _, future in waiting:
                    future.cancel()

    def _read(self, path: Path) -> tuple[PhotoIdentity, NDArray[np.uint8]]:
        # Looked at before it is read: if it changes in between, the row is stale and not wrong.
        identity = _identify(path)
        return identity, read_image(path, self.preprocessing, self.limits)

    def _add(self, batch: Sequence[tuple[Path, Future[tuple[PhotoIdentity, NDArray[np.uint8]]]]]) -> None:
        identities, photos = [], []
        for path, future in batch:
            try:
                identity, photo = future.result()
            except ImageError as error:
                self.errors[path] = error
                del self.identities[path]
            else:
                self.identities[path] = identity
                identities.append(identity)
                photos.append(photo)
        self.store.add(identities, photos)
        self.check_unreadable(_NAMED)

    def check_unreadable(self, spare: int = 0) -> None:
        """Refuse when more references than allowed, and `spare` more, have an unreadable photo."""
        count = sum(self.uses[path] for path in self.errors)
        if count > self.max_unreadable + spare:
            raise _too_many_unreadable(list(self.errors.values()), count, self.max_unreadable, stopped=spare > 0)

    def cache(self, references: Sequence[Reference]) -> PhotoCache:
        readable = tuple(reference for reference in references if reference.path not in self.errors)
        rows = [self.store.rows[self.identities[reference.path]] for reference in readable]
        unreadable = tuple(
            UnreadablePhoto(reference, self.errors[reference.path])
            for reference in references
            if reference.path in self.errors
        )
        return PhotoCache(
            readable, self.store.shape, unreadable, self.store.pixels_path, np.array(rows, np.int64).reshape(-1)
        )


def _identify(path: Path) -> PhotoIdentity:
    try:
        return PhotoIdentity.of(path)
    except OSError as error:  # as `read_image` would say
        raise ImageError(
            f"the photo cannot be read ({os.strerror(error.errno or 0)})",
            where=str(path),
            remedy="Check the path and its permissions",
            code="image_unreadable",
        ) from error


def _too_many_unreadable(
    errors: Sequence[ImageError], count: int, allowed: int, *, stopped: bool
) -> ReferenceDataError:
    first = errors[0]
    if count == 1:
        return ReferenceDataError(
            first.what,
            where=first.where,
            remedy="Repair or remove the photo, or leave it out with --max-unreadable 1",
            code=first.code,
        )
    others = "".join(f"; {error.where}: {error.what}" for error in errors[1:_NAMED])
    more = f"; and {len(errors) - _NAMED} more" if len(errors) > _NAMED else ""
    return ReferenceDataError(
        f"{first.what}{others}{more}. {'At least ' if stopped else ''}{count} photos are unreadable, {allowed} may be",
        where=first.where,
        remedy=f"Repair or remove them, or leave them out with --max-unreadable {'N' if stopped else count}",
        code="too_many_unreadable",
    )
