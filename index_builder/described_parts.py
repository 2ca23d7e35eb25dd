"""Describing that survives a crash: numbered parts on the disk, each written whole or not at all.

A part is ``part-000007.npy``, (n, D) float32, and ``part-000007.json``, which says of which photos and with what model.
The JSON is renamed last, so a part that has one is whole. Described again is only what has no part of the same
fingerprint: after a kill, at most the part in hand.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from index_builder.describing import DescribedBatch, DescribeSettings, UnreadablePhoto, describe_in_batches
from index_builder.update_watch import LeftOut, UpdateWatch
from retrieval.artefact import flush_to_disk, write_flushed
from retrieval.describer import Describer, Descriptors
from retrieval.errors import ReferenceDataError
from retrieval.references.reference import Reference

DEFAULT_PART_PHOTOS: Final = 256

# A described batch may hold more unreadable photos than are allowed: they are reported before the work stops.
_NO_LIMIT: Final = 1 << 62


class _PartRecord(BaseModel):
    """What stands in a part's JSON: offsets count from the part's first photo."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    described: list[int]
    unreadable: list[LeftOut]


@dataclass(frozen=True, slots=True)
class _Part:
    """Photos `start` to `stop` of the listing."""

    number: int
    start: int
    stop: int
    fingerprint: str

    @property
    def name(self) -> str:
        return f"part-{self.number:06d}"


class DescribedParts:
    """All descriptors of a listing, left on the disk.

    Args:
        rows: (n,) int64, the rows of the listing that were described, rising.
        unreadable: how many were not.
        pieces: (n_p, D) float32 each, together n rows.
        dim: D.
    """

    def __init__(
        self, rows: NDArray[np.int64], unreadable: int, pieces: Sequence[NDArray[np.float32]], dim: int
    ) -> None:
        self.rows = rows
        self.unreadable = unreadable
        self._pieces = pieces
        self._dim = dim
        self._starts = np.cumsum([0, *(len(piece) for piece in pieces)])

    def take(self, places: NDArray[np.int64]) -> Descriptors:
        """The descriptors at some places of `rows`, (len(places), D) float32."""
        out = np.empty((len(places), self._dim), np.float32)
        holders = np.searchsorted(self._starts, places, side="right") - 1
        for holder in np.unique(holders):
            here = holders == holder
            out[here] = self._pieces[holder][places[here] - self._starts[holder]]
        return out


