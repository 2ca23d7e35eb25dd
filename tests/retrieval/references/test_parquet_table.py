"""Parquet tables of photos: the same rows as a CSV, with types."""

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.errors import ReferenceDataError
from retrieval.geo import Position
from retrieval.references import Reference, open_references
from retrieval.references.table_files import ParquetTable
from retrieval.references.tables import TableOptions


def table(folder: Path, row_group_size: int | None = None, **columns: Any) -> Path:
    path = folder / "refs.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def read(path: Path, /, **options: object) -> list[Reference]:
    return list(ParquetTable(path, TableOptions.model_validate({"missing": "ignore"} | options)))


def test_typed_columns(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        path=pa.array(["1.jpg", "2.jpg"]).dictionary_encode(),
        lat=pa.array([48.5, 1.0], pa.float64()),
        lon=pa.array([11, 2], pa.int32()),
        heading=pa.array([-90.0, None], pa.float32()),
        captured_at=pa.array([1_780_229_100_123_456_789, None], pa.timestamp("ns", "UTC")),
        session=pa.array([7, 8]),
        floor=pa.array([3, None]),
        pixels=pa.array([b"\0\1", b""]),
        tags=pa.array([["a"], []]),
    )
    assert read(path) == [
        Reference(
            id="1.jpg",
            path=tmp_path / "1.jpg",
            position=Position(48.5, 11.0),
            heading_deg=270.0,
            captured_at=datetime(2026, 5, 31, 12, 5, 0, 123_456, tzinfo=UTC),
            session="7",
            metadata={"floor": "3"},
        ),
        Reference(id="2.jpg", path=tmp_path / "2.jpg", position=Position(1.0, 2.0), session="8"),
    ]


def test_dates_texts_and_unix_times(tmp_path: Path) -> None:
    base = {"path": ["1.jpg"], "lat": ["48.5"], "lon": [2.0]}
    for values, expected in [
        (pa.array([date(2026, 5, 31)]), datetime(2026, 5, 31)),
        (pa.array([datetime(2026, 5, 31, 14, 5)]), datetime(2026, 5, 31, 14, 5)),
        (pa.array(["2026-05-31T14:05:00"]), datetime(2026, 5, 31, 14, 5)),
        (pa.array([1_780_229_100]), datetime(2026, 5, 31, 12, 5, tzinfo=UTC)),
        (pa.array([1_780_229_100.5]), datetime(2026, 5, 31, 12, 5, 0, 500_000, tzinfo=UTC)),
        (pa.array([float("nan")]), None),
    ]:
        (reference,) = read(table(tmp_path, **base, time=values))
        assert reference.captured_at == expected


def test_nan_and_null_positions_are_left_out(tmp_path: Path) -> None:
    path = table(
        tmp_path, path=["1.jpg", "2.jpg", "3.jpg"], lat=[float("nan"), None, 1.0], lon=[None, float("nan"), 2.0]
    )
    source = ParquetTable(path, TableOptions(missing="ignore"))
    assert [reference.id for reference in source] == ["3.jpg"]
    assert [photo.path.name for photo in source.skipped] == ["1.jpg", "2.jpg"]


