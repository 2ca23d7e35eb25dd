"""A CSV of photos with their positions."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from retrieval.references.columns import TableOptions
from retrieval.references.csv_rows import CsvRows
from retrieval.references.table import TableReader


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
