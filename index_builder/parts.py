"""Describing that survives a crash: numbered parts on the disk, each written whole or not at all.

A part is ``part-000007.npy``, (n, D) float32, and ``part-000007.json``, which says of which photos and with what model.
The JSON is renamed last, so a part that has one is whole. Described again is only what has no part of the same
fingerprint: after a kill, at most the part in hand. Whoever writes a part, this process or a machine of a cluster,
writes the same.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from index_builder.describing import DescribeSettings, KnownContent, PhotoBatch, SeenPhoto, describe_groups
from index_builder.update_plan import PathsBelow
from index_builder.update_watch import LeftOut, UpdateWatch
from retrieval.artefact import flush_to_disk, write_flushed
from retrieval.describer import Describer, Descriptors
from retrieval.errors import ImageError, ReferenceDataError
from retrieval.index.place_index import PlaceIndex
from retrieval.references.reference import Reference

DEFAULT_PART_PHOTOS: Final = 256

_WORDS: Final = "part-*.json"

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
        states = [_file_state(path) for path in piece["path"].to_pylist()]
        text = json.dumps([conditions, piece.to_pydict(), states], sort_keys=True)
        yield Part(number, start, start + piece.num_rows, hashlib.sha256(text.encode()).hexdigest())


def _file_state(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - this line runs for every photo
    except (OSError, ValueError):  # a NUL
        return None
    return status.st_size, status.st_mtime_ns


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
    vectors, words = folder / f"{part.name}.npy", folder / f"{part.name}.json"
    # The old record first, where there is one: it must never speak of new vectors.
    words.unlink(missing_ok=True)
    temporary = folder / f".{part.name}.tmp"
    if len(descriptors):
        # Through memory: numpy's own writing to a full disk raises an error without a number.
        buffer = io.BytesIO()
        np.save(buffer, descriptors)
        write_flushed(temporary, buffer.getvalue())
        temporary.replace(vectors)
    write_flushed(temporary, record.model_dump_json().encode())
    temporary.replace(words)
    flush_to_disk(folder)


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
    for pattern in (_WORDS, _VECTORS):  # the record first: it must never speak of vectors that are gone
        for path in folder.glob(pattern):
            if path.stem not in kept:
                path.unlink()


@contextlib.contextmanager
def work_for_itself(folder: Path) -> Iterator[None]:
    """A work folder that the same work finds again after a failure, and that is gone when the work is done.

    It is gone also where the work failed before anything was described, for there is nothing to go on from.
    """
    try:
        yield
    except BaseException:
        if next(folder.glob(_VECTORS), None) is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


class DescribedParts:
    """All descriptors of a listing, left on the disk.

    Args:
        folder: of the parts.
        parts: all of them, in their order.
        records: of each.
        dim: D.
        base: of which rows were taken over, if any were.

    Attributes:
        rows: (n,) int64, the rows of the listing that have a descriptor, rising.
        base_rows: (n,) int64, the row of the base that each was taken over from, -1 where it was described.
        content_sha256: (n,) strings.
        unreadable: how many rows have none.
    """

    def __init__(
        self, folder: Path, parts: Sequence[Part], records: Sequence[PartRecord], dim: int, base: PlaceIndex | None
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
        self.unreadable = sum(len(record.unreadable) for record in records)
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
        """Remove them: they are not to be believed."""
        self._open.clear()
        drop_other_parts(self._folder, [])

    def _vectors(self, number: int) -> NDArray[np.float32]:
        if number not in self._open:
            if len(self._open) == _OPEN_PARTS:
                self._open.popitem(last=False)
            self._open[number] = _load(self._folder, self._parts[number], self._records[number], self._dim)
        self._open.move_to_end(number)
        return self._open[number]


def _load(folder: Path, part: Part, record: PartRecord, dim: int) -> NDArray[np.float32]:
    if record.described_here == 0:  # an empty file cannot be mapped
        return np.empty((0, dim), np.float32)
    loaded: NDArray[np.float32] = np.load(folder / f"{part.name}.npy", mmap_mode="r")
    return loaded


# Describe a listing part by part: what is there is kept, and an engine describes the rest.

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
