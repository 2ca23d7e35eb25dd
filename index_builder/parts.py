"""Describing that survives a crash: numbered parts on the disk, each written whole or not at all.

A part is ``part-000007.npy``, (n, D) float32, and ``part-000007.json``, which says of which photos and with what model.
The JSON is renamed last, so a part that has one is whole. Described again is only what has no part of the same
fingerprint: after a kill, at most the part in work. This process and the machines of a cluster write the same parts.
"""

import contextlib
import hashlib
import io
import json
import shutil
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from index_builder.adapting import SAMPLES
from index_builder.describing import (
    DescribedBatch,
    DescribeSettings,
    ReusableDescriptors,
    describe_photos,
    file_state,
)
from index_builder.update_observer import UpdateObserver
from index_builder.update_plan import PathsBelow
from retrieval.artefact import flush_to_disk, replace_file
from retrieval.describer import Describer, Descriptors
from retrieval.images import LeftOut, UnreadableTally

DEFAULT_PART_PHOTOS: Final = 256
_RECORDS: Final = "part-*.json"
_VECTORS: Final = "part-*.npy"

# Parts whose vectors are mapped at once. Each takes a file handle.
_OPEN_PARTS: Final = 128
_DESCRIBED_HERE: Final = -1


class PartRecord(BaseModel):
    """What stands in a part's JSON.

    Attributes:
        fingerprint: of the part.
        offsets: of the photos that have a descriptor, counted from the part's first photo, rising.
        content_sha256: of each of these photos.
        base_rows: of each of them, the row of `base` whose stored descriptor holds, or -1 where it was described here;
            the latter's descriptors stand in the part's other file, in this order.
        base: a version of the index, or None where nothing is taken over.
        unreadable: the other photos.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    offsets: list[int]
    content_sha256: list[str]
    base_rows: list[int]
    base: str | None
    unreadable: list[LeftOut]

    @property
    def described_here(self) -> int:
        """Rows of the part's other file."""
        return self.base_rows.count(_DESCRIBED_HERE)


@dataclass(frozen=True, slots=True)
class Part:
    """Photos `start` to `stop` of the listing."""

    number: int
    start: int
    stop: int
    fingerprint: str

    @property
    def name(self) -> str:
        """Of its files, without a suffix."""
        return f"part-{self.number:06d}"


def cut(listing: pa.Table, part_photos: int, conditions: dict[str, Any]) -> Iterator[Part]:
    """Divide a listing into parts.

    A part's fingerprint covers what its descriptors depend on: the conditions, the rows, and of each photo's file the
    size and the time of its last change.

    Args:
        listing: rows of `REFERENCE_SCHEMA` with absolute paths.
        part_photos: photos in a part.
        conditions: under which all are described.
    """
    for number, start in enumerate(range(0, listing.num_rows, part_photos)):
        piece = listing.slice(start, part_photos)
        states = [file_state(path) for path in piece["path"].to_pylist()]
        text = json.dumps([conditions, piece.to_pydict(), states], sort_keys=True)
        yield Part(number, start, start + piece.num_rows, hashlib.sha256(text.encode()).hexdigest())


def write_part(folder: Path, part: Part, descriptors: Descriptors, record: PartRecord) -> None:
    """Write a part: its vectors first, its record last.

    Args:
        folder: of all parts.
        part: which one.
        descriptors: (n, D) float32.
        record: of the part.

    Raises:
        OSError: the disk refuses.
    """
    vectors, written = folder / f"{part.name}.npy", folder / f"{part.name}.json"
    # The old record first, where there is one: it must never describe new vectors.
    written.unlink(missing_ok=True)
    if len(descriptors):
        # Through memory: numpy's own writing to a full disk raises an error without a number.
        buffer = io.BytesIO()
        np.save(buffer, descriptors)
        replace_file(vectors, buffer.getvalue())
    replace_file(written, record.model_dump_json().encode())


def read_part(folder: Path, part: Part, dim: int, base: str | None) -> PartRecord | None:
    """The record of a part that is whole and was made of the same photos with the same model, else None.

    Args:
        folder: of all parts.
        part: which one.
        dim: D.
        base: the version whose rows may have been taken over.
    """
    try:
        record = PartRecord.model_validate_json((folder / f"{part.name}.json").read_bytes())
        vectors = _load(folder, part, record, dim)
    except (OSError, ValueError, ValidationError):
        return None
    whole = vectors.shape == (record.described_here, dim) and vectors.dtype == np.float32
    same = record.fingerprint == part.fingerprint and record.base in (None, base)
    return record if whole and same else None


