"""Descriptors that are stored already, by the content of their photos."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.bundle import Bundle
from retrieval.describer import Describer, Descriptors
from retrieval.errors import ImageError, ReferenceDataError
from retrieval.images import DEFAULT_LIMITS, ImageLimits, RgbImage, decode_image, read_image_bytes
from retrieval.index.manifest import DescribingRecord
from retrieval.index.place_index import REFERENCES_NAME, PlaceIndex
from retrieval.index.reference_table import read_references
from retrieval.index.vectors.exact import Storage
from retrieval.machine import available_cores
from retrieval.references.reference import Reference

# Numpy does not tell zero bytes at the end from none, but all digests are 32 bytes long.
_DIGEST: Final = "S32"


@dataclass(frozen=True)
class KnownContent:
    """Which row of a version holds the descriptor of which bytes. Small enough to be sent to other machines.

    Attributes:
        version: of the place index.
        digests: (K,) of 32 bytes, the SHA-256 of photos, rising.
        rows: (K,) int64, of the version.
    """

    version: str
    digests: NDArray[np.bytes_]
    rows: NDArray[np.int64]

    def find(self, sha256: bytes) -> int | None:
        """The row that holds the descriptor of a photo with this digest, or None."""
        wanted = np.array(sha256, _DIGEST)
        place = int(np.searchsorted(self.digests, wanted))
        if place == len(self.digests) or self.digests[place] != wanted:
            return None
        return int(self.rows[place])


def describing_record(describer: Describer, limits: ImageLimits) -> DescribingRecord:
    """What a descriptor depends on beside its photo and the bundle."""
    return DescribingRecord(precision=describer.precision, max_bytes=limits.max_bytes, max_pixels=limits.max_pixels)


def known_content(
    base: PlaceIndex, describer: Describer, limits: ImageLimits, storage: Storage, *, whitened: bool
) -> KnownContent | None:
    """What of a version may be taken over as if it had just been described, or None.

    Stored as fp32 a descriptor is what the describer gave. Stored as fp16 it is only good for fp16 again: the same bits
    come out. The steps of int8 and the directions of a whitening were chosen for the version, and another has its own.

    Args:
        base: a version.
        describer: of the new one.
        limits: of encoded photos.
        storage: of the new one.
        whitened: whether the new one is.
    """
    manifest = base.manifest
    same = manifest.bundle.fingerprint == describer.bundle.fingerprint
    exact = manifest.whitening is None and (
        manifest.storage == "fp32" or (manifest.storage == "fp16" == storage and not whitened)
    )
    if not (same and exact and manifest.describing == describing_record(describer, limits)):
        return None
    hashes = read_references(base.folder / REFERENCES_NAME)["content_sha256"]
    rows = np.flatnonzero(hashes.is_valid().to_numpy())
    digests = np.array([bytes.fromhex(text) for text in hashes.take(pa.array(rows)).to_pylist()], _DIGEST)
    digests, first = np.unique(digests, return_index=True)
    return KnownContent(base.version, digests, rows[first].astype(np.int64))


# Describe a reference database: threads read and decode ahead while the describer works on full batches.

DEFAULT_BATCH_SIZE: Final = 16

# Batches' worth of decoded photos that may wait for the describer: enough that it never starves, and no more.
_BATCHES_AHEAD: Final = 3

# A batch is read in so many tasks at least: one for each photo would cost more than hashing a small photo does.
_TASKS_A_BATCH: Final = 4

# Photos that need no describing are passed on when there are so many batches' worth of them.
_KNOWN_BATCHES: Final = 8


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


@dataclass(frozen=True, slots=True)
class UnreadablePhoto:
    """A reference whose photo could not be decoded, and why."""

    reference: Reference
    error: ImageError


@dataclass(frozen=True, slots=True)
class DescribedBatch:
    """Some references and their descriptors, (n, D) float32 unit rows; and those that could not be read."""

    references: Sequence[Reference]
    descriptors: Descriptors
    unreadable: Sequence[UnreadablePhoto] = ()


@dataclass(frozen=True)
class DescribedReferences:
    """A whole described database in memory."""

    references: list[Reference]
    descriptors: Descriptors
    unreadable: list[UnreadablePhoto] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SeenPhoto:
    """What became of one photo.

    Attributes:
        reference: of the photo.
        sha256: of the bytes that were decoded, 32 bytes; None where nobody asked for it, or the file cannot be read.
        known_row: where the descriptor of just these bytes is stored already; then it is not described.
        error: why it has no descriptor.
    """

    reference: Reference
    sha256: bytes | None = None
    known_row: int | None = None
    error: ImageError | None = None


@dataclass(frozen=True, slots=True)
class PhotoBatch:
    """Photos in their order, and (n, D) float32 unit rows for those with neither `known_row` nor `error`."""

    photos: Sequence[SeenPhoto]
    descriptors: Descriptors


def describe_groups(
    groups: Iterable[Iterable[Reference]],
    describer: Describer,
    settings: DescribeSettings,
    *,
    hashed: bool = False,
    known: KnownContent | None = None,
) -> Iterator[PhotoBatch]:
    """Describe groups of references one batch after another, in order, holding only a few batches in memory.

    No batch reaches from one group into the next, so what is described with what does not depend on where the work
    began: a batch of other photos may change the last bit of a descriptor.

    Args:
        groups: of references.
        describer: what describes them.
        settings: how; nothing is refused for `max_unreadable` here.
        hashed: whether the content is hashed.
        known: content that needs no describing.

    Yields:
        batches that together hold every reference once, the last of each group possibly without a photo.
    """
    reader = _PhotoReader(describer.bundle, settings.limits, hashed or known is not None, known)
    threads = settings.decode_threads or available_cores()
    ahead = settings.batch_size * (1 + _BATCHES_AHEAD)
    task_size = max(1, min(settings.batch_size // _TASKS_A_BATCH, ahead // (2 * threads)))
    with ThreadPoolExecutor(threads, "decode") as decoders:
        waiting: deque[tuple[Future[list[_ReadPhoto]], int]] = deque()
        tasks = _tasks(groups, task_size)
        batch = _Batch(describer)
        in_flight = 0
        try:
            while True:
                while in_flight + batch.pixels < ahead and (task := next(tasks, None)) is not None:
                    waiting.append((decoders.submit(reader.read, task), len(task)))
                    in_flight += max(1, len(task))
                if not waiting:
                    return
                future, count = waiting.popleft()
                in_flight -= max(1, count)
                if count == 0:
                    yield batch.close()
                for photo in future.result():
                    batch.add(photo)
                    if batch.pixels == settings.batch_size or batch.known == settings.batch_size * _KNOWN_BATCHES:
                        yield batch.close()
        finally:
            for future, _ in waiting:
                future.cancel()


def describe_in_batches(
    references: Iterable[Reference], describer: Describer, settings: DescribeSettings | None = None
) -> Iterator[DescribedBatch]:
    """Describe references one batch after another, in order, holding only a few batches in memory.

    Args:
        references: an opened reference database, or any rows.
        describer: what describes them.
        settings: how.

    Yields:
        batches that together hold every reference once, as described or as unreadable.

    Raises:
        ReferenceDataError: more photos are unreadable than allowed; one of them is named.
    """
    settings = settings or DescribeSettings()
    unreadable_count = 0
    for batch in describe_groups([references], describer, settings):
        if not batch.photos:
            continue
        errors = [UnreadablePhoto(photo.reference, photo.error) for photo in batch.photos if photo.error is not None]
        unreadable_count += len(errors)
        if unreadable_count > settings.max_unreadable:
            raise too_many_unreadable(errors[0].error, unreadable_count, settings.max_unreadable)
        described = [photo.reference for photo in batch.photos if photo.error is None]
        yield DescribedBatch(described, batch.descriptors, errors)


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
        ReferenceDataError: more photos are unreadable than allowed.
    """
    rows: list[Reference] = []
    pieces = [np.empty((0, describer.bundle.descriptor_dim), np.float32)]
    unreadable: list[UnreadablePhoto] = []
    for batch in describe_in_batches(references, describer, settings):
        rows.extend(batch.references)
        pieces.append(batch.descriptors)
        unreadable.extend(batch.unreadable)
        if on_progress:
            on_progress(len(batch.references) + len(batch.unreadable))
    return DescribedReferences(rows, np.concatenate(pieces), unreadable)


