"""What all readers of reference databases share: their options, the filters, and photos that are not there."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, ClassVar, Final, Generic, Literal, NamedTuple, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from retrieval.errors import ParameterError, ReferenceDataError
from retrieval.references.bounding_box import BoundingBox
from retrieval.references.reference import Reference, SkippedPhoto

_SHOWN_SESSIONS: Final = 6


def _split(value: object) -> object:
    return tuple(part for part in value.split(",") if part) if isinstance(value, str) else value


def _box(value: object) -> object:
    return BoundingBox.parse(value) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_split)]


class ReaderOptions(BaseModel):
    """What every reader can be told; in a spec string after the question mark.

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
        """Whether session and bounding box let the reference pass."""
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

    @abstractmethod
    def _nothing_read(self, skipped: list[SkippedPhoto]) -> ReferenceDataError:
        """The error that explains why there is no reference at all."""

    def _settle(self, row: Row | None, reference: Reference, skipped: list[SkippedPhoto]) -> Reference | None:
        """Look at a reference that passed the filters once more: changed, or None to leave it out."""
        return reference

    def __iter__(self) -> Iterator[Reference]:
        """Yield the references that pass the filters.

        Raises:
            ReferenceDataError: a row or file that cannot be read; no reference at all; none that passes the filters.
        """
        skipped = self.skipped = []
        options, read, wanted, given = self.options, 0, 0, 0
        sessions: dict[str, None] = {}
        for row, reference in self._read(skipped):
            read += 1
            if reference.session is not None and len(sessions) <= _SHOWN_SESSIONS:
                sessions[reference.session] = None
            if not options.wants(reference):
                continue
            wanted += 1
            if (wanted - 1) % options.every:
                continue
            settled = self._settle(row, reference, skipped)
            if settled is None:
                continue
            yield settled
            given += 1
            if given == options.limit:
                return
        if not given:
            raise self._nothing_given(read, wanted, list(sessions), skipped)

    def _nothing_given(
        self, read: int, wanted: int, sessions: list[str], skipped: list[SkippedPhoto]
    ) -> ReferenceDataError:
        if wanted or not read:
            return self._nothing_read(skipped)
        options = self.options
        filters = [f"sessions={','.join(options.sessions)}"] if options.sessions else []
        filters += [f"bbox={options.bbox}"] if options.bbox else []
        more = ", …" if len(sessions) > _SHOWN_SESSIONS else ""
        named = f"Its sessions are {', '.join(sessions[:_SHOWN_SESSIONS])}{more}" if sessions else "It has no sessions"
        remedy = named if options.sessions else "Look at its bounds with: sightfix inspect SPEC, without bbox"
        return ReferenceDataError(
            f"none of {read} references passes {' and '.join(filters)}", where=str(self.location), remedy=remedy
        )

    def __len__(self) -> int:
        """How many rows to expect at most; filters by session and bounding box are not counted."""
        if self._counted is None:
            self._counted = self._count()
        rows = -(-self._counted // self.options.every)
        return rows if self.options.limit is None else min(rows, self.options.limit)


class ListedOptions(ReaderOptions):
    """Options of readers whose photos stand in a table and may be missing on disk.

    Attributes:
        missing: what to do about a listed photo that does not exist: `error` stops, `skip` leaves it out and says so,
            `ignore` does not look (for photos on slow network disks).
    """

    missing: Literal["error", "skip", "ignore"] = "error"


ListedOptionsT = TypeVar("ListedOptionsT", bound=ListedOptions)


class ListedReader(Reader[ListedOptionsT]):
    """A reader whose photos stand in a table: it looks whether each one exists, after the filters."""

    def _other_places(self, row: Row | None, path: Path) -> Iterator[Path]:
        """Where else the photo may lie."""
        yield from ()

    def _settle(self, row: Row | None, reference: Reference, skipped: list[SkippedPhoto]) -> Reference | None:
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
    """The error of a location that is not there or not a file or folder as it should be."""
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
