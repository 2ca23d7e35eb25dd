"""CSV tables of photos: what is read, and the exact words about what is not."""

import os
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from retrieval.errors import ReferenceDataError
from retrieval.geo import Position
from retrieval.references import Reference
from retrieval.references.table_files import CsvTable
from retrieval.references.tables import TableOptions


def table(folder: Path, text: str | bytes, *photos: str) -> Path:
    """Write refs.csv and the photos that it lists (empty files: readers do not open them)."""
    for photo in photos:
        (folder / photo).parent.mkdir(parents=True, exist_ok=True)
        (folder / photo).touch()
    path = folder / "refs.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(path: Path, /, **options: object) -> list[Reference]:
    return list(CsvTable(path, TableOptions.model_validate(options)))


def complaint(path: Path, /, **options: object) -> str:
    with pytest.raises(ReferenceDataError) as caught:
        read(path, **options)
    return str(caught.value)


def test_all_columns(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        "id,path,lat,lon,heading,altitude,captured_at,session,camera,note\n"
        "door,a/1.jpg,48.5,11.25,-90,-3.5,2026-05-31T14:05:00+02:00,walk,phone,\n",
        "a/1.jpg",
    )
    assert read(path) == [
        Reference(
            id="door",
            path=tmp_path / "a/1.jpg",
            position=Position(48.5, 11.25),
            altitude_m=-3.5,
            heading_deg=270.0,
            captured_at=datetime(2026, 5, 31, 14, 5, tzinfo=timezone(timedelta(hours=2))),
            session="walk",
            metadata={"camera": "phone"},
        )
    ]


def test_only_the_columns_there_must_be(tmp_path: Path) -> None:
    path = table(tmp_path, "path,lat,lon\n1.jpg,48.5,11.25\n", "1.jpg")
    assert read(path) == [Reference(id="1.jpg", path=tmp_path / "1.jpg", position=Position(48.5, 11.25))]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_delimiter_byte_order_mark_and_line_ends(tmp_path: Path, delimiter: str, mark: str, line_end: str) -> None:
    lines = ['path,lat,lon,"no, te"', '"a b.jpg",48.5,11.25,x', ""]
    text = line_end.join(lines).replace(",", delimiter).replace(f"no{delimiter}", "no,")
    path = table(tmp_path, mark + text, "a b.jpg")
    assert CsvTable(path).columns.names == ("path", "lat", "lon", "no, te")
    assert [(r.id, r.metadata) for r in read(path)] == [("a b.jpg", {"no, te": "x"})]


@pytest.mark.parametrize(
    "header", ["filename,Latitude,Longitude", "image,LAT,lng", "File_Name,latitude,long", " path , lat , lon "]
)
def test_other_names_of_columns(tmp_path: Path, header: str) -> None:
    path = table(tmp_path, f"{header}\n1.jpg,48.5,11.25\n", "1.jpg")
    assert read(path)[0].position == Position(48.5, 11.25)


def test_the_fields_own_name_comes_before_other_names(tmp_path: Path) -> None:
    path = table(tmp_path, "image,path,lat,lon,time,captured_at\nx,1.jpg,1,2,noon,2026-05-31\n", "1.jpg")
    (reference,) = read(path)
    assert reference.id == "1.jpg"
    assert reference.captured_at == datetime(2026, 5, 31)
    assert reference.metadata == {"image": "x", "time": "noon"}


def test_columns_named_in_the_options(tmp_path: Path) -> None:
    path = table(tmp_path, "bild,y,x,lat,tour\n1.jpg,48.5,11.25,north,A\n", "1.jpg")
    (reference,) = read(path, path="bild", lat="y", lon="x", session="tour")
    assert (reference.position, reference.session) == (Position(48.5, 11.25), "A")
    assert reference.metadata == {"lat": "north"}


