"""Tables of photos: which column holds what, and from the values of a row to a reference."""

import math
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path, PurePath
from typing import Final, Literal, get_args

from pydantic import Field

from retrieval.errors import ReferenceDataError
from retrieval.geo import Position
from retrieval.references.reader import ListedOptions, ListedReader, Row, SeenIds, check_folder
from retrieval.references.reference import Reference, SkippedPhoto

ColumnField = Literal["path", "lat", "lon", "id", "heading", "altitude", "captured_at", "session"]
FIELDS: Final[tuple[ColumnField, ...]] = get_args(ColumnField)
REQUIRED: Final[tuple[ColumnField, ...]] = ("path", "lat", "lon")

# Other names that a field goes by; compared in lower case.
ALIASES: Final[Mapping[ColumnField, tuple[str, ...]]] = {
    "path": ("filename", "file_name", "filepath", "file_path", "file", "image", "image_path", "image_name", "photo"),
    "lat": ("latitude",),
    "lon": ("longitude", "lng", "long"),
    "id": ("reference_id", "image_id", "photo_id"),
    "heading": ("heading_deg", "bearing", "compass_angle"),
    "altitude": ("altitude_m", "alt"),
    "captured_at": ("timestamp", "datetime", "date_time", "taken_at", "time"),
    "session": ("session_id", "sequence", "sequence_id", "sequence_key"),
}

_NO_POSITION: Final = "its row has no latitude and longitude"
_DECIMAL_COMMA: Final = re.compile(r"[-+]?\d+,\d+")
_UNIX_TIME: Final = re.compile(r"\d{9,19}(\.\d*)?")
_EXIF_TIME: Final = re.compile(r"(\d{4}):(\d\d):(\d\d) ")
_MAX_TURN_DEG: Final = 720.0


class TableOptions(ListedOptions):
    """Options of `csv:` and `parquet:`.

    Attributes:
        root: the folder that paths in the table start from; the table's own folder if left out.
        path, lat, lon, id, heading, altitude, captured_at, session: the column that holds it, where the name differs.
    """

    root: str | None = None
    path: str | None = Field(default=None, min_length=1)
    lat: str | None = Field(default=None, min_length=1)
    lon: str | None = Field(default=None, min_length=1)
    id: str | None = Field(default=None, min_length=1)
    heading: str | None = Field(default=None, min_length=1)
    altitude: str | None = Field(default=None, min_length=1)
    captured_at: str | None = Field(default=None, min_length=1)
    session: str | None = Field(default=None, min_length=1)

    def named_columns(self) -> dict[ColumnField, str]:
        """The columns that were given by name."""
        given = {name: getattr(self, name) for name in FIELDS}
        return {name: column for name, column in given.items() if column is not None}


@dataclass(frozen=True, slots=True)
class Columns:
    """Where the fields of a reference stand in a row.

    Attributes:
        names: of all columns, in order.
        fields: position of the column of each field that the table has.
        extra: position and name of the other columns, which become metadata.
    """

    names: tuple[str, ...]
    fields: Mapping[ColumnField, int]
    extra: tuple[tuple[int, str], ...]


def find_columns(names: Sequence[str], given: Mapping[ColumnField, str], where: str, kind: str) -> Columns:
    """Decide which column holds what: the one named in the spec, else the one of the field's own name, else an alias.

    Args:
        names: of the columns, in order.
        given: field → column, from the spec.
        where: the file, for errors.
        kind: the reader's name, for the example in an error.

    Raises:
        ReferenceDataError: no column for path, lat or lon; a named column that there is not; two aliases of one field.
    """
    fields: dict[ColumnField, int] = {}
    for field in FIELDS:
        column = _column(field, names, given.get(field), where, kind)
        if column is not None:
            fields[field] = column
        elif field in REQUIRED:
            raise ReferenceDataError(
                f"no column holds {field}",
                where=where,
                remedy=f"Its columns are {_listed(names)}: say which one in the spec, as in {kind}:…?{field}=COLUMN",
            )
    taken = set(fields.values())
    extra = tuple((place, name) for place, name in enumerate(names) if name and place not in taken)
    return Columns(tuple(names), fields, extra)


