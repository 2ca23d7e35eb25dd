"""A Parquet table of photos with their positions."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.errors import ReferenceDataError
from retrieval.references.columns import TableOptions
from retrieval.references.reader import check_file
from retrieval.references.table import TableReader

_BATCH_ROWS: Final = 4096


class ParquetTable(TableReader):
    """`parquet:FILE`: the same columns as a CSV, read in batches of rows; see `TableReader`.

    Binary and nested columns are left out of the metadata. Rows are counted from 1.

    Raises:
        ReferenceDataError: no such file, no Parquet file, a column missing; when iterated: as `CsvTable`.
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
    except (OverflowError, ValueError):  # one of them is none that Python has
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