def describe_in_parts(
    listing: pa.Table,
    root: Path,
    describer: Describer,
    folder: Path,
    settings: DescribeSettings,
    watch: UpdateWatch,
    part_photos: int = DEFAULT_PART_PHOTOS,
) -> DescribedParts:
    """Describe the photos of a listing, those aside that a part in the folder already holds.

    Args:
        listing: rows of `REFERENCE_SCHEMA` with absolute paths.
        root: of the source; photos that cannot be read are told by their path below it.
        describer: what describes them.
        folder: where the parts lie; made if need be.
        settings: how; more than `max_unreadable` photos stop the work.
        watch: told of progress, asked after each batch whether to go on.
        part_photos: photos in a part, rounded up to whole batches.

    Raises:
        ReferenceDataError: more photos are unreadable than allowed (``too_many_unreadable``).
        OSError: the disk refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-max(1, part_photos) // settings.batch_size) * settings.batch_size
    parts = list(_cut(listing, size, _conditions(describer, settings)))
    dim = describer.bundle.descriptor_dim
    records = {part.number: record for part in parts if (record := _read_part(folder, part, dim)) is not None}
    tally = _Tally(settings.max_unreadable, watch)
    for record in records.values():
        tally.add(len(record.described), record.unreadable)
    to_do = [part for part in parts if part.number not in records]
    batches = describe_in_batches(
        (reference for part in to_do for reference in _references(listing, part)),
        describer,
        replace(settings, max_unreadable=_NO_LIMIT),
    )
    for part in to_do:
        descriptors, record = _describe_part(part, listing, batches, root, tally, dim)
        _write_part(folder, part, descriptors, record)
        records[part.number] = record
        watch.reached("part written")
    rows = [part.start + offset for part in parts for offset in records[part.number].described]
    pieces = [_load(folder, part, len(records[part.number].described), dim) for part in parts]
    return DescribedParts(np.array(rows, np.int64), tally.failed, pieces, dim)


class _Tally:
    """Counts photos and stops where too many cannot be read."""

    def __init__(self, max_unreadable: int, watch: UpdateWatch) -> None:
        self.failed = 0
        self._done = 0
        self._max_unreadable = max_unreadable
        self._watch = watch

    def add(self, described: int, unreadable: Sequence[LeftOut]) -> None:
        self.failed += len(unreadable)
        self._done += described + len(unreadable)
        if unreadable:
            self._watch.unreadable(unreadable)
        self._watch.described(self._done, self.failed)
        if self.failed > self._max_unreadable:
            one = unreadable[0]
            raise ReferenceDataError(
                f"{self.failed} photos are unreadable so far, {self._max_unreadable} are allowed; "
                f"one of them: {one.reason}",
                where=one.path,
                remedy="Repair or remove them, or allow more to be left out (max_unreadable)",
                code="too_many_unreadable",
            )
        self._watch.go_on()


def _conditions(describer: Describer, settings: DescribeSettings) -> dict[str, Any]:
    """What a descriptor depends on beside its photo."""
    limits = asdict(settings.limits)
    return {"bundle": describer.bundle.fingerprint, "precision": describer.precision, "limits": limits}


def _cut(listing: pa.Table, size: int, conditions: dict[str, Any]) -> Iterator[_Part]:
    for number, start in enumerate(range(0, listing.num_rows, size)):
        piece = listing.slice(start, size)
        text = json.dumps([conditions, piece.to_pydict()], sort_keys=True)
        yield _Part(number, start, start + piece.num_rows, hashlib.sha256(text.encode()).hexdigest())


def _references(listing: pa.Table, part: _Part) -> Iterator[Reference]:
    piece = listing.slice(part.start, part.stop - part.start)
    for reference_id, path in zip(piece["id"].to_pylist(), piece["path"].to_pylist(), strict=True):
        yield Reference(reference_id, Path(path), None)


def _describe_part(
    part: _Part, listing: pa.Table, batches: Iterator[DescribedBatch], root: Path, tally: _Tally, dim: int
) -> tuple[Descriptors, _PartRecord]:
    """Take as many batches as the part needs. Parts are whole batches, so none reaches into the next."""
    offset_of = {
        name: place for place, name in enumerate(listing["id"].slice(part.start, part.stop - part.start).to_pylist())
    }
    pieces, described, unreadable = [np.empty((0, dim), np.float32)], list[int](), list[LeftOut]()
    while len(described) + len(unreadable) < len(offset_of):
        batch = next(batches)
        left_out = [_left_out(photo, root) for photo in batch.unreadable]
        pieces.append(batch.descriptors)
        described.extend(offset_of[reference.id] for reference in batch.references)
        unreadable.extend(left_out)
        tally.add(len(batch.references), left_out)
    return np.concatenate(pieces), _PartRecord(fingerprint=part.fingerprint, described=described, unreadable=unreadable)


def _left_out(photo: UnreadablePhoto, root: Path) -> LeftOut:
    error = photo.error
    return LeftOut(path_below(photo.reference.path, root), error.code, error.what, error.remedy)


def path_below(path: Path, root: Path) -> str:
    """The path of a photo below a root with ``/``, or the whole path where it lies elsewhere."""
    whole, start = Path(os.path.abspath(path)), Path(os.path.abspath(root))  # noqa: PTH100 - links stay as they are
    return whole.relative_to(start).as_posix() if whole.is_relative_to(start) else str(path)


def _write_part(folder: Path, part: _Part, descriptors: Descriptors, record: _PartRecord) -> None:
    vectors, words = folder / f"{part.name}.npy", folder / f"{part.name}.json"
    # The old record first, where there is one: it must never speak of new vectors.
    words.unlink(missing_ok=True)
    temporary = folder / f".{part.name}.tmp"
    # Through memory: numpy's own writing to a full disk raises an error without a number.
    buffer = io.BytesIO()
    np.save(buffer, descriptors)
    write_flushed(temporary, buffer.getvalue())
    temporary.replace(vectors)
    write_flushed(temporary, record.model_dump_json().encode())
    temporary.replace(words)
    flush_to_disk(folder)


def _read_part(folder: Path, part: _Part, dim: int) -> _PartRecord | None:
    """The record of a part that is whole and was made of the same photos with the same model, else None."""
    try:
        record = _PartRecord.model_validate_json((folder / f"{part.name}.json").read_bytes())
        vectors = _load(folder, part, len(record.described), dim)
    except (OSError, ValueError, ValidationError):
        return None
    whole = vectors.shape == (len(record.described), dim) and vectors.dtype == np.float32
    return record if whole and record.fingerprint == part.fingerprint else None


def _load(folder: Path, part: _Part, count: int, dim: int) -> NDArray[np.float32]:
    if count == 0:  # an empty file cannot be mapped
        return np.empty((0, dim), np.float32)
    loaded: NDArray[np.float32] = np.load(folder / f"{part.name}.npy", mmap_mode="r")
    return loaded
