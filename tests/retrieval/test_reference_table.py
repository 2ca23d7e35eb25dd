"""The reference table of a place index: what opening and answering cost, however large it is."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from retrieval.index import reference_table as module
from retrieval.index.reference_table import REFERENCE_SCHEMA, ReferenceTable, iterate_references, write_reference_table

ROWS = 100


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hundred rows, the last first, ten read at once."""
    monkeypatch.setattr(module, "ROW_GROUP_ROWS", 10)
    rows = range(ROWS)
    values: dict[str, list[object]] = {name: [None] * ROWS for name in REFERENCE_SCHEMA.names}
    values |= {
        "id": [f"r{row}" for row in rows],
        "path": [f"{row}.jpg" for row in rows],
        "lat": [row / 2 for row in rows],
        "lon": [-float(row) for row in rows],
    }
    path = tmp_path / "references.parquet"
    write_reference_table(pa.Table.from_pydict(values, schema=REFERENCE_SCHEMA), np.arange(ROWS)[::-1], path)
    return path


def test_rows_come_in_the_order_asked_for_from_anywhere(written: Path) -> None:
    table = ReferenceTable(written)
    assert table.count == ROWS
    np.testing.assert_array_equal(table.lat, np.arange(ROWS)[::-1] / 2)
    np.testing.assert_array_equal(table.lon, -np.arange(float(ROWS))[::-1])
    every = np.random.default_rng(0).permutation(ROWS)
    assert [one.id for one in table.references(every, Path())] == [f"r{ROWS - 1 - row}" for row in every]
    found = table.references(np.array([95, 3, 3, 50]), Path("/photos"))
    assert [one.id for one in found] == ["r4", "r96", "r96", "r49"]
    assert found[0].path == Path("/photos/4.jpg")
    assert [table.find("r0"), table.find("r99"), table.find("r100")] == [99, 0, None]


def test_memory_does_not_grow_with_what_was_asked_for(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GROUPS_KEPT", 3)
    table = ReferenceTable(written)
    for row in [*range(ROWS), 0]:
        assert table.references(np.array([row]), Path())[0].id == f"r{ROWS - 1 - row}"
    assert list(table._groups) == [8, 9, 0]


ANSWER = """
import sys
from pathlib import Path
import numpy as np
from retrieval.index.reference_table import ReferenceTable
table = ReferenceTable(Path(sys.argv[1]))
last = table.references(np.array([0, 99]), Path())[1]
print(last.id, table.lat[0], [name in sys.modules for name in ("pandas", "numpy.ma")])
"""


def test_opening_and_answering_import_nothing_large(written: Path, tmp_path: Path) -> None:
    """pyarrow imports pandas, where there is one, at the first conversion that could need it: two seconds, once."""
    (tmp_path / "pandas.py").write_text("__version__ = '3.0.0'\n")
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", ANSWER, str(written)],
        env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "r0 49.5 [False, False]\n"


@pytest.mark.parametrize("rows", [1, 7, 10, 33, ROWS, 2 * ROWS])
def test_pieces_have_the_wanted_length_whatever_the_row_groups(written: Path, rows: int) -> None:
    pieces = list(iterate_references(written, rows))
    assert [len(piece) for piece in pieces[:-1]] == [rows] * (len(pieces) - 1)
    together = pa.Table.from_batches(pieces)
    assert together["id"].to_pylist() == [f"r{row}" for row in reversed(range(ROWS))]
    assert together["lat"].to_pylist() == [row / 2 for row in reversed(range(ROWS))]
