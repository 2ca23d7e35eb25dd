"""What CSV and Parquet tables of photos share: columns, duplicate ids, and rows without a position."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from retrieval.errors import ReferenceDataError
from retrieval.references.columns import Columns, TableOptions, find_columns
from retrieval.references.photo_folder import count_reasons
from retrieval.references.reader import ListedReader, Row, check_folder
from retrieval.references.reference import Reference, SkippedPhoto
from retrieval.references.seen_ids import SeenIds
from retrieval.references.table_rows import TableRows

NO_POSITION: Final = "its row has no latitude and longitude"


class TableReader(ListedReader[TableOptions]):
    """A table of photos with the columns path, lat, lon and, if there are, id, heading, altitude, captured_at, session.

    Further columns become metadata. The id of a photo is its path unless the table gives one.
    """

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
                skipped.append(SkippedPhoto(self.root / str(values[self.columns.fields["path"]]), NO_POSITION))
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

    def _nothing_read(self, skipped: list[SkippedPhoto]) -> ReferenceDataError:
        if not skipped:
            return ReferenceDataError("the table has no rows", where=str(self.location), remedy="List a photo a row")
        return ReferenceDataError(
            f"none of {len(skipped)} photos can be used: {count_reasons(skipped)}",
            where=str(self.location),
            remedy="Fill in lat and lon, and check that paths start from the table's folder or from root=FOLDER",
        )