def too_many_unreadable(one: ImageError, count: int, allowed: int) -> ReferenceDataError:
    """What the command line says when more photos are unreadable than allowed.

    Args:
        one: of them.
        count: how many there are.
        allowed: how many may be.
    """
    remedy = "Repair or remove the photo, or allow some to be left out with --max-unreadable N"
    if allowed == 0:
        return ReferenceDataError(one.what, where=one.where, remedy=remedy, code=one.code)
    return ReferenceDataError(
        f"{count} photos are unreadable, {allowed} are allowed; one of them: {one.what}",
        where=one.where,
        remedy="Look at the source, or raise --max-unreadable",
        code="too_many_unreadable",
    )


@dataclass(frozen=True, slots=True)
class _ReadPhoto:
    """A photo that was looked at, and its pixels where it is to be described."""

    seen: SeenPhoto
    image: RgbImage | None = None


class _PhotoReader:
    """Reads, hashes and decodes photos; called by several threads."""

    def __init__(self, bundle: Bundle, limits: ImageLimits, hashed: bool, known: KnownContent | None) -> None:
        self._preprocessing = bundle.preprocessing
        self._limits = limits
        self._hashed = hashed
        self._known = known

    def read(self, references: Sequence[Reference]) -> list[_ReadPhoto]:
        return [self._read(reference) for reference in references]

    def _read(self, reference: Reference) -> _ReadPhoto:
        sha256 = None
        try:
            data = read_image_bytes(reference.path, self._limits)
            if self._hashed:
                sha256 = hashlib.sha256(data).digest()
                row = self._known.find(sha256) if self._known is not None else None
                if row is not None:
                    return _ReadPhoto(SeenPhoto(reference, sha256, known_row=row))
            image = decode_image(data, self._preprocessing, self._limits, where=str(reference.path))
        except ImageError as error:
            return _ReadPhoto(SeenPhoto(reference, sha256, error=error))
        return _ReadPhoto(SeenPhoto(reference, sha256), image)


class _Batch:
    """Photos that will be described together."""

    def __init__(self, describer: Describer) -> None:
        self._describer = describer
        self._photos: list[_ReadPhoto] = []
        self.known = 0

    def add(self, photo: _ReadPhoto) -> None:
        self._photos.append(photo)
        self.known += photo.seen.known_row is not None

    @property
    def pixels(self) -> int:
        """Photos that were decoded, or could not be."""
        return len(self._photos) - self.known

    def close(self) -> PhotoBatch:
        """Describe the photos, and begin anew."""
        photos, self._photos, self.known = self._photos, [], 0
        images = [photo.image for photo in photos if photo.image is not None]
        return PhotoBatch([photo.seen for photo in photos], self._describer.describe(images))


def _tasks(groups: Iterable[Iterable[Reference]], size: int) -> Iterator[list[Reference]]:
    """The references of each group, some at a time, and an empty list after each group."""
    for group in groups:
        rows = iter(group)
        while task := list(islice(rows, size)):
            yield task
        yield []