def test_paths_start_from_the_root(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").touch()
    path = table(tmp_path, f"path,lat,lon\n1.jpg,1,2\n{tmp_path}/photos/../refs.csv,3,4\n")
    source = CsvTable(path, TableOptions(root=str(tmp_path / "photos")))
    assert source.root == tmp_path / "photos"
    first, second = source
    assert (first.id, first.path) == ("1.jpg", tmp_path / "photos" / "1.jpg")
    assert second.path == Path(f"{tmp_path}/photos/../refs.csv")


def test_an_absolute_path_below_the_root_has_a_relative_id(tmp_path: Path) -> None:
    path = table(tmp_path, f"path,lat,lon\n{tmp_path}/a/1.jpg,1,2\n/elsewhere/2.jpg,1,2\n", "a/1.jpg")
    assert [reference.id for reference in read(path, missing="ignore")] == ["a/1.jpg", "/elsewhere/2.jpg"]


@pytest.mark.skipif(os.name == "nt", reason="a backslash divides folders there")
def test_a_table_made_on_windows(tmp_path: Path) -> None:
    path = table(tmp_path, "path,lat,lon\na\\1.jpg,1,2\n", "a/1.jpg")
    assert [(reference.id, reference.path) for reference in read(path)] == [("a/1.jpg", tmp_path / "a/1.jpg")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("2026-05-31", datetime(2026, 5, 31)),
        ("2026-05-31 14:05:00", datetime(2026, 5, 31, 14, 5)),
        ("2026-05-31T12:05:00Z", datetime(2026, 5, 31, 12, 5, tzinfo=UTC)),
        ("2026:05:31 14:05:00", datetime(2026, 5, 31, 14, 5)),
        ("20260531", datetime(2026, 5, 31)),
        ("1780229100", datetime(2026, 5, 31, 12, 5, tzinfo=UTC)),
        ("1780229100.5", datetime(2026, 5, 31, 12, 5, 0, 500_000, tzinfo=UTC)),
        ("1780229100250", datetime(2026, 5, 31, 12, 5, 0, 250_000, tzinfo=UTC)),
        ("1780229100250000", datetime(2026, 5, 31, 12, 5, 0, 250_000, tzinfo=UTC)),
        ("1780229100250000000", datetime(2026, 5, 31, 12, 5, 0, 250_000, tzinfo=UTC)),
    ],
)
def test_times(tmp_path: Path, text: str, expected: datetime | None) -> None:
    path = table(tmp_path, f"path,lat,lon,timestamp\n1.jpg,1,2,{text}\n", "1.jpg")
    (reference,) = read(path)
    assert reference.captured_at == expected


def test_empty_lines_and_empty_optional_values(tmp_path: Path) -> None:
    path = table(tmp_path, "path,lat,lon,heading,session\n\n1.jpg,1,2,, \n\n2.jpg,1,2,nan,b\n", "1.jpg", "2.jpg")
    assert [(r.id, r.heading_deg, r.session) for r in read(path)] == [("1.jpg", None, None), ("2.jpg", None, "b")]


def test_rows_without_a_position_are_left_out(tmp_path: Path) -> None:
    path = table(tmp_path, "path,lat,lon\n1.jpg,,\n2.jpg,1,2\n3.jpg,nan,NaN\n", "1.jpg", "2.jpg")
    source = CsvTable(path)
    assert [reference.id for reference in source] == ["2.jpg"]
    reason = "its row has no latitude and longitude"
    assert [(p.path, p.reason) for p in source.skipped] == [
        (tmp_path / "1.jpg", reason),
        (tmp_path / "3.jpg", reason),
    ]


def test_no_row_with_a_position(tmp_path: Path) -> None:
    path = table(tmp_path, "path,lat,lon\n1.jpg,,\n")
    assert complaint(path) == (
        f"{path}: no photo of 1 can be used: its row has no latitude and longitude (1). "
        "Fill in lat and lon, and check that paths start from the table's folder or from root=FOLDER."
    )


def test_photos_that_do_not_exist(tmp_path: Path) -> None:
    path = table(tmp_path, "path,lat,lon\n1.jpg,1,2\ngone/2.jpg,1,2\n", "1.jpg")
    assert complaint(path) == (
        f"{path}, row 3: there is no photo {tmp_path}/gone/2.jpg. "
        "Correct the path, or leave such rows out with missing=skip in the spec."
    )
    assert [reference.id for reference in read(path, missing="ignore")] == ["1.jpg", "gone/2.jpg"]
    source = CsvTable(path, TableOptions(missing="skip"))
    assert [reference.id for reference in source] == ["1.jpg"]
    assert [(p.path.name, p.reason) for p in source.skipped] == [("2.jpg", "the listed photo does not exist")]


