"""What all readers of reference databases share: options, filters, and the photos of a folder or a table."""

import contextlib
import os
import stat
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, ClassVar, Final, Generic, Literal, NamedTuple, Self, TypeVar, cast
from urllib.parse import quote

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from retrieval.errors import ParameterError, ReferenceDataError
from retrieval.geo import Position, check_lat_lon
from retrieval.images import FILE_SUFFIXES
from retrieval.references.reference import Reference, SkippedPhoto

# Photos by their suffix, but of formats that `retrieval.images` does not decode.
FOREIGN_SUFFIXES: Final[frozenset[str]] = frozenset(
    {".tif", ".tiff", ".bmp", ".gif", ".avif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"}
)

_PHOTO_SUFFIXES: Final = FILE_SUFFIXES | FOREIGN_SUFFIXES
_SHOWN_SESSIONS: Final = 6
_FIRST_SLOTS: Final = 1 << 10


class UnusablePhotoError(ValueError):
    """A photo without a position that can be used; the text says why, with the photo as its subject."""


@dataclass(frozen=True, slots=True)
class BoundingBox:
    """A box on the Earth, border included, in WGS84 degrees; it crosses the antimeridian where lon_min > lon_max.

    Raises:
        ParameterError: a corner outside the Earth, or lat_min above lat_max.
    """

    lat_min: float
    lon_min: float
    lat_max: float
    lon_max: float

    def __post_init__(self) -> None:
        for lat, lon in ((self.lat_min, self.lon_min), (self.lat_max, self.lon_max)):
            check_lat_lon(lat, lon)
        if self.lat_min > self.lat_max:
            raise ParameterError(
                f"bbox lat_min {self.lat_min:g} is above lat_max {self.lat_max:g}",
                remedy="Give bbox=lat_min,lon_min,lat_max,lon_max",
            )
        for name in ("lon_min", "lon_max"):
            lon = getattr(self, name)
            if lon > 180.0:
                object.__setattr__(self, name, lon - 360.0)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The box written as ``lat_min,lon_min,lat_max,lon_max``.

        Raises:
            ParameterError: not four numbers, or no box.
        """
        try:
            lat_min, lon_min, lat_max, lon_max = (float(part) for part in text.split(","))
        except ValueError:
            raise ParameterError(
                f"bbox={text} is not four numbers",
                remedy="Give bbox=lat_min,lon_min,lat_max,lon_max, such as bbox=48.1,11.5,48.2,11.6",
            ) from None
        return cls(lat_min, lon_min, lat_max, lon_max)

    def holds(self, position: Position) -> bool:
        """Whether the position lies in the box."""
        if not self.lat_min <= position.lat <= self.lat_max:
            return False
        if self.lon_min > self.lon_max:
            return position.lon >= self.lon_min or position.lon <= self.lon_max
        return self.lon_min <= position.lon <= self.lon_max

    def __str__(self) -> str:
        return f"{self.lat_min!r},{self.lon_min!r},{self.lat_max!r},{self.lon_max!r}"


class SeenIds:
    """A set of ids in 16 to 32 bytes each, for long tables: their 64-bit hashes in an open-addressed table.

    Two different ids share a hash once in about 400 000 databases of ten million, so the caller looks again before it
    complains.
    """

    def __init__(self) -> None:
        self._slots = array("Q", [0]) * _FIRST_SLOTS
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, reference_id: str) -> bool:
        """Remember an id, and return whether it is new."""
        key = (hash(reference_id) & 0xFFFF_FFFF_FFFF_FFFF) or 1  # 0 marks an empty slot
        if not self._put(key):
            return False
        self._count += 1
        if 2 * self._count > len(self._slots):
            self._grow()
        return True

    def _put(self, key: int) -> bool:
        slots, mask = self._slots, len(self._slots) - 1
        place = key & mask
        while (held := slots[place]) != 0:
            if held == key:
                return False
            place = (place + 1) & mask
        slots[place] = key
        return True

    def _grow(self) -> None:
        before = self._slots
        self._slots = array("Q", [0]) * (2 * len(before))
        for key in before:
            if key:
                self._put(key)


def _split(value: object) -> object:
    return tuple(part for part in value.split(",") if part) if isinstance(value, str) else value


def _box(value: object) -> object:
    return BoundingBox.parse(value) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_split)]


class ReaderOptions(BaseModel):
    """Options of every reader; in a spec string they stand after the question mark.

    Attributes:
        sessions: keep references whose session matches one of these globs (``phoneA_*``); empty keeps all.
        bbox: keep references that lie in it.
        every: of those, keep the first and then each n-th.
        limit: of those, keep at most so many.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sessions: Names = ()
    bbox: Annotated[BoundingBox | None, BeforeValidator(_box)] = None
    every: int = Field(default=1, ge=1)
    limit: int | None = Field(default=None, ge=1)

    def wants(self, reference: Reference) -> bool:
        """Whether the reference passes the filters by session and bounding box."""
        if self.sessions:
            session = reference.session
            if session is None or not any(fnmatchcase(session, glob) for glob in self.sessions):
                return False
        return self.bbox is None or (reference.position is not None and self.bbox.holds(reference.position))

    def as_query(self) -> str:
        """The options that differ from the default, as the part of a spec after the question mark."""
        given = {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}
        return "&".join(f"{name}={quote(_text(value), safe='*,/:;@ ')}" for name, value in given.items())