def _column(field: ColumnField, names: Sequence[str], given: str | None, where: str, kind: str) -> int | None:
    if given is not None:
        if given not in names:
            raise ReferenceDataError(
                f"there is no column {given!r} to take {field} from",
                where=where,
                remedy=f"Its columns are {_listed(names)}",
            )
        return list(names).index(given)
    lower = [name.lower() for name in names]
    for candidates in ((field,), ALIASES[field]):
        found = [place for place, name in enumerate(lower) if name in candidates]
        if len(found) > 1:
            both = " and ".join(names[place] for place in found)
            raise ReferenceDataError(
                f"the columns {both} could each hold {field}",
                where=where,
                remedy=f"Say which one in the spec, as in {kind}:…?{field}={names[found[0]]}",
            )
        if found:
            return found[0]
    return None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name or "(no name)" for name in names)


class TableRows:
    """Turns rows into references, with errors that name row, column and value.

    Args:
        file: the table, for errors.
        root: the folder that relative paths start from.
        columns: what stands where.
    """

    def __init__(self, file: Path, root: Path, columns: Columns) -> None:
        self._file = file
        self._root = root
        self._columns = columns
        self._place = dict(columns.fields)

    def reference(self, row: int, values: Sequence[object]) -> Reference | None:
        """The reference of a row; None where both latitude and longitude are empty.

        Args:
            row: its number, for errors.
            values: text, numbers, dates or None, one a column.

        Raises:
            ReferenceDataError: a value that cannot be what its column says.
        """
        lat, lon = self._number(row, values, "lat"), self._number(row, values, "lon")
        if lat is None and lon is None:
            return None
        path = self._path(row, values)
        return Reference(
            id=self._text(values, "id") or self._default_id(path),
            path=self._root / path,
            position=self._position(row, lat, lon),
            altitude_m=self._number(row, values, "altitude"),
            heading_deg=self._heading(row, values),
            captured_at=self._captured_at(row, values),
            session=self._text(values, "session"),
            metadata={name: text for place, name in self._columns.extra if (text := _as_text(values[place]))},
        )

    def _value(self, values: Sequence[object], field: ColumnField) -> object:
        place = self._place.get(field)
        return None if place is None else values[place]

    def _text(self, values: Sequence[object], field: ColumnField) -> str | None:
        return _as_text(self._value(values, field)) or None

    def _number(self, row: int, values: Sequence[object], field: ColumnField) -> float | None:
        value = self._value(values, field)
        if value is None:
            return None
        text = value.strip() if isinstance(value, str) else value
        try:
            if text == "":
                return None
            if isinstance(text, bool) or (isinstance(text, str) and "_" in text):
                raise ValueError
            number = float(text)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            raise self._bad_number(row, field, text) from None
        if math.isnan(number):
            return None
        if math.isinf(number):
            raise self._bad_number(row, field, text)
        return number

    def _bad_number(self, row: int, field: ColumnField, value: object) -> ReferenceDataError:
        text = str(value)
        if _DECIMAL_COMMA.fullmatch(text):
            return self._error(row, field, f"'{text}' has a decimal comma", f"Write {text.replace(',', '.')}")
        return self._error(row, field, f"'{text}' is not a number", "Write a number such as 48.137154, without a unit")

    def _position(self, row: int, lat: float | None, lon: float | None) -> Position:
        remedy = "Give WGS84 degrees, not metres; latitude and longitude may be swapped"
        if lat is None or lon is None:
            field: ColumnField = "lat" if lat is None else "lon"
            raise self._error(row, field, "the value is empty", "Fill it in, or empty both lat and lon")
        if not -90.0 <= lat <= 90.0:
            raise self._error(row, "lat", f"latitude {lat!r} is outside [-90, 90]", remedy)
        if not -180.0 <= lon < 360.0:
            raise self._error(row, "lon", f"longitude {lon!r} is outside [-180, 360)", remedy)
        return Position(lat, lon)

    def _heading(self, row: int, values: Sequence[object]) -> float | None:
        heading = self._number(row, values, "heading")
        if heading is None:
            return None
        if abs(heading) > _MAX_TURN_DEG:
            what = f"heading {heading!r} is outside [-720, 720]"
            raise self._error(row, "heading", what, "Give degrees clockwise from north")
        return heading % 360.0

    def _captured_at(self, row: int, values: Sequence[object]) -> datetime | None:
        value = self._value(values, "captured_at")
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None
        try:
            return parse_time(value)
        except (ValueError, OverflowError):
            remedy = "Write 2026-05-31T14:05:00+02:00, with or without the offset, or Unix time"
            raise self._error(row, "captured_at", f"'{value}' is not a time", remedy) from None

    def _path(self, row: int, values: Sequence[object]) -> PurePath:
        text = self._text(values, "path")
        if text is None:
            raise self._error(row, "path", "the value is empty", "Give the path of the photo")
        if "\\" in text and not (self._root / text).exists():  # a table made on Windows
            text = text.replace("\\", "/")
        return PurePath(text)

    def _default_id(self, path: PurePath) -> str:
        inside = path.is_absolute() and path.is_relative_to(self._root)
        return (path.relative_to(self._root) if inside else path).as_posix()

    def _error(self, row: int, field: ColumnField, what: str, remedy: str) -> ReferenceDataError:
        column = self._columns.names[self._place[field]]
        return ReferenceDataError(what, where=f"{self._file}, row {row}, column {column}", remedy=remedy)