def test_row_groups_are_read_in_order_and_counted(tmp_path: Path) -> None:
    count = 10_000
    names = [f"{number}.jpg" for number in range(count)]
    path = table(tmp_path, 3000, path=names, lat=[1.0] * count, lon=[2.0] * count)
    source = ParquetTable(path, TableOptions(missing="ignore"))
    assert len(source) == count
    assert [reference.id for reference in source] == names


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": ["1.jpg"], "lat": [91.0], "lon": [2.0]},
         "row 1, column lat: latitude 91.0 is outside [-90, 90]. "
         "Give WGS84 degrees, not metres; latitude and longitude may be swapped."),
        ({"path": ["1.jpg", "1.jpg"], "lat": [1.0, 1.0], "lon": [2.0, 2.0]},
         "row 2: the photo 1.jpg stands in row 1 already. Remove one of the rows, or add an id column."),
        ({"path": ["1.jpg"], "lat": [True], "lon": [2.0]},
         "row 1, column lat: 'True' is not a number. Write a number such as 48.137154, without a unit."),
        ({"path": [None], "lat": [1.0], "lon": [2.0]},
         "row 1, column path: the value is empty. Give the path of the photo."),
    ],
)  # fmt: skip
def test_bad_rows(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    path = table(tmp_path, **columns)
    with pytest.raises(ReferenceDataError) as caught:
        read(path)
    assert str(caught.value) == f"{path}, {message}"


def test_a_photo_that_does_not_exist(tmp_path: Path) -> None:
    path = table(tmp_path, path=["1.jpg"], lat=[1.0], lon=[2.0])
    with pytest.raises(ReferenceDataError, match=r"refs\.parquet, row 1: there is no photo .*1\.jpg"):
        read(path, missing="error")


def test_a_missing_column(tmp_path: Path) -> None:
    path = table(tmp_path, path=["1.jpg"], lat=[1.0])
    with pytest.raises(ReferenceDataError) as caught:
        read(path)
    assert str(caught.value) == (
        f"{path}: no column holds lon. "
        "Its columns are path, lat: say which one in the spec, as in parquet:…?lon=COLUMN."
    )


def test_no_parquet(tmp_path: Path) -> None:
    path = tmp_path / "refs.parquet"
    with pytest.raises(ReferenceDataError, match="there is no such file"):
        ParquetTable(path)
    path.write_text("path,lat,lon\n")
    with pytest.raises(ReferenceDataError, match=r"the Parquet file cannot be read .*\. Check that it is complete\."):
        ParquetTable(path)


def test_damage_far_inside(tmp_path: Path) -> None:
    path = table(tmp_path, path=[f"{n}.jpg" for n in range(5000)], lat=[1.0] * 5000, lon=[2.0] * 5000)
    data = bytearray(path.read_bytes())
    data[10:2000] = bytes(1990)
    path.write_bytes(data)
    with pytest.raises(ReferenceDataError, match="the Parquet file cannot be read"):
        read(path)


def test_csv_and_parquet_agree(tmp_path: Path) -> None:
    csv_path = tmp_path / "refs.csv"
    csv_path.write_text("path,lat,lon,heading,session,note\n1.jpg,48.5,11.25,12.5,a,x\n2.jpg,1,2,,,\n")
    parquet_path = table(
        tmp_path,
        path=["1.jpg", "2.jpg"],
        lat=[48.5, 1.0],
        lon=[11.25, 2.0],
        heading=[12.5, None],
        session=["a", None],
        note=["x", None],
    )
    as_csv = list(open_references(f"{csv_path}?missing=ignore"))
    assert as_csv == list(open_references(f"{parquet_path}?missing=ignore"))


FAR: dict[str, Any] = {
    "date": pa.array([10**7, 2], pa.date32()),
    "timestamp": pa.array([2**62, 2], pa.timestamp("us")),
    "duration": pa.array([2**62, 2], pa.duration("s")),
    "not UTF-8": pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff2")]
    ),
}


@pytest.mark.parametrize("kind", list(FAR))
def test_values_that_python_does_not_have_are_text_or_named(tmp_path: Path, kind: str) -> None:
    columns = {"path": ["1.jpg", "2.jpg"], "lat": [48.5, 1.0], "lon": [11.0, 2.0]}
    first, second = read(table(tmp_path, **columns, note=FAR[kind]))
    assert (
        first.metadata["note"]
        == {
            "date": "10000000 (date32[day])",
            "timestamp": f"{2**62} (timestamp[us])",
            "duration": f"{2**62} (duration[s])",
            "not UTF-8": "\\xff",
        }[kind]
    )
    assert second.position == Position(1.0, 2.0)
    with pytest.raises(ReferenceDataError, match=r"row 1, column captured_at: .* is not a time"):
        read(table(tmp_path, **columns, captured_at=FAR[kind]))