def test_photos_that_the_filters_leave_out_need_not_exist(tmp_path: Path) -> None:
    path = table(tmp_path, "path,lat,lon,session\n1.jpg,1,2,a\n2.jpg,1,2,b\n", "1.jpg")
    assert [reference.id for reference in read(path, sessions="a")] == ["1.jpg"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1.jpg,north,2,,", "row 4, column Latitude: 'north' is not a number. "
         "Write a number such as 48.137154, without a unit."),
        ("1.jpg,1_0,2,,", "row 4, column Latitude: '1_0' is not a number. "
         "Write a number such as 48.137154, without a unit."),
        ("1.jpg,inf,2,,", "row 4, column Latitude: 'inf' is not a number. "
         "Write a number such as 48.137154, without a unit."),
        ('1.jpg,"48,5",2,,', "row 4, column Latitude: '48,5' has a decimal comma. Write 48.5."),
        ('1.jpg,1,"-11,25",,', "row 4, column lon: '-11,25' has a decimal comma. Write -11.25."),
        ("1.jpg,90.5,2,,", "row 4, column Latitude: latitude 90.5 is outside [-90, 90]. "
         "Give WGS84 degrees, not metres; latitude and longitude may be swapped."),
        ("1.jpg,1,360,,", "row 4, column lon: longitude 360.0 is outside [-180, 360). "
         "Give WGS84 degrees, not metres; latitude and longitude may be swapped."),
        ("1.jpg,1,,,", "row 4, column lon: the value is empty. Fill it in, or empty both lat and lon."),
        (",1,2,,", "row 4, column path: the value is empty. Give the path of the photo."),
        ("1.jpg,1,2,south,", "row 4, column heading: 'south' is not a number. "
         "Write a number such as 48.137154, without a unit."),
        ("1.jpg,1,2,1e4,", "row 4, column heading: heading 10000.0 is outside [-720, 720]. "
         "Give degrees clockwise from north."),
        ("1.jpg,1,2,,yesterday", "row 4, column time: 'yesterday' is not a time. "
         "Write 2026-05-31T14:05:00+02:00, with or without the offset, or Unix time."),
        ("1.jpg,1,2,", "row 4: it has 4 values, the header has 5. "
         "A value that holds the delimiter ',' stands in double quotes; numbers have a decimal point."),
        ("1.jpg,48,5,11,25,,", "row 4: it has 7 values, the header has 5. "
         "A value that holds the delimiter ',' stands in double quotes; numbers have a decimal point."),
        ("0.jpg,1,2,,", "row 4: the photo 0.jpg stands in row 2 already. Remove one of the rows, or add an id column."),
        ('"1.jpg,1,2,,', "row 4: the row cannot be read (unexpected end of data). "
         "Look for a double quote that is not closed; a quote inside a quoted value is written twice."),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_as_an_editor_counts_lines(tmp_path: Path, row: str, message: str) -> None:
    path = table(tmp_path, f"path,Latitude,lon,heading,time\n0.jpg,1,2,,\n\n{row}\n", "0.jpg", "1.jpg")
    assert complaint(path) == f"{path}, {message}"


def test_a_row_after_a_value_of_several_lines(tmp_path: Path) -> None:
    path = table(tmp_path, 'path,lat,lon,note\n1.jpg,1,2,"two\nlines"\n2.jpg,x,2,\n', "1.jpg")
    assert complaint(path).startswith(f"{path}, row 4, column lat: 'x' is not a number.")


def test_an_id_twice(tmp_path: Path) -> None:
    path = table(tmp_path, "id,path,lat,lon\na,1.jpg,1,2\nb,2.jpg,1,2\na,3.jpg,1,2\n", "1.jpg", "2.jpg", "3.jpg")
    assert complaint(path) == f"{path}, row 4: the id a is that of row 2 already. Give every photo its own id."


def test_two_ids_of_one_hash_are_two_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrieval.references.tables.SeenIds.add", lambda _self, reference_id: reference_id != "2.jpg")
    path = table(tmp_path, "path,lat,lon\n1.jpg,1,2\n2.jpg,1,2\n", "1.jpg", "2.jpg")
    assert [reference.id for reference in read(path)] == ["1.jpg", "2.jpg"]


def test_no_file(tmp_path: Path) -> None:
    assert complaint(tmp_path / "no.csv") == f"{tmp_path}/no.csv: there is no such file. Check the path."
    assert complaint(tmp_path) == f"{tmp_path}: this is a folder, not a file. Check the path."


