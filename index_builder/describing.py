"""Describe a reference database: threads decode ahead while the describer works on full batches."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from retrieval.describer import Describer, Descriptors
from retrieval.errors import ImageError, ReferenceDataError
from retrieval.images import DEFAULT_LIMITS, ImageLimits, RgbImage, read_image
from retrieval.machine import available_cores
from retrieval.references.reference import Reference

DEFAULT_BATCH_SIZE: Final = 16

# Batches' worth of decoded photos that may wait for the describer: enough that it never starves, and no more.
_BATCHES_AHEAD: Final = 3


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
    preprocessing = describer.bundle.preprocessing
    unreadable_count = 0
    with ThreadPoolExecutor(settings.decode_threads or available_cores(), "decode") as decoders:
        waiting: deque[tuple[Reference, Future[RgbImage]]] = deque()
        rows = iter(references)
        try:
            while True:
                while len(waiting) < settings.batch_size * (1 + _BATCHES_AHEAD):
                    row = next(rows, None)
                    if row is None:
                        break
                    waiting.append((row, decoders.submit(read_image, row.path, preprocessing, settings.limits)))
                if not waiting:
                    return
                batch = [waiting.popleft() for _ in range(min(settings.batch_size, len(waiting)))]
                described = _describe_batch(batch, describer)
                unreadable_count += len(described.unreadable)
                if unreadable_count > settings.max_unreadable:
                    raise _too_many_unreadable(described.unreadable[0], unreadable_count, settings.max_unreadable)
                yield described
        finally:
            for _, future in waiting:
                future.cancel()


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


def _describe_batch(batch: Sequence[tuple[Reference, Future[RgbImage]]], describer: Describer) -> DescribedBatch:
    references, images, unreadable = [], [], []
    for reference, future in batch:
        try:
            images.append(future.result())
            references.append(reference)
        except ImageError as error:
            unreadable.append(UnreadablePhoto(reference, error))
    return DescribedBatch(references, describer.describe(images), unreadable)


def _too_many_unreadable(one: UnreadablePhoto, count: int, allowed: int) -> ReferenceDataError:
    remedy = "Repair or remove the photo, or allow some to be left out with --max-unreadable N"
    if allowed == 0:
        return ReferenceDataError(one.error.what, where=one.error.where, remedy=remedy, code=one.error.code)
    return ReferenceDataError(
        f"{count} photos are unreadable, {allowed} are allowed; one of them: {one.error.what}",
        where=one.error.where,
        remedy="Look at the source, or raise --max-unreadable",
        code="too_many_unreadable",
    )
