"""CSV and Parquet files of photos with their positions."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.errors import ReferenceDataError, counted
from retrieval.references.reader import check_file
from retrieval.references.tables import TableOptions, TableReader

_DELIMITERS: Final = ",;\t"
_CHUNK_BYTES: Final = 1 << 20
_BATCH_ROWS: Final = 4096
CsvRow = tuple[int, Sequence[str]]


@dataclass(frozen=True)
class CsvRows:
    """The rows of a CSV file in UTF-8; the header line decides whether ``,`` ``;`` or tab is the delimiter.

    Attributes:
        path: of the file.
        header: the names of the columns.
        delimiter: between values.
    """

    path: Path
    header: tuple[str, ...]
    delimiter: str

    @classmethod
    def open(cls, path: Path) -> "CsvRows":
        """Read the header.

        Raises:
            ReferenceDataError: no such file, it is empty, or not UTF-8.
        """
        check_file(path)
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                line = file.readline()
                if not line.strip():
                    raise ReferenceDataError(
                        "the file is empty" if not line else "the first line is empty",
                        where=str(path),
                        remedy="Its first line names the columns: path,lat,lon",
                    )
                delimiter = _delimiter(line)
                file.seek(0)
                header = next(csv.reader(file, delimiter=delimiter, strict=True))
        except UnicodeDecodeError:
            raise _not_utf8(path) from None
        except (csv.Error, OSError) as error:
            raise _unreadable(path, 1, error) from error
        names = tuple(name.strip() for name in header)
        twice = next((name for name in names if name and names.count(name) > 1), None)
        if twice is not None:
            raise ReferenceDataError(
                f"two columns have the name {twice}", where=f"{path}, row 1", remedy="Rename one of them"
            )
        return cls(path, names, delimiter)

    def __iter__(self) -> Iterator[CsvRow]:
        """Yield the number of each row, counted like the lines of the file (the header is row 1), and its values.

        Empty lines are passed over.

        Raises:
            ReferenceDataError: a row with more or fewer values than the header, not UTF-8, or a broken quote.
        """
        width, row = len(self.header), 1
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.reader(file, delimiter=self.delimiter, strict=True)
                next(reader)
                row = reader.line_num + 1
                for values in reader:
                    if len(values) != width:
                        if not values:
                            row = reader.line_num + 1
                            continue
                        raise self._ragged(row, len(values))
                    yield row, values
                    row = reader.line_num + 1
        except UnicodeDecodeError:
            raise _not_utf8(self.path) from None
        except (csv.Error, OSError) as error:
            raise _unreadable(self.path, row, error) from error

    def _ragged(self, row: int, count: int) -> ReferenceDataError:
        sign = {"\t": "tab"}.get(self.delimiter, f"'{self.delimiter}'")
        return ReferenceDataError(
            f"it has {counted(count, 'value')}, the header has {len(self.header)}",
            where=f"{self.path}, row {row}",
            remedy=f"A value that holds the delimiter {sign} stands in double quotes; numbers have a decimal point",
        )

    def count(self) -> int:
        """How many rows there are at most: lines without the header."""
        lines, last = 0, b"\n"
        with self.path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                lines += chunk.count(b"\n")
                last = chunk[-1:]
        return max(0, lines + (last != b"\n") - 1)


def _delimiter(line: str) -> str:
    outside_quotes = "".join(line.split('"')[::2])
    return max(_DELIMITERS, key=outside_quotes.count)


def _not_utf8(path: Path) -> ReferenceDataError:
    row, byte = 1, 0
    with path.open("rb") as file:
        for row, line in enumerate(file, start=1):  # noqa: B007 - the row is wanted after the loop
            try:
                line.decode()
            except UnicodeDecodeError as error:
                byte = line[error.start]
                break
    return ReferenceDataError(
        f"the text is not UTF-8 (byte 0x{byte:02x})", where=f"{path}, row {row}", remedy="Save the file as UTF-8"
    )


def _unreadable(path: Path, row: int, error: Exception) -> ReferenceDataError:
    if isinstance(error, OSError):
        return ReferenceDataError(
            f"the file cannot be read ({error.strerror})", where=str(path), remedy="Check its permissions"
        )
    return ReferenceDataError(
        f"the row cannot be read ({error})",
        where=f"{path}, row {row}",
        remedy="Look for a double quote that is not closed; a quote inside a quoted value is written twice",
    )


class CsvTable(TableReader):
    """`csv:FILE`: one photo a row, with at least path, lat and lon; see `TableReader`, `CsvRows`.

    Raises:
        ReferenceDataError: no such file, empty, not UTF-8, a column missing or named twice; when iterated: a row that
            cannot be read, a listed photo that does not exist, an id that is there twice.
    """

    kind: ClassVar[str] = "csv"

    def __init__(self, location: Path, options: TableOptions | None = None, spec: str | None = None) -> None:
        self._file = CsvRows.open(location)
        super().__init__(location, options, spec)

    def _column_names(self) -> Sequence[str]:
        return self._file.header

    def _rows(self) -> Iterator[tuple[int, Sequence[object]]]:
        yield from self._file

    def _count(self) -> int:
        return self._file.count()


class ParquetTable(TableReader):
    """`parquet:FILE`: the same columns as a CSV, read in batches of rows; see `TableReader`.

    Binary and nested columns are left out of the metadata. Rows are counted from 1.

    Raises:
        ReferenceDataError: no such file, not a Parquet file, a column missing; when iterated: as `CsvTable`.
    """

    kind: ClassVar[str] = "parquet"

    def __init__(self, location: Path, options: TableOptions | None = None, spec: str | None = None) -> None:
        check_file(location)
        try:
            with pq.ParquetFile(location) as file:
                self._schema: Any = file.schema_arrow
                self._row_count = int(file.metadata.num_rows)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(location, error) from error
        self._names = tuple(field.name for field in self._schema if _is_plain(field.type))
        super().__init__(location, options, spec)

    def _column_names(self) -> Sequence[str]:
        return self._names

    def _rows(self) -> Iterator[tuple[int, Sequence[object]]]:
        row = 0
        try:
            with pq.ParquetFile(self.location) as file:
                for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=list(self._names)):
                    columns = [_values(batch.column(name)) for name in self._names]
                    for values in zip(*columns, strict=True):
                        row += 1
                        yield row, values
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self.location, error) from error

    def _count(self) -> int:
        return self._row_count


def _is_plain(kind: Any) -> bool:
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    return not (binary or pa.types.is_nested(kind))


def _values(column: Any) -> list[object]:
    if pa.types.is_timestamp(column.type):  # Python's datetime ends at microseconds
        column = column.cast(pa.timestamp("us", tz=column.type.tz), safe=False)
    try:
        values: list[object] = column.to_pylist()
    except (OverflowError, ValueError):  # a value that Python does not have
        return [_value(scalar) for scalar in column]
    return values


def _value(scalar: Any) -> object:
    """A value; one that Python does not have (a date in the year 30,000, text that is not UTF-8) as the text of it."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return scalar.as_buffer().to_pybytes().decode("utf-8", "backslashreplace")
    except (OverflowError, ValueError):
        return f"{scalar.value} ({scalar.type})"


def _damaged(location: Path, error: Exception) -> ReferenceDataError:
    return ReferenceDataError(
        f"the Parquet file cannot be read ({error})", where=str(location), remedy="Check that it is complete"
    )
