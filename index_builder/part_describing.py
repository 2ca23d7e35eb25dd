"""Describe a listing part by part: what is there is kept, and an engine describes the rest."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pyarrow as pa

from index_builder.described_parts import (
    DEFAULT_PART_PHOTOS,
    DescribedParts,
    Part,
    PartRecord,
    cut,
    drop_other_parts,
    read_part,
    write_part,
)
from index_builder.describing import DescribeSettings, PhotoBatch, SeenPhoto, describe_groups
from index_builder.known_content import KnownContent
from index_builder.photo_paths import PathsBelow
from index_builder.update_watch import LeftOut, UpdateWatch
from retrieval.artefact import flush_to_disk
from retrieval.describer import Describer, Descriptors
from retrieval.errors import ImageError, ReferenceDataError
from retrieval.place_index import PlaceIndex
from retrieval.references.reference import Reference

Engine = Literal["local", "ray"]
ENGINES: Final[tuple[Engine, ...]] = ("local", "ray")


@dataclass(frozen=True)
class PartTask:
    """A part to describe, with all that another machine needs to know of it.

    Attributes:
        part: which one.
        photos: paths, in the order of the listing.
    """

    part: Part
    photos: Sequence[str]


@dataclass(frozen=True)
class PartNews:
    """What an engine tells while it works.

    Attributes:
        done: photos that were looked at since the last news.
        unreadable: those of them that have no descriptor.
        written: the part that is whole now, and its record.
    """

    done: int = 0
    unreadable: Sequence[LeftOut] = ()
    written: tuple[Part, PartRecord] | None = None


@dataclass(frozen=True)
class PartSettings:
    """How parts are described.

    Attributes:
        describe: each photo; more than `max_unreadable` stop the work.
        folder: where the parts lie; made if need be. An engine's machines all see it, as they see the photos.
        root: of the source; photos that cannot be read are told by their path below it.
        part_photos: photos in a part, rounded up to whole batches.
        known: content that needs no describing.
        engine: who describes.
    """

    describe: DescribeSettings
    folder: Path
    root: Path
    part_photos: int = DEFAULT_PART_PHOTOS
    known: KnownContent | None = field(default=None, repr=False)
    engine: Engine = "local"


# Describes the tasks in any order, writes their parts, and tells of it.
PartEngine = Callable[[Iterable[PartTask], Describer, PartSettings], Iterator[PartNews]]


@dataclass(frozen=True)
class PartPlan:
    """The parts of a listing, and the records of those that are there already."""

    listing: pa.Table
    parts: Sequence[Part]
    records: dict[int, PartRecord]

    @property
    def photos_to_do(self) -> int:
        """Photos of the parts that are missing."""
        return sum(part.stop - part.start for part in self.parts if part.number not in self.records)

    def tasks(self) -> Iterator[PartTask]:
        """The parts that are missing."""
        for part in self.parts:
            if part.number not in self.records:
                yield PartTask(part, self.listing["path"].slice(part.start, part.stop - part.start).to_pylist())


def plan_parts(listing: pa.Table, describer: Describer, settings: PartSettings) -> PartPlan:
    """Look at what is there, and drop what fits nothing.

    Args:
        listing: rows of `REFERENCE_SCHEMA` with absolute paths.
        describer: what will describe them.
        settings: how.

    Raises:
        OSError: the disk refuses.
    """
    if not settings.folder.is_dir():
        settings.folder.mkdir(parents=True, exist_ok=True)
        flush_to_disk(settings.folder.parent)
    batch = settings.describe.batch_size
    size = -(-max(1, settings.part_photos) // batch) * batch
    limits = asdict(settings.describe.limits)
    conditions = {"bundle": describer.bundle.fingerprint, "precision": describer.precision, "limits": limits}
    parts = list(cut(listing, size, conditions))
    base = settings.known.version if settings.known is not None else None
    dim = describer.bundle.descriptor_dim
    found = ((part, read_part(settings.folder, part, dim, base)) for part in parts)
    records = {part.number: record for part, record in found if record is not None}
    drop_other_parts(settings.folder, [part for part in parts if part.number in records])
    return PartPlan(listing, parts, records)


def describe_in_parts(
    plan: PartPlan, describer: Describer, settings: PartSettings, watch: UpdateWatch, base: PlaceIndex | None = None
) -> DescribedParts:
    """Describe the photos of a listing, those aside that a part in the folder already holds.

    Args:
        plan: of the listing.
        describer: what describes them.
        settings: how.
        watch: told of progress, asked after each batch whether to go on.
        base: the version that known content is taken over from.

    Raises:
        ReferenceDataError: more photos are unreadable than allowed (``too_many_unreadable``).
        MissingExtraError: the engine is not installed.
        OSError: the disk refuses.
    """
    tally = _Tally(settings.describe.max_unreadable, watch)
    records = dict(plan.records)
    if records:
        failed = [one for record in records.values() for one in record.unreadable]
        tally.add(sum(len(record.offsets) for record in records.values()) + len(failed), failed)
    for news in _engine(settings.engine)(plan.tasks(), describer, settings) if plan.photos_to_do else ():
        if news.done:
            tally.add(news.done, news.unreadable)
        if news.written is not None:
            part, record = news.written
            records[part.number] = record
            watch.reached("part written")
    ordered = [records[part.number] for part in plan.parts]
    return DescribedParts(settings.folder, plan.parts, ordered, describer.bundle.descriptor_dim, base)


def describe_locally(tasks: Iterable[PartTask], describer: Describer, settings: PartSettings) -> Iterator[PartNews]:
    """The engine of one machine: threads decode while the describer works, also across the ends of parts."""
    waiting: list[PartTask] = []

    def groups() -> Iterator[Iterator[Reference]]:
        for task in tasks:
            waiting.append(task)
            yield (Reference(path, Path(path), None) for path in task.photos)

    batches = describe_groups(groups(), describer, settings.describe, hashed=True, known=settings.known)
    gathered: list[PhotoBatch] = []
    for batch in batches:
        if not batch.photos:
            continue
        gathered.append(batch)
        unreadable = [
            left_out(photo.reference.path, photo.error, settings.root) for photo in batch.photos if photo.error
        ]
        yield PartNews(len(batch.photos), unreadable)
        if sum(len(one.photos) for one in gathered) == len(waiting[0].photos):
            task = waiting.pop(0)
            descriptors, record = _put_together(task, gathered, describer, settings)
            gathered = []
            write_part(settings.folder, task.part, descriptors, record)
            yield PartNews(written=(task.part, record))


def _put_together(
    task: PartTask, batches: Sequence[PhotoBatch], describer: Describer, settings: PartSettings
) -> tuple[Descriptors, PartRecord]:
    photos: list[tuple[int, SeenPhoto]] = list(enumerate(photo for batch in batches for photo in batch.photos))
    good = [(offset, photo) for offset, photo in photos if photo.error is None]
    taken_over = any(photo.known_row is not None for _, photo in good)
    record = PartRecord(
        fingerprint=task.part.fingerprint,
        offsets=[offset for offset, _ in good],
        content_sha256=[(photo.sha256 or b"").hex() for _, photo in good],
        base_rows=[-1 if photo.known_row is None else photo.known_row for _, photo in good],
        base=settings.known.version if settings.known is not None and taken_over else None,
        unreadable=[left_out(photo.reference.path, photo.error, settings.root) for _, photo in photos if photo.error],
    )
    nothing = np.empty((0, describer.bundle.descriptor_dim), np.float32)
    return np.concatenate([nothing, *(batch.descriptors for batch in batches)]), record


def left_out(path: Path, error: ImageError, root: Path) -> LeftOut:
    """A photo that cannot be read, as it is told."""
    return LeftOut(PathsBelow(root).below(path), error.code, error.what, error.remedy)


def _engine(name: Engine) -> PartEngine:
    if name == "ray":
        from index_builder.ray_describing import describe_on_ray

        return describe_on_ray
    return describe_locally


class _Tally:
    """Counts photos and stops where too many cannot be read."""

    def __init__(self, max_unreadable: int, watch: UpdateWatch) -> None:
        self._failed = 0
        self._done = 0
        self._max_unreadable = max_unreadable
        self._watch = watch

    def add(self, done: int, unreadable: Sequence[LeftOut]) -> None:
        self._failed += len(unreadable)
        self._done += done
        if unreadable:
            self._watch.unreadable(unreadable)
        self._watch.described(self._done, self._failed)
        if self._failed > self._max_unreadable:
            one = unreadable[0]
            raise ReferenceDataError(
                f"{self._failed} photos are unreadable so far, {self._max_unreadable} are allowed; "
                f"one of them: {one.reason}",
                where=one.path,
                remedy="Repair or remove them, or allow more to be left out (max_unreadable)",
                code="too_many_unreadable",
            )
        self._watch.go_on()
