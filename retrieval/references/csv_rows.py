"""Rows of a CSV file one by one, with every complaint about the file as a text file."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from retrieval.errors import ReferenceDataError
from retrieval.references.reader import check_file

_DELIMITERS: Final = ",;\t"
_CHUNK_BYTES: Final = 1 << 20

CsvRow = tuple[int, Sequence[str]]


@dataclass(frozen=True)
class CsvRows:
    """A CSV file: UTF-8 with or without a byte order mark; the header line decides whether ``,`` ``;`` or tab divides.

    Attributes:
        path: of the file.
        header: the names of the columns.
        delimiter: the sign between values.
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
        plural = "value" if count == 1 else "values"
        return ReferenceDataError(
            f"it has {count} {plural}, the header has {len(self.header)}",
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