def _text(value: object) -> str:
    return ",".join(str(part) for part in value) if isinstance(value, tuple) else str(value)


class Row(NamedTuple):
    """Where a reference stands in a table: the file, and the row as a person counts them."""

    file: Path
    number: int

    def __str__(self) -> str:
        return f"{self.file}, row {self.number}"


Options = TypeVar("Options", bound=ReaderOptions)


class Reader(ABC, Generic[Options]):
    """An opened reference database: a `ReferenceSource` that filters what `_read` yields.

    Args:
        location: the folder or file.
        options: of this kind of reader.
        spec: the spec string that opens it again; made from location and options if left out.

    Attributes:
        root: the folder below which its photos lie.
        skipped: photos left out in the latest iteration, with the reason.
    """

    kind: ClassVar[str]

    # What is wrong when there is no photo at all, and what to do; what to do when none of them can be used.
    nothing: str
    nothing_remedy: str
    unusable_remedy: str

    def __init__(self, location: Path, options: Options, root: Path, spec: str | None = None) -> None:
        query = options.as_query()
        self.location = location
        self.options = options
        self.root = root
        self.spec = spec or f"{self.kind}:{location}" + (f"?{query}" if query else "")
        self.skipped: list[SkippedPhoto] = []
        self._counted: int | None = None

    @abstractmethod
    def _read(self, skipped: list[SkippedPhoto]) -> Iterator[tuple[Row | None, Reference]]:
        """Yield every reference with the row it stands in, if any, before filters."""

    @abstractmethod
    def _count(self) -> int:
        """How many rows `_read` will yield at most."""

    def _with_photo(self, row: Row | None, reference: Reference, skipped: list[SkippedPhoto]) -> Reference | None:
        """The reference with the path where its photo lies, or None to leave it out; only after the filters."""
        return reference

    def __iter__(self) -> Iterator[Reference]:
        """Yield the references that pass the filters.

        Raises:
            ReferenceDataError: a row or file that cannot be read; no reference at all; none that passes the filters.
        """
        skipped = self.skipped = []
        options, read, passed, given = self.options, 0, 0, 0
        sessions: dict[str, None] = {}
        for row, reference in self._read(skipped):
            read += 1
            if reference.session is not None and len(sessions) <= _SHOWN_SESSIONS:
                sessions[reference.session] = None
            if not options.wants(reference):
                continue
            passed += 1
            if (passed - 1) % options.every:
                continue
            found = self._with_photo(row, reference, skipped)
            if found is None:
                continue
            yield found
            given += 1
            if given == options.limit:
                return
        if not given:
            raise self._nothing_left(read, list(sessions)) if read and not passed else self._nothing_read(skipped)

    def _nothing_read(self, skipped: list[SkippedPhoto]) -> ReferenceDataError:
        if not skipped:
            return ReferenceDataError(self.nothing, where=str(self.location), remedy=self.nothing_remedy)
        what = f"no photo of {len(skipped):,} can be used: {_count_reasons(skipped)}"
        return ReferenceDataError(what, where=str(self.location), remedy=self.unusable_remedy)

    def _nothing_left(self, read: int, sessions: list[str]) -> ReferenceDataError:
        """The error of filters that no reference passes."""
        options = self.options
        filters = [f"sessions={','.join(options.sessions)}"] if options.sessions else []
        filters += [f"bbox={options.bbox}"] if options.bbox else []
        more = ", …" if len(sessions) > _SHOWN_SESSIONS else ""
        named = f"Its sessions are {', '.join(sessions[:_SHOWN_SESSIONS])}{more}" if sessions else "It has no sessions"
        remedy = named if options.sessions else "Look at its bounds with: sightfix inspect SPEC, without bbox"
        return ReferenceDataError(
            f"no reference of {read:,} passes {' and '.join(filters)}", where=str(self.location), remedy=remedy
        )

    def __len__(self) -> int:
        """How many rows to expect at most; filters by session and bounding box are not counted."""
        if self._counted is None:
            self._counted = self._count()
        rows = -(-self._counted // self.options.every)
        return rows if self.options.limit is None else min(rows, self.options.limit)


class FolderReader(Reader[Options]):
    """A reader of all photos below a folder, each with what its file says.

    Args:
        location: the folder.
        options: of this kind of reader; its defaults if left out.
        spec: the spec string that opens it again; made from location and options if left out.

    Raises:
        ReferenceDataError: no such folder.
    """

    options_type: ClassVar[type[ReaderOptions]]
    nothing = "there is no photo in this folder"

    def __init__(self, location: Path, options: Options | None = None, spec: str | None = None) -> None:
        check_folder(location)
        super().__init__(location, options or cast("Options", self.options_type()), location, spec)

    @abstractmethod
    def _reference(self, path: Path) -> Reference:
        """The reference of a photo.

        Raises:
            UnusablePhotoError: it has no position that can be used.
        """

    def _read(self, skipped: list[SkippedPhoto]) -> Iterator[tuple[Row | None, Reference]]:
        for path in walk_photos(self.location, skipped):
            try:
                reference = self._reference(path)
            except UnusablePhotoError as error:
                skipped.append(SkippedPhoto(path, str(error)))
            else:
                yield None, reference

    def _count(self) -> int:
        return sum(1 for _ in walk_photos(self.location))


class ListedOptions(ReaderOptions):
    """Options of readers whose photos stand in a table and may be missing on disk.

    Attributes:
        missing: what to do about a listed photo that does not exist: `error` stops, `skip` leaves it out and says so,
            `ignore` does not look (for photos on slow network disks).
    """

    missing: Literal["error", "skip", "ignore"] = "error"


ListedOptionsT = TypeVar("ListedOptionsT", bound=ListedOptions)


class ListedReader(Reader[ListedOptionsT]):
    """A reader whose photos stand in a table: it checks that each one exists, after the filters."""

    def _other_places(self, row: Row | None, path: Path) -> Iterator[Path]:
        """Where else the photo may lie."""
        yield from ()

    def _with_photo(self, row: Row | None, reference: Reference, skipped: list[SkippedPhoto]) -> Reference | None:
        path = reference.path
        if self.options.missing == "ignore" or _is_file(path):
            return reference
        for other in self._other_places(row, path):
            if _is_file(other):
                return replace(reference, path=other)
        if self.options.missing == "skip":
            skipped.append(SkippedPhoto(path, "the listed photo does not exist"))
            return None
        raise ReferenceDataError(
            f"there is no photo {path}",
            where=str(row or self.location),
            remedy="Correct the path, or leave such rows out with missing=skip in the spec",
        )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, a NUL
        return False


def parse_options(kind: str, options_type: type[Options], given: Mapping[str, object]) -> Options:
    """Read the options of a spec.

    Raises:
        ParameterError: an option that the reader does not have (lists those it has), or one with a bad value.
    """
    try:
        return options_type.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            valid = ", ".join(options_type.model_fields)
            raise ParameterError(
                f"the reader {kind} has no option {name!r}", remedy=f"Its options are {valid}", code="unknown_option"
            ) from None
        reason = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        raise ParameterError(f"option {name}={given[name]} of the reader {kind} {reason}") from None


def no_such(location: Path, what: str) -> ReferenceDataError:
    """The error of a location that is missing, or not the file or folder that it should be."""
    if not location.exists():
        return ReferenceDataError(f"there is no such {what}", where=str(location), remedy="Check the path")
    other = "folder" if what == "file" else "file"
    return ReferenceDataError(f"this is a {other}, not a {what}", where=str(location), remedy="Check the path")


def check_folder(location: Path) -> None:
    """Raise ReferenceDataError unless the location is a folder."""
    if not location.is_dir():
        raise no_such(location, "folder")


def check_file(location: Path) -> None:
    """Raise ReferenceDataError unless the location is a file."""
    if not location.is_file():
        raise no_such(location, "file")


def walk_photos(root: Path, skipped: list[SkippedPhoto] | None = None) -> Iterator[Path]:
    """Yield the photos below a folder: those of a folder by name, then its subfolders by name.

    Links to folders are followed, each folder once. Names that start with a dot (``.thumbnails``, ``._IMG_1.jpg``) are
    passed over, as are files that are no photos.

    Args:
        root: the folder.
        skipped: gets the photos and folders that cannot be read, with the reason.
    """
    out = skipped if skipped is not None else []
    seen: set[tuple[int, int]] = set()

    def unreadable(error: OSError) -> None:
        out.append(SkippedPhoto(Path(error.filename), f"the folder cannot be read ({error.strerror})"))

    for folder, subfolders, names in os.walk(root, onerror=unreadable, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        for name in sorted(names):
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - this line runs for every file of a folder
            if name.startswith(".") or suffix not in _PHOTO_SUFFIXES:
                continue
            path = Path(folder, name)
            reason = _refusal(path, suffix)
            if reason is None:
                yield path
            else:
                out.append(SkippedPhoto(path, reason))


def _refusal(path: Path, suffix: str) -> str | None:
    if suffix in FOREIGN_SUFFIXES:
        return f"{suffix} photos are not read; convert it to JPEG, PNG, WebP or HEIC"
    try:
        path.name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    with contextlib.suppress(OSError):  # a link that leads nowhere is reported when the photo is read
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe may wait for its writer for ever
            return "it is not a file, but a pipe, a socket or a device"
    return None


def relative_id(path: Path, root: Path) -> str:
    """The path below the root with ``/``: the id of a photo that has no other."""
    return path.relative_to(root).as_posix()


def subfolder_session(path: Path, root: Path) -> str | None:
    """The folder of a photo below the root with ``/``, or None in the root itself."""
    folder = path.parent.relative_to(root).as_posix()
    return None if folder == "." else folder


def _count_reasons(skipped: list[SkippedPhoto]) -> str:
    """How many photos were left out for which reason, the most frequent first: ``no GPS position (10); … (2)``."""
    counts = Counter(photo.reason for photo in skipped)
    shown = [f"{reason} ({count})" for reason, count in counts.most_common(3)]
    return "; ".join(shown) + ("; …" if len(counts) > 3 else "")