def test_an_empty_file(tmp_path: Path) -> None:
    path = table(tmp_path, "")
    assert complaint(path) == f"{path}: the file is empty. Its first line names the columns: path,lat,lon."


def test_a_header_alone(tmp_path: Path) -> None:
    path = table(tmp_path, "path,lat,lon\n")
    assert complaint(path) == f"{path}: the table has no rows. List a photo a row."


def test_a_missing_column_lists_those_there_are(tmp_path: Path) -> None:
    path = table(tmp_path, "path,breite,lon\n1.jpg,1,2\n")
    assert complaint(path) == (
        f"{path}: no column holds lat. "
        "Its columns are path, breite, lon: say which one in the spec, as in csv:…?lat=COLUMN."
    )


def test_an_ambiguous_column(tmp_path: Path) -> None:
    path = table(tmp_path, "image,filename,lat,lon\n1.jpg,1.jpg,1,2\n", "1.jpg")
    assert complaint(path) == (
        f"{path}: the columns image and filename could each hold path. "
        "Say which one in the spec, as in csv:…?path=image."
    )
    assert read(path, path="filename")[0].id == "1.jpg"


def test_a_column_that_the_options_name_wrongly(tmp_path: Path) -> None:
    path = table(tmp_path, "path,lat,lon\n")
    assert complaint(path, heading="yaw") == (
        f"{path}: there is no column 'yaw' to take heading from. Its columns are path, lat, lon."
    )


def test_a_column_name_twice(tmp_path: Path) -> None:
    path = table(tmp_path, "path,lat,lon,lat\n")
    assert complaint(path) == f"{path}, row 1: two columns have the name lat. Rename one of them."


@pytest.mark.parametrize(
    ("text", "row", "byte"),
    [
        ("path,lat,lon\n1.jpg,1,2\nStraße.jpg,1,2\n".encode("latin-1"), 3, "0xdf"),
        ("path,lat,lon\n".encode("utf-16"), 1, "0xff"),
        (b"path,lat,lon\n" + b"1.jpg,1,2\n" * 5000 + b"\xe9.jpg,1,2\n", 5002, "0xe9"),
    ],
    ids=["latin-1", "utf-16", "far down"],
)
def test_not_utf8(tmp_path: Path, text: bytes, row: int, byte: str) -> None:
    path = table(tmp_path, text, "1.jpg")
    with pytest.raises(ReferenceDataError) as caught:
        for _ in CsvTable(path, TableOptions(missing="ignore", id="lat" if row > 5000 else None))._file:
            pass
    assert str(caught.value) == f"{path}, row {row}: the text is not UTF-8 (byte {byte}). Save the file as UTF-8."


def test_the_count_is_known_before_reading(tmp_path: Path) -> None:
    assert len(CsvTable(table(tmp_path, "path,lat,lon\n1.jpg,1,2\n2.jpg,1,2"))) == 2
    assert len(CsvTable(table(tmp_path, "path,lat,lon\n1.jpg,1,2\n2.jpg,1,2\n"))) == 2
    assert len(CsvTable(table(tmp_path, "path,lat,lon"))) == 0


@pytest.mark.photos
def test_bgu_campus(photos_root: Path) -> None:
    path = photos_root / "bgu_campus" / "images.csv"
    references = read(path)
    assert len(references) == 1475
    assert len({reference.position for reference in references}) == 539
    assert len({reference.session for reference in references}) == 6
    assert all(reference.captured_at is not None and reference.heading_deg is None for reference in references)
    assert set(references[0].metadata) == {"lat_raw_exif_cleaned", "lon_raw_exif_cleaned"}


@pytest.mark.photos
@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"sessions": "phoneA_*"}, 849),
        ({"sessions": "phoneB_*"}, 626),
        ({"sessions": "*_day"}, 694),
        ({"sessions": "*_night"}, 781),
        ({"sessions": "phoneA_*,phoneB_*"}, 1475),
        ({"bbox": f"31,34.7,32,{34.80 + 227 / 95160}"}, 662),
        ({"bbox": f"31,{34.80 + 252 / 95160},32,35", "sessions": "phoneA_*"}, 479),
        ({"bbox": f"31,{34.80 + 252 / 95160},32,35", "sessions": "phoneB_*"}, 229),
    ],
)
def test_the_protocols_of_bgu_campus(photos_root: Path, options: dict[str, str], count: int) -> None:
    assert len(read(photos_root / "bgu_campus" / "images.csv", **options)) == count