def drop_other_parts(folder: Path, parts: Sequence[Part]) -> None:
    """Remove what lies in the folder beside these parts: it fits nothing any more, and takes room."""
    kept = {part.name for part in parts}
    for pattern in (_RECORDS, _VECTORS):  # the record first: it must never describe vectors that are gone
        for path in folder.glob(pattern):
            if path.stem not in kept:
                path.unlink()


@contextlib.contextmanager
def resumable_work_folder(folder: Path) -> Iterator[Path]:
    """A work folder that is found again after a failure, and removed when the work is done.

    It is removed also where the work failed before a part, or what a bundle is adapted to, was described: there is
    nothing to go on from.
    """
    try:
        yield folder
    except BaseException:
        if not any(next(folder.glob(pattern), None) for pattern in (_VECTORS, SAMPLES)):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


class DescriptorRows(Protocol):
    """Stored descriptors by row: a version of a place index, or those of the photos that a bundle was adapted to."""

    def descriptors(self, rows: NDArray[np.int64]) -> Descriptors:
        """(len(rows), D) float32."""


class DescribedParts:
    """All descriptors of a listing, left on the disk.

    Args:
        folder: of the parts.
        parts: all of them, in their order.
        records: of each.
        dim: D.
        base: that rows were taken over from, if any were.

    Attributes:
        rows: (n,) int64, the rows of the listing that have a descriptor, rising.
        base_rows: (n,) int64, the row of the base that each was taken over from, -1 where it was described.
        content_sha256: (n,) strings.
        unreadable: the photos of the other rows.
    """

    def __init__(
        self, folder: Path, parts: Sequence[Part], records: Sequence[PartRecord], dim: int, base: DescriptorRows | None
    ) -> None:
        self._folder, self._parts, self._records, self._dim, self._base = folder, parts, records, dim, base
        counts = [len(record.offsets) for record in records]
        self.rows = np.fromiter(
            (part.start + offset for part, record in zip(parts, records, strict=True) for offset in record.offsets),
            np.int64,
            sum(counts),
        )
        self.base_rows = np.fromiter((row for record in records for row in record.base_rows), np.int64, sum(counts))
        self.content_sha256 = pa.chunked_array([record.content_sha256 for record in records], pa.string())
        self.unreadable = [photo for record in records for photo in record.unreadable]
        self._starts = np.cumsum([0, *counts])
        # Of each photo: how many before it in its part were described there.
        here = self.base_rows == _DESCRIBED_HERE
        before = np.cumsum(here) - here
        self._places = before - before[np.repeat(self._starts[:-1], counts)] if len(here) else before
        self._open: OrderedDict[int, NDArray[np.float32]] = OrderedDict()

    def take(self, places: NDArray[np.int64]) -> Descriptors:
        """The descriptors at some places of `rows`, (len(places), D) float32."""
        out = np.empty((len(places), self._dim), np.float32)
        taken_over = self.base_rows[places] != _DESCRIBED_HERE
        if taken_over.any():
            assert self._base is not None, "rows are taken over from a version"
            out[taken_over] = self._base.descriptors(self.base_rows[places[taken_over]])
        described = np.flatnonzero(~taken_over)
        holders = np.searchsorted(self._starts, places[described], side="right") - 1
        for holder in np.unique(holders):
            here = described[holders == holder]
            out[here] = self._vectors(int(holder))[self._places[places[here]]]
        return out

    def discard(self) -> None:
        """Remove them: they turned out to be wrong."""
        self._open.clear()
        drop_other_parts(self._folder, [])

    def _vectors(self, number: int) -> NDArray[np.float32]:
        if number not in self._open:
            if len(self._open) == _OPEN_PARTS:
                self._open.popitem(last=False)
            self._open[number] = _load(self._folder, self._parts[number], self._records[number], self._dim)
        self._open.move_to_end(number)
        return self._open[number]


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
class PartProgress:
    """What an engine reports while it works.

    Attributes:
        done: photos that were looked at since the last report.
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
        root: of the source; photos that cannot be read are reported by their path below it.
        part_photos: photos in a part, rounded up to whole batches.
        stored: descriptors that need not be computed again.
    """

    describe: DescribeSettings
    folder: Path
    root: Path
    part_photos: int = DEFAULT_PART_PHOTOS
    stored: ReusableDescriptors | None = field(default=None, repr=False)

    @property
    def base(self) -> str | None:
        """The version whose descriptors may be taken over."""
        return self.stored.version if self.stored is not None else None


