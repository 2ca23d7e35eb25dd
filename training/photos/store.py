"""Decoded photos on disk: a growing file of pixels, and a table of which photo lies where in it.

A folder of decoded photos holds one store for each preprocessing, in a folder of its own such as `256x256-1f0c…`:

    pixels.raw   rows of height × width × 3 bytes, 8-bit RGB, row after row, nothing else
    photos.jsonl line 1: what the store is and how its photos were decoded
                 then one line for each row: [row, path, bytes of the file, its mtime in nanoseconds]
    lock         locked by the process that adds rows

Rows are only ever added, and never written again: other processes may be reading them. A line is written when the
pixels of its row are on the disk, and counts when its newline is there; so whatever is cut off in the middle, by
kill -9 or a full disk, is as if it had not begun. A photo that changed gets a new row and a later line. The name of a
store's folder has a hash of the preprocessing and of the decoders' versions, so pixels of other settings are never
found. Any of it may be deleted while no training runs: it is made again from the photos.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import PIL
import pillow_heif
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from retrieval.artefact import replace_file, storage_errors
from retrieval.errors import ArtefactError, StorageError
from retrieval.images import Preprocessing

PIXELS_NAME: Final = "pixels.raw"
TABLE_NAME: Final = "photos.jsonl"
LOCK_NAME: Final = "lock"
_FORMAT: Final = "sightfix decoded photos"
_FORMAT_VERSION: Final = 1


class PhotoIdentity(NamedTuple):
    """Which state of which file: a row of another state is stale.

    Attributes:
        path: absolute.
        size: bytes.
        mtime_ns: time of its last change, nanoseconds.
    """

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> "PhotoIdentity":
        """As the file is now.

        Raises:
            OSError: there is no such file, or its folder may not be read.
        """
        status = path.stat()
        return cls(str(path.absolute()), status.st_size, status.st_mtime_ns)


@dataclass
class PhotoStore:
    """The decoded photos of one preprocessing.

    Attributes:
        folder: of this store.
        shape: (height, width, 3) of a photo.
        rows: where each photo lies in the file of pixels, as last read or added.
    """

    folder: Path
    shape: tuple[int, int, int]
    rows: dict[PhotoIdentity, int] = field(default_factory=dict)
    _header: bytes = b""
    _table_bytes: int = 0  # of whole lines
    _next_row: int = 0
    _damaged: bool = False  # some whole lines do not count

    @classmethod
    def of(cls, folder: Path, preprocessing: Preprocessing) -> "PhotoStore":
        """The store of a preprocessing below a folder of decoded photos; nothing is read or made yet.

        Raises:
            StorageError: the folder is something else.
        """
        with storage_errors(folder):
            something_else = folder.exists() and not folder.is_dir()
        if something_else:
            raise StorageError(
                "decoded photos are kept in a folder, and this is not one",
                where=str(folder),
                remedy="Choose another folder with --cache",
            )
        header = {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "decoders": f"Pillow {PIL.__version__}, pillow-heif {pillow_heif.__version__}",
            "preprocessing": preprocessing.model_dump(mode="json"),
        }
        text = json.dumps(header, sort_keys=True).encode() + b"\n"
        height, width = preprocessing.height, preprocessing.width
        name = f"{width}x{height}-{hashlib.sha256(text).hexdigest()[:16]}"
        return cls(folder / name, (height, width, 3), _header=text)

    @property
    def row_bytes(self) -> int:
        """Bytes of one decoded photo."""
        height, width, channels = self.shape
        return height * width * channels

    @property
    def pixels_path(self) -> Path:
        """The file of pixels."""
        return self.folder / PIXELS_NAME

    @property
    def _table_path(self) -> Path:
        return self.folder / TABLE_NAME

    def read(self) -> None:
        """Read which photos are there; an incomplete line or row does not count.

        Raises:
            ArtefactError: the table has another format.
            StorageError: it may not be read.
        """
        with storage_errors(self.folder):
            if not self._table_path.exists():
                return
            table = self._table_path.read_bytes()
            on_disk = self.pixels_path.stat().st_size // self.row_bytes if self.pixels_path.exists() else 0
        if not table.startswith(self._header):
            raise ArtefactError(
                "this is not a table of decoded photos",
                where=str(self._table_path),
                remedy=f"Delete the folder {self.folder}: its photos are decoded again",
            )
        self._table_bytes = table.rfind(b"\n") + 1
        lines = table[len(self._header) : self._table_bytes].split(b"\n")[:-1]
        parsed = [_parse(line) for line in lines]
        whole = [entry for entry in parsed if entry is not None and entry[1] < on_disk]
        self.rows = dict(whole)
        self._next_row = 1 + max((row for _, row in whole), default=-1)
        self._damaged = len(whole) < len(lines)

    @contextlib.contextmanager
    def adding(self, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
        """Be the one process that adds rows; what others added before is read first.

        The kernel releases the lock with the process, however that ends.

        Args:
            on_wait: called with a message when another process is adding, before waiting for it.

        Raises:
            ArtefactError, StorageError: see `read`; or the folder cannot be written.
        """
        lock = FileLock(self.folder / LOCK_NAME)
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                if on_wait is not None:
                    on_wait(f"another process is decoding photos into {self.folder}: waiting for it")
                lock.acquire()
        try:
            with storage_errors(self.folder):
                if not self._table_path.exists():
                    replace_file(self._table_path, self._header)
            self.read()
            self._repair()
            yield
        finally:
            lock.release()

    def _repair(self) -> None:
        """Drop lines without a row: when the file of pixels grows past where their rows would lie, they would count."""
        if not self._damaged:
            return
        table = self._header + b"".join(_line(identity, row) for identity, row in self.rows.items())
        with storage_errors(self.folder):
            replace_file(self._table_path, table)
        self._table_bytes, self._damaged = len(table), False

    def check_space(self, count: int) -> None:
        """Refuse to begin with more photos than there is room for.

        Args:
            count: photos to add.

        Raises:
            StorageError: says how much is needed.
        """
        needed = count * self.row_bytes
        with storage_errors(self.folder):
            free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise StorageError(
                f"{count} decoded photos of {self.shape[1]}x{self.shape[0]} need {needed / 1e9:.3g} GB, "
                f"the disk has {free / 1e9:.3g} GB free",
                where=str(self.folder),
                remedy="Free some space, choose another folder with --cache, or train on fewer or smaller photos",
            )

    def add(self, photos: Mapping[PhotoIdentity, NDArray[np.uint8]]) -> None:
        """Add decoded photos; only while `adding`.

        Args:
            photos: each (height, width, 3) uint8, by the identity that its file had before it was read.

        Raises:
            StorageError: the disk is full, or refuses otherwise; what was there before is whole.
        """
        if not photos:
            return
        added = {identity: self._next_row + i for i, identity in enumerate(photos)}
        lines = b"".join(_line(identity, row) for identity, row in added.items())
        begin = self._next_row * self.row_bytes
        with storage_errors(self.folder):
            # Written, not copied into a memory map: a full disk is then an error and no SIGBUS.
            pieces = [np.ascontiguousarray(photo).data.cast("B") for photo in photos.values()]
            _write_at(self.pixels_path, begin, pieces)
            _write_at(self._table_path, self._table_bytes, [memoryview(lines)])
        self._table_bytes += len(lines)
        self._next_row += len(photos)
        self.rows.update(added)


def _line(identity: PhotoIdentity, row: int) -> bytes:
    return json.dumps([row, identity.path, identity.size, identity.mtime_ns]).encode() + b"\n"


def _parse(line: bytes) -> tuple[PhotoIdentity, int] | None:
    try:
        row, path, size, mtime_ns = json.loads(line)
    except (ValueError, TypeError):
        return None
    if type(path) is not str or not (type(row) is type(size) is type(mtime_ns) is int) or row < 0:
        return None
    return PhotoIdentity(path, size, mtime_ns), row


def _write_at(path: Path, begin: int, pieces: Sequence[memoryview]) -> None:
    """Write into a file at an offset and flush it to the disk; give the space back if that fails."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        offset = begin
        for piece in pieces:
            while len(piece):
                written = os.pwrite(descriptor, piece, offset)
                piece, offset = piece[written:], offset + written
        os.fdatasync(descriptor)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, begin)
        raise
    finally:
        os.close(descriptor)