def _as_text(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return value.isoformat() if isinstance(value, (datetime, date)) else str(value).strip()


def parse_time(value: object) -> datetime | None:
    """A time as a table may hold it: ISO 8601, EXIF (``2026:05:31 14:05:00``), Unix time in s, ms, µs or ns, or a date.

    Returns:
        With the offset from UTC where one is given; None where the text is empty.

    Raises:
        ValueError: no time.
    """
    if isinstance(value, datetime):
        return value
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day)
    text = format(value, "f") if isinstance(value, (float, Decimal)) else str(value).strip()
    if not text:
        return None
    if _UNIX_TIME.fullmatch(text):
        whole = len(text.partition(".")[0])
        power = 0 if whole < 12 else 3 if whole < 15 else 6 if whole < 18 else 9
        return datetime.fromtimestamp(float(text) / 10**power, UTC)
    return datetime.fromisoformat(_EXIF_TIME.sub(r"\1-\2-\3 ", text))


class TableReader(ListedReader[TableOptions]):
    """A table of photos with the columns path, lat, lon and, if there are, id, heading, altitude, captured_at, session.

    Further columns become metadata. The id of a photo is its path unless the table gives one.
    """

    nothing = "the table has no rows"
    nothing_remedy = "List a photo a row"
    unusable_remedy = "Fill in lat and lon, and check that paths start from the table's folder or from root=FOLDER"

    def __init__(self, location: Path, options: TableOptions | None = None, spec: str | None = None) -> None:
        options = options or TableOptions()
        root = location.parent if options.root is None else Path(options.root).expanduser()
        check_folder(root)
        super().__init__(location, options, root, spec)
        self.columns: Columns = find_columns(self._column_names(), options.named_columns(), str(location), self.kind)

    @abstractmethod
    def _column_names(self) -> Sequence[str]:
        """The names of the columns, in order."""

    @abstractmethod
    def _rows(self) -> Iterator[tuple[int, Sequence[object]]]:
        """Yield the number and the values of each row."""

    def _read(self, skipped: list[SkippedPhoto]) -> Iterator[tuple[Row | None, Reference]]:
        rows, seen = TableRows(self.location, self.root, self.columns), SeenIds()
        for row, values in self._rows():
            reference = rows.reference(row, values)
            if reference is None:
                skipped.append(SkippedPhoto(self.root / str(values[self.columns.fields["path"]]), _NO_POSITION))
                continue
            if not seen.add(reference.id):
                self._refuse_duplicate(row, reference, rows)
            yield Row(self.location, row), reference

    def _refuse_duplicate(self, row: int, reference: Reference, rows: TableRows) -> None:
        for earlier, values in self._rows():
            if earlier == row:
                return  # two different ids with one hash
            other = rows.reference(earlier, values)
            if other is not None and other.id == reference.id:
                break
        listed = "id" in self.columns.fields
        what = f"the id {reference.id} is that of row {earlier} already"
        raise ReferenceDataError(
            what if listed else f"the photo {reference.id} stands in row {earlier} already",
            where=str(Row(self.location, row)),
            remedy="Give every photo its own id" if listed else "Remove one of the rows, or add an id column",
        )