# Describes the tasks in any order, writes their parts, and reports on it.
PartEngine = Callable[[Iterable[PartTask], Describer, PartSettings], Iterator[PartProgress]]


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
    dim = describer.bundle.descriptor_dim
    found = ((part, read_part(settings.folder, part, dim, settings.base)) for part in parts)
    records = {part.number: record for part, record in found if record is not None}
    drop_other_parts(settings.folder, [part for part in parts if part.number in records])
    return PartPlan(listing, parts, records)


def describe_in_parts(
    plan: PartPlan,
    describer: Describer,
    settings: PartSettings,
    observer: UpdateObserver,
    engine: PartEngine,
    base: DescriptorRows | None = None,
) -> DescribedParts:
    """Describe the photos of a listing, but for those that a part in the folder already holds.

    Args:
        plan: of the listing.
        describer: what describes them.
        settings: how.
        observer: called with the progress after each batch; may raise to stop.
        engine: describes the parts that are missing.
        base: that stored descriptors are taken over from.

    Raises:
        ReferenceDataError: more photos are unreadable than allowed (``too_many_unreadable``).
        MissingExtraError: the engine is not installed.
        OSError: the disk refuses.
    """
    records = dict(plan.records)
    tally = UnreadableTally(settings.describe.max_unreadable)
    done = 0

    def count(photos: int, unreadable: Sequence[LeftOut]) -> None:
        nonlocal done
        done += photos
        for photo in unreadable:
            tally.add(photo)
        if unreadable:
            observer.unreadable(unreadable)
        observer.described(done, tally.count)
        tally.check()
        observer.check_stopped()

    if records:
        unreadable = [one for record in records.values() for one in record.unreadable]
        count(sum(len(record.offsets) for record in records.values()) + len(unreadable), unreadable)
    for progress in engine(plan.tasks(), describer, settings) if plan.photos_to_do else ():
        if progress.done:
            count(progress.done, progress.unreadable)
        if progress.written is not None:
            part, record = progress.written
            records[part.number] = record
            observer.reached("part written")
    ordered = [records[part.number] for part in plan.parts]
    return DescribedParts(settings.folder, plan.parts, ordered, describer.bundle.descriptor_dim, base)


def describe_locally(tasks: Iterable[PartTask], describer: Describer, settings: PartSettings) -> Iterator[PartProgress]:
    """The engine of one machine: threads decode while the describer works, also across the ends of parts."""
    begun: deque[PartTask] = deque()

    def groups() -> Iterator[Sequence[str]]:
        for task in tasks:
            begun.append(task)
            yield task.photos

    below = PathsBelow(settings.root).below
    batches: list[DescribedBatch] = []
    for batch in describe_photos(groups(), describer, settings.describe, hashed=True, stored=settings.stored):
        if not batch.photos:
            continue
        batches.append(batch)
        unreadable = [LeftOut.of(below(photo.path), photo.error) for photo in batch.photos if photo.error]
        yield PartProgress(len(batch.photos), unreadable)
        if sum(len(one.photos) for one in batches) == len(begun[0].photos):
            task = begun.popleft()
            photos = list(enumerate(photo for one in batches for photo in one.photos))
            good = [(offset, photo) for offset, photo in photos if photo.error is None]
            record = PartRecord(
                fingerprint=task.part.fingerprint,
                offsets=[offset for offset, _ in good],
                content_sha256=[(photo.sha256 or b"").hex() for _, photo in good],
                base_rows=[_DESCRIBED_HERE if photo.stored_row is None else photo.stored_row for _, photo in good],
                base=settings.base if any(photo.stored_row is not None for _, photo in good) else None,
                unreadable=[LeftOut.of(below(photo.path), photo.error) for _, photo in photos if photo.error],
            )
            descriptors = np.concatenate([one.descriptors for one in batches])
            batches = []
            write_part(settings.folder, task.part, descriptors, record)
            yield PartProgress(written=(task.part, record))


def _load(folder: Path, part: Part, record: PartRecord, dim: int) -> NDArray[np.float32]:
    if record.described_here == 0:  # an empty file cannot be mapped
        return np.empty((0, dim), np.float32)
    loaded: NDArray[np.float32] = np.load(folder / f"{part.name}.npy", mmap_mode="r")
    return loaded
