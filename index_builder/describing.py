"""Describe photos: threads read, hash and decode ahead while the describer works on full batches.

A photo whose content has a stored descriptor already is not described again.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.describer import Describer, Descriptors
from retrieval.errors import ImageError
from retrieval.images import (
    DEFAULT_LIMITS,
    ImageLimits,
    LeftOut,
    RgbImage,
    UnreadableTally,
    decode_image,
    read_image_bytes,
)
from retrieval.index.manifest import DescribingRecord
from retrieval.index.place_index import REFERENCES_NAME, PlaceIndex
from retrieval.index.reference_table import read_references
from retrieval.index.vectors.exact import Storage
from retrieval.machine import available_cores, read_ahead
from retrieval.references.reference import Reference

DEFAULT_BATCH_SIZE: Final = 16

# Batches' worth of decoded photos that may wait for the describer: enough that it never starves, and no more.
_BATCHES_AHEAD: Final = 3

# A batch is read in so many tasks at least: one for each photo would cost more than hashing a small photo does.
_TASKS_A_BATCH: Final = 4

# Photos that need no describing are passed on when there are so many batches' worth of them.
_STORED_BATCHES: Final = 8

# Numpy does not distinguish zero bytes at the end from none, but all digests are 32 bytes long.
DIGEST: Final = "S32"


@dataclass(frozen=True, slots=True)
class DescribeSettings:
    """How references are described.

    Attributes:
        batch_size: photos described at once.
        decode_threads: by default one for each core.
        limits: of encoded photos.
        max_unreadable: how many photos may be unreadable before the work stops. They are left out and reported, never
            replaced.
    """

    batch_size: int = DEFAULT_BATCH_SIZE
    decode_threads: int | None = None
    limits: ImageLimits = DEFAULT_LIMITS
    max_unreadable: int = 0


@dataclass(frozen=True)
class DescribedReferences:
    """A whole described database in memory: references and (N, D) float32 unit rows, and the photos left out."""

    references: list[Reference]
    descriptors: Descriptors
    unreadable: list[LeftOut]


@dataclass(frozen=True)
class ReusableDescriptors:
    """Which row of a version holds the descriptor of which content. Small enough to be sent to other machines.

    Attributes:
        version: of the place index.
        digests: (K,) of 32 bytes, the SHA-256 of photos, rising.
        rows: (K,) int64, of the version.
    """

    version: str
    digests: NDArray[np.bytes_]
    rows: NDArray[np.int64]

    @classmethod
    def of(
        cls, base: PlaceIndex, describer: Describer, limits: ImageLimits, storage: Storage
    ) -> "ReusableDescriptors | None":
        """What of a version may be taken over as if it had just been described, or None.

        Stored as fp32 a descriptor is what the describer gave. Stored as fp16 it is only good for fp16 again: the same
        bits come out. The steps of int8 were chosen for the version, and another has its own.

        Args:
            base: a version.
            describer: of the new one.
            limits: of encoded photos.
            storage: of the new one.
        """
        manifest = base.manifest
        same = manifest.bundle.fingerprint == describer.bundle.fingerprint
        exact = manifest.whitening is None and (manifest.storage == "fp32" or manifest.storage == "fp16" == storage)
        if not (same and exact and manifest.describing == describing_record(describer, limits)):
            return None
        hashes = read_references(base.folder / REFERENCES_NAME)["content_sha256"]
        rows = np.flatnonzero(hashes.is_valid().to_numpy())
        digests = np.array([bytes.fromhex(text) for text in hashes.take(pa.array(rows)).to_pylist()], DIGEST)
        digests, first = np.unique(digests, return_index=True)
        return cls(base.version, digests, rows[first].astype(np.int64))

    def find(self, sha256: bytes) -> int | None:
        """The row that holds the descriptor of a photo with this digest, or None."""
        wanted = np.array(sha256, DIGEST)
        place = int(np.searchsorted(self.digests, wanted))
        if place == len(self.digests) or self.digests[place] != wanted:
            return None
        return int(self.rows[place])


def describing_record(describer: Describer, limits: ImageLimits) -> DescribingRecord:
    """What a descriptor depends on beside its photo and the bundle."""
    return DescribingRecord(precision=describer.precision, max_bytes=limits.max_bytes, max_pixels=limits.max_pixels)


@dataclass(frozen=True, slots=True)
class ReadPhoto:
    """What became of one photo.

    Attributes:
        path: of its file.
        sha256: of the bytes that were decoded, 32 bytes; None where it was not asked for, or the file cannot be read.
        stored_row: where the descriptor of just these bytes is stored already; then it is not described.
        error: why it has no descriptor.
        image: its pixels until they are described.
    """

    path: str
    sha256: bytes | None = None
    stored_row: int | None = None
    error: ImageError | None = None
    image: RgbImage | None = None


@dataclass(frozen=True, slots=True)
class DescribedBatch:
    """Photos in their order, and (n, D) float32 unit rows for those with neither `stored_row` nor `error`."""

    photos: Sequence[ReadPhoto]
    descriptors: Descriptors


def describe_photos(
    groups: Iterable[Iterable[str]],
    describer: Describer,
    settings: DescribeSettings,
    *,
    hashed: bool = False,
    stored: ReusableDescriptors | None = None,
) -> Iterator[DescribedBatch]:
    """Describe groups of photos one batch after another, in order, holding only a few batches in memory.

    No batch reaches from one group into the next, so what is described with what does not depend on where the work
    began: a batch of other photos may change the last bit of a descriptor.

    Args:
        groups: of photos' paths.
        describer: what describes them.
        settings: how; unreadable photos are yielded with their errors, not counted.
        hashed: whether the content is hashed.
        stored: descriptors that need not be computed again.

    Yields:
        batches that together hold every photo once, the last of each group possibly without any.
    """
    preprocessing, limits = describer.bundle.preprocessing, settings.limits

    def read(path: str) -> ReadPhoto:
        sha256 = None
        try:
            data = read_image_bytes(Path(path), limits)
            if hashed or stored is not None:
                sha256 = hashlib.sha256(data).digest()
                row = stored.find(sha256) if stored is not None else None
                if row is not None:
                    return ReadPhoto(path, sha256, stored_row=row)
            return ReadPhoto(path, sha256, image=decode_image(data, preprocessing, limits, where=path))
        except ImageError as error:
            return ReadPhoto(path, sha256, error=error)

    threads = settings.decode_threads or available_cores()
    ahead = settings.batch_size * _BATCHES_AHEAD
    at_once = max(1, min(settings.batch_size // _TASKS_A_BATCH, ahead // (2 * threads)))
    batch = _Batch(describer)
    for photos in read_ahead(
        lambda task: [read(path) for path in task],
        _tasks(groups, at_once),
        threads=threads,
        ahead=ahead,
        size=lambda task: max(1, len(task)),
    ):
        if not photos:
            yield batch.describe()
        for photo in photos:
            batch.add(photo)
            if batch.to_describe == settings.batch_size or batch.stored == settings.batch_size * _STORED_BATCHES:
                yield batch.describe()


def describe_references(
    references: Iterable[Reference],
    describer: Describer,
    settings: DescribeSettings | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> DescribedReferences:
    """Describe a database into memory (evaluation, small indexes).

    Args:
        references: the rows.
        describer: what describes them.
        settings: how.
        on_progress: called after each batch with the number of references done in it.

    Raises:
        ReferenceDataError: more photos are unreadable than allowed (``too_many_unreadable``).
    """
    settings = settings or DescribeSettings()
    rows = list(references)
    described: list[Reference] = []
    pieces = [np.empty((0, describer.bundle.descriptor_dim), np.float32)]
    tally = UnreadableTally(settings.max_unreadable)
    remaining = iter(rows)
    for batch in describe_photos([[str(row.path) for row in rows]], describer, settings):
        for photo, reference in zip(batch.photos, remaining, strict=False):
            if photo.error is None:
                described.append(reference)
            else:
                tally.add(LeftOut.of(photo.path, photo.error))
        tally.check()
        pieces.append(batch.descriptors)
        if on_progress and batch.photos:
            on_progress(len(batch.photos))
    return DescribedReferences(described, np.concatenate(pieces), tally.photos)


def file_state(path: str) -> tuple[int, int] | None:
    """Size and time of the last change of a file; None where there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 - this line runs for every photo
    except (OSError, ValueError):  # a NUL
        return None
    return status.st_size, status.st_mtime_ns


class _Batch:
    """Photos that will be described together."""

    def __init__(self, describer: Describer) -> None:
        self._describer = describer
        self._photos: list[ReadPhoto] = []
        self.stored = 0

    def add(self, photo: ReadPhoto) -> None:
        self._photos.append(photo)
        self.stored += photo.stored_row is not None

    @property
    def to_describe(self) -> int:
        """Photos that were decoded, or could not be."""
        return len(self._photos) - self.stored

    def describe(self) -> DescribedBatch:
        """Describe the photos, and begin anew."""
        photos, self._photos, self.stored = self._photos, [], 0
        descriptors = self._describer.describe([photo.image for photo in photos if photo.image is not None])
        return DescribedBatch([replace(photo, image=None) for photo in photos], descriptors)


def _tasks(groups: Iterable[Iterable[str]], size: int) -> Iterator[list[str]]:
    """The photos of each group, some at a time, and an empty list after each group."""
    for group in groups:
        paths = iter(group)
        while task := list(islice(paths, size)):
            yield task
        yield []
