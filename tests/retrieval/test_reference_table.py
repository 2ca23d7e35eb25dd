"""Reading a reference table piece by piece."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from retrieval.reference_table import REFERENCE_SCHEMA, ROW_GROUP_ROWS, iterate_references, write_reference_table

COUNT = ROW_GROUP_ROWS + 1_000


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    columns = {
        field.name: [f"{field.name} {row}" for row in range(COUNT)]
        if field.type == pa.string()
        else np.arange(COUNT, dtype=float)
        for field in REFERENCE_SCHEMA
    }
    path = tmp_path_factory.mktemp("table") / "references.parquet"
    write_reference_table(pa.table(columns, REFERENCE_SCHEMA), np.arange(COUNT), path)
    return path


@pytest.mark.parametrize("rows", [1_000, 7_777, ROW_GROUP_ROWS, COUNT, 2 * COUNT])
def test_pieces_have_the_wanted_length_whatever_the_row_groups(table: Path, rows: int) -> None:
    pieces = list(iterate_references(table, rows))
    assert [len(piece) for piece in pieces[:-1]] == [rows] * (len(pieces) - 1)
    together = pa.Table.from_batches(pieces)
    assert together["id"].to_pylist() == [f"id {row}" for row in range(COUNT)]
    assert together["lon"].to_pylist() == list(range(COUNT))
