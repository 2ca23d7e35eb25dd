"""From the values of a table row to a reference, with errors that name row, column and value."""

import math
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path, PurePath
from typing import Final

from retrieval.errors import ReferenceDataError
from retrieval.geo import Position
from retrieval.references.columns import ColumnField, Columns
from retrieval.references.reference import Reference

_DECIMAL_COMMA: Final = re.compile(r"[-+]?\d+,\d+")
_UNIX_TIME: Final = re.compile(r"\d{9,19}(\.\d*)?")
_EXIF_TIME: Final = re.compile(r"(\d{4}):(\d\d):(\d\d) ")
_MAX_TURN_DEG: Final = 720.0


class TableRows:
    """Makes references of rows.

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
